//! What both suites share: the image, the fixture, and the cases that only this runtime has.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
};

use agents_core::{ContainerRuntimeExt, Exit, Mount, Process, SecurityConfig, StartRequest};
use agents_runtime_native::NativeRuntime;
use agents_testkit::{Case, Failure, probe, runtime, runtime::RuntimeFixture, trials};

/// The `runsc` that the services have.
pub(crate) fn runsc() -> Option<PathBuf> {
    std::env::var_os("AGENTS_TEST_RUNSC").map(PathBuf::from)
}

/// Runs everything under a name, with sandboxes of this `runsc`.
pub(crate) fn run(name: &str, runsc: Option<PathBuf>) -> ExitCode {
    let busybox = || async { fixture(Image::Busybox) };
    let host = || async { fixture(Image::Host) };
    let gvisor = move || {
        let runsc = runsc.clone();
        async move { sandbox(runsc) }
    };
    agents_testkit::run([
        trials(name, runtime::cases(), busybox),
        trials(&format!("{name}::probe"), probe::cases(), busybox),
        trials(&format!("{name}::host::probe"), probe::cases(), host),
        trials(&format!("{name}::host"), host_cases(), host),
        trials(&format!("gvisor::{name}"), runtime::cases(), gvisor.clone()),
        trials(&format!("gvisor::{name}::probe"), probe::grouped_cases(), gvisor),
    ])
}

fn sandbox(runsc: Option<PathBuf>) -> Result<RuntimeFixture, String> {
    let Some(runsc) = runsc else {
        return Err(
            "AGENTS_TEST_RUNSC is not set; run `cargo xtask services up docker-old` and \
                    eval \"$(cargo xtask services env)\""
                .to_owned(),
        );
    };
    let broken = |error: agents_core::Error| error.to_string();
    let fixture = fixture_with(Image::Busybox, |runtime| runtime.with_runsc(runsc).map_err(broken))?;
    Ok(fixture.of_class(Some("gvisor".to_owned())))
}

#[derive(Clone, Copy)]
enum Image {
    Busybox,
    Host,
}

fn fixture(image: Image) -> Result<RuntimeFixture, String> {
    fixture_with(image, Ok)
}

fn fixture_with(
    image: Image,
    refine: impl FnOnce(NativeRuntime) -> Result<NativeRuntime, String>,
) -> Result<RuntimeFixture, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).map_err(|error| error.to_string())?;
    let image = match image {
        Image::Host => "host".to_owned(),
        Image::Busybox => busybox(dir.path())?,
    };
    let runtime = NativeRuntime::new(dir.path().join("native"), dir.path().join("images"), None)
        .map_err(|error| error.to_string())?;
    let runtime = refine(runtime)?;
    Ok(RuntimeFixture::new(Arc::new(runtime), image, shared).keeping(dir))
}

/// A root file system of nothing but busybox.
fn busybox(dir: &Path) -> Result<String, String> {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
        .ok_or("busybox is missing; run `apt-get install busybox-static`")?;
    let bin = dir.join("busybox/bin");
    let broken = |error: std::io::Error| format!("cannot make the image: {error}");
    fs::create_dir_all(&bin).map_err(broken)?;
    fs::copy(&program, bin.join("busybox")).map_err(broken)?;
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).map_err(broken)?;
    let list = Command::new(&program).arg("--list").output().map_err(broken)?;
    for name in String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", bin.join(name)).map_err(broken)?;
    }
    Ok(dir.join("busybox").display().to_string())
}

/// What holds when the image is the host itself.
fn host_cases() -> Vec<Case<RuntimeFixture>> {
    let hidden = |name: &'static str, script: &'static str| {
        Case::new(name, move |fx: Arc<RuntimeFixture>| async move {
            succeeds(&fx, script).await
        })
    };
    vec![
        hidden(
            "home_folders_are_hidden",
            "test -z \"$(ls -A /root /home 2>/dev/null | grep -v :)\"",
        ),
        hidden("passwords_are_hidden", "! cat /etc/shadow | grep -q ."),
        hidden("host_keys_are_hidden", "test -z \"$(ls -A /etc/ssh 2>/dev/null)\""),
        hidden(
            "no_socket_of_the_host",
            "test -z \"$(find / -xdev -type s 2>/dev/null)\" && test ! -e /run/docker.sock",
        ),
        hidden(
            "only_the_folders_of_programs",
            "for d in /srv /mnt /media /boot; do test ! -e $d || exit 1; done",
        ),
        hidden(
            "the_programs_of_the_host_run",
            "awk 'BEGIN { exit 0 }' && sort /dev/null",
        ),
        hidden(
            "no_file_of_the_host_can_be_changed",
            "! touch /etc/x && ! touch /usr/x && ! touch /usr/bin/awk",
        ),
        Case::new("a_writable_root_is_refused", |fx: Arc<RuntimeFixture>| async move {
            let security = SecurityConfig::default().with_read_only_rootfs(false);
            match fx
                .runtime
                .provision_verified(fx.request().with_security(security))
                .await
            {
                Err(error) if error.message().contains("read_only_rootfs") => Ok(()),
                Err(error) => Err(Failure::Failed(error.report())),
                Ok(_) => Err(Failure::Failed("it was accepted".to_owned())),
            }
        }),
        Case::new(
            "sockets_and_devices_are_not_mounted",
            |fx: Arc<RuntimeFixture>| async move {
                for source in ["/dev/null", "/dev"] {
                    let request = fx.request().with_mounts([Mount::bind(source, "/data")]);
                    let provisioned = fx.runtime.provision_verified(request).await;
                    match (source, provisioned) {
                        ("/dev/null", Err(_)) => {}
                        ("/dev", Ok(container)) => {
                            let shown = run_in(&fx, &container.handle, "echo x > /data/null").await?;
                            if shown.is_success() {
                                return Err(Failure::Failed("a device in a mount can be used".to_owned()));
                            }
                            fx.runtime.destroy(&container.handle.id).await?;
                        }
                        (source, other) => return Err(Failure::Failed(format!("{source}: {other:?}"))),
                    }
                }
                Ok(())
            },
        ),
        Case::new(
            "what_the_agent_makes_in_the_workspace_is_the_callers",
            |fx: Arc<RuntimeFixture>| async move {
                use std::os::unix::fs::MetadataExt;

                let request = fx
                    .request()
                    .with_mounts([Mount::bind(&fx.host_dir, "/workspace").writable()])
                    .with_process(Some(Process::new([
                        "sh",
                        "-c",
                        "mkdir /workspace/d && echo x > /workspace/d/f",
                    ])));
                let container = fx.provision(request).await?;
                let session = fx.runtime.start(StartRequest::new(container.handle)).await?;
                let output = session.collect(1000).await?;
                let metadata =
                    fs::metadata(fx.host_dir.join("d/f")).map_err(|error| Failure::Failed(error.to_string()))?;
                let own = rustix::process::geteuid().as_raw();
                if output.exit.is_success() && metadata.uid() == own {
                    return Ok(());
                }
                Err(Failure::Failed(format!(
                    "{output:?}, owner {}, not {own}",
                    metadata.uid()
                )))
            },
        ),
    ]
}

async fn run_in(fx: &RuntimeFixture, container: &agents_core::ContainerHandle, script: &str) -> Result<Exit, Failure> {
    let process = Process::new(["sh", "-c", script]);
    let session = fx
        .runtime
        .exec(agents_core::ExecRequest::new(container.clone(), process))
        .await?;
    Ok(session.collect(10_000).await?.exit)
}

async fn succeeds(fx: &RuntimeFixture, script: &str) -> Result<(), Failure> {
    let container = fx.provision(fx.request()).await?;
    let process = Process::new(["sh", "-c", script]);
    let session = fx
        .runtime
        .exec(agents_core::ExecRequest::new(container.handle, process))
        .await?;
    let output = session.collect(10_000).await?;
    if output.exit.is_success() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{}: {}{}",
        output.exit,
        output.stdout.to_text(),
        output.stderr.to_text()
    )))
}
