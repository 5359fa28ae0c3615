//! What can be proved only from inside a container: the probe looks around with a shell, and tries forbidden calls with a
//! small static program that is compiled by `cc` when the tests run.
//!
//! Tests may parse what tools print inside; the product never does.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, OnceLock},
};

use agents_core::{ContainerHandle, CopyToRequest, Mount, Process, ResourceLimits, Secret, SecretBytes};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::{
    Case, CaseResult, Failure,
    case::{cases, failed, skipped},
    runtime::RuntimeFixture,
};

/// The program's source.
const SOURCE: &str = include_str!("probe.c");

/// Where the program is in the container.
const PROGRAM: &str = "/output/agents-probe";

/// What the program tries; each is a case that passes when it is refused.
pub const FORBIDDEN: &[&str] = &[
    "mount_tmpfs",
    "mount_bind",
    "remount_root",
    "mount_proc",
    "mount_cgroup",
    "umount",
    "pivot_root",
    "chroot",
    "fsopen",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "unshare_user",
    "unshare_mount",
    "unshare_net",
    "unshare_pid",
    "unshare_cgroup",
    "clone_user",
    "clone3_user",
    "setns",
    "mknod_char",
    "mknod_block",
    "ptrace",
    "process_vm_readv",
    "bpf",
    "keyctl",
    "add_key",
    "request_key",
    "socket_raw",
    "socket_packet",
    "socket_netlink_audit",
    "socket_netlink_netfilter",
    "socket_vsock",
    "userfaultfd",
    "perf_event_open",
    "io_uring_setup",
    "kexec_load",
    "open_by_handle_at",
    "tiocsti",
    "sethostname",
    "setdomainname",
    "init_module",
    "finit_module",
    "delete_module",
    "settimeofday",
    "swapon",
    "syslog",
    "acct",
    "setuid_root",
    "setgid_root",
    "setgroups",
    "capset",
    "sched_realtime",
    "fanotify_init",
    "open_kmsg",
    "open_mem",
    "open_kvm",
    "open_fuse",
    "open_core_pattern",
    "open_sysrq",
    "iopl",
];

/// What a kernel of the container's own answers differently without harm: gVisor knows no scheduling but the usual one and
/// says so after looking at the arguments, and its `/dev/fuse` is its own, which only a mount could make use of.
const OF_AN_OWN_KERNEL: &[&str] = &["sched_realtime ALLOWED Invalid argument", "open_fuse ALLOWED"];

/// All cases, each forbidden call in a container of its own.
pub fn cases() -> Vec<Case<RuntimeFixture>> {
    let mut cases = views();
    // One container for all of them would be quicker, but one that was damaged would spoil the rest.
    cases.extend(FORBIDDEN.iter().map(|name| {
        Case::new(format!("refuses_{name}"), move |fx| async move {
            let container = container(&fx).await?;
            put_program(&fx, &container).await?;
            match try_call(&fx, &container, name).await? {
                None => Ok(()),
                Some(line) => failed(format!("the probe printed {line:?}")),
            }
        })
    }));
    cases
}

/// The same cases with all forbidden calls in one container, for runtimes whose containers take long to make.
pub fn grouped_cases() -> Vec<Case<RuntimeFixture>> {
    let mut cases = views();
    cases.extend(cases![refuses_what_is_forbidden,]);
    cases
}

async fn refuses_what_is_forbidden(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    put_program(&fx, &container).await?;
    let mut allowed = Vec::new();
    for name in FORBIDDEN {
        allowed.extend(try_call(&fx, &container, name).await?);
    }
    assert!(allowed.is_empty(), "the probe printed {allowed:?}");
    Ok(())
}

/// The cases that look around.
fn views() -> Vec<Case<RuntimeFixture>> {
    cases![
        the_probe_works,
        a_thread_starts,
        no_capabilities,
        no_new_privileges,
        a_seccomp_filter_is_on,
        not_root_and_no_further_groups,
        the_root_is_read_only,
        only_the_usual_devices,
        no_process_of_the_host,
        namespaces_are_its_own,
        only_the_loopback_interface,
        proc_is_masked,
        proc_sys_is_read_only,
        sys_is_read_only_and_masked,
        cgroups_cannot_be_written_to,
        writable_mounts_have_no_devices_and_no_setuid,
        tools_cannot_change_the_system,
        the_environment_is_clean,
        no_descriptor_is_inherited,
        the_host_is_not_named,
    ]
}

type Fx = Arc<RuntimeFixture>;

/// The program, compiled once a process.
fn program() -> Result<&'static [u8], Failure> {
    static PROGRAM: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
    match PROGRAM.get_or_init(compile) {
        Ok(program) => Ok(program),
        Err(reason) => skipped(reason.clone()),
    }
}

fn compile() -> Result<Vec<u8>, String> {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let build = || -> std::io::Result<(bool, String, Vec<u8>)> {
        let dir = tempfile::tempdir()?;
        let (source, program) = (dir.path().join("probe.c"), dir.path().join("probe"));
        fs::write(&source, SOURCE)?;
        let compiled = Command::new(&compiler)
            .args(["-static", "-pthread", "-O1", "-o"])
            .args([&program, &source])
            .output()?;
        let errors = String::from_utf8_lossy(&compiled.stderr).into_owned();
        let bytes = if compiled.status.success() {
            fs::read(program)?
        } else {
            Vec::new()
        };
        Ok((compiled.status.success(), errors, bytes))
    };
    match build() {
        Ok((true, _, program)) => Ok(program),
        Ok((false, errors, _)) => Err(format!("the C compiler cannot link statically: {errors}")),
        Err(error) => Err(format!("there is no C compiler {compiler:?}: {error}")),
    }
}

/// A container as the engine makes it for an agent, with what the probe needs.
async fn container(fx: &Fx) -> Result<ContainerHandle, Failure> {
    let capabilities = fx.capabilities();
    let mut request = fx.request().with_mounts([Mount::tmpfs(16 << 20, "/tmp")]);
    let limits = ResourceLimits::none()
        .with_memory_bytes(capabilities.memory_limit.is_enforced().then_some(256 << 20))
        .with_pids(capabilities.pids_limit.is_enforced().then_some(64));
    request = request.with_resources(limits);
    if capabilities.secrets.is_enforced() {
        request = request.with_secrets([Secret {
            name: "probe".to_owned(),
            value: SecretBytes::new("secret"),
        }]);
    }
    Ok(fx.provision(request).await?.handle)
}

/// Puts the program into a container.
async fn put_program(fx: &Fx, container: &ContainerHandle) -> CaseResult {
    let archive = crate::hostile::RawArchive::new()
        .file_with_mode("agents-probe", program()?, 0o755)
        .finish();
    let archive = stream::iter([Ok(Bytes::from(archive))]).boxed();
    fx.runtime
        .copy_to(CopyToRequest::new(container.clone(), "/output", archive))
        .await?;
    Ok(())
}

/// What the program prints about one call.
async fn run_program(fx: &Fx, container: &ContainerHandle, name: &str) -> Result<String, Failure> {
    let output = fx.exec(container, Process::new([PROGRAM, name])).await?;
    if !output.exit.is_success() {
        return failed(format!("the probe {}: {}", output.exit, output.stderr.to_text()));
    }
    Ok(output.stdout.to_text().trim().to_owned())
}

/// Tries a forbidden call; what is printed when it is not refused.
async fn try_call(fx: &Fx, container: &ContainerHandle, name: &str) -> Result<Option<String>, Failure> {
    let line = run_program(fx, container, name).await?;
    let refused = match line.strip_prefix(name).map(str::trim_start) {
        Some(rest) => rest.starts_with("refused"),
        None => false,
    };
    let own = fx.own_kernel() && OF_AN_OWN_KERNEL.contains(&line.as_str());
    Ok((!refused && !own).then_some(line))
}

/// The output of a script, whatever its exit code.
async fn look(fx: &Fx, container: &ContainerHandle, script: &str) -> Result<String, Failure> {
    Ok(fx.sh(container, script).await?.stdout.to_text())
}

async fn status(fx: &Fx) -> Result<BTreeMap<String, String>, Failure> {
    let container = container(fx).await?;
    let text = look(fx, &container, "cat /proc/self/status").await?;
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let status: BTreeMap<_, _> = pairs
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect();
    if status.is_empty() {
        return failed("/proc/self/status cannot be read inside");
    }
    Ok(status)
}

/// The mounts as `/proc/mounts` has them: path, type and options.
async fn mounts(fx: &Fx, container: &ContainerHandle) -> Result<Vec<(String, String, Vec<String>)>, Failure> {
    let text = look(fx, container, "cat /proc/mounts").await?;
    let mounts = text.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let options = options.split(',').map(str::to_owned).collect();
        Some((path.to_owned(), kind.to_owned(), options))
    });
    Ok(mounts.collect())
}

/// A probe that can do nothing would pass every case.
async fn the_probe_works(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    put_program(&fx, &container).await?;
    assert_eq!(run_program(&fx, &container, "control").await?, "control ALLOWED");
    Ok(())
}

/// The C library asks for a thread in a way that filters refuse, and then in another when the refusal is worded right.
async fn a_thread_starts(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    put_program(&fx, &container).await?;
    assert_eq!(run_program(&fx, &container, "thread").await?, "thread ALLOWED");
    Ok(())
}

async fn no_capabilities(fx: Fx) -> CaseResult {
    let status = status(&fx).await?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let bits = status.get(set).map(String::as_str).unwrap_or_default();
        assert!(
            !bits.is_empty() && bits.chars().all(|bit| bit == '0'),
            "{set} is {bits:?}"
        );
    }
    Ok(())
}

async fn no_new_privileges(fx: Fx) -> CaseResult {
    assert_eq!(status(&fx).await?.get("NoNewPrivs").map(String::as_str), Some("1"));
    Ok(())
}

async fn a_seccomp_filter_is_on(fx: Fx) -> CaseResult {
    assert_eq!(status(&fx).await?.get("Seccomp").map(String::as_str), Some("2"));
    Ok(())
}

async fn not_root_and_no_further_groups(fx: Fx) -> CaseResult {
    let status = status(&fx).await?;
    let numbers = |key: &str| -> Vec<u32> {
        let text = status.get(key).map(String::as_str).unwrap_or_default();
        text.split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    let (uids, gids) = (numbers("Uid"), numbers("Gid"));
    assert!(uids.len() == 4 && !uids.contains(&0), "{uids:?}");
    assert!(gids.len() == 4 && !gids.contains(&0), "{gids:?}");
    assert!(
        numbers("Groups").iter().all(|group| gids.contains(group)),
        "{:?}",
        numbers("Groups")
    );
    Ok(())
}

async fn the_root_is_read_only(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    let script = "for d in / /usr /etc /bin /var /root /home /opt /lib /dev /run /proc /sys; do \
                  [ -d $d ] && ( : > $d/agents-probe ) 2>/dev/null && echo $d; done";
    assert_eq!(
        look(&fx, &container, script).await?,
        "",
        "these folders can be written to"
    );
    let mounts = mounts(&fx, &container).await?;
    let root = mounts.iter().rev().find(|(path, ..)| path == "/");
    assert!(
        root.is_some_and(|(_, _, options)| options.iter().any(|option| option == "ro")),
        "{root:?}"
    );
    Ok(())
}

async fn only_the_usual_devices(fx: Fx) -> CaseResult {
    const USUAL: &[&str] = &[
        "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd", "stdin",
        "stdout", "stderr", "core",
    ];
    let container = container(&fx).await?;
    /// What gVisor's kernel adds: devices of its own, which lead nowhere on the host.
    const OF_GVISOR: &[&str] = &["char", "net", "fuse"];
    let names = look(&fx, &container, "ls -A /dev").await?;
    assert!(names.contains("null"), "{names:?}");
    for name in names.lines() {
        let known = USUAL.contains(&name) || fx.own_kernel() && OF_GVISOR.contains(&name);
        assert!(known, "/dev/{name} is there");
    }
    let working = "echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c";
    let working = look(&fx, &container, working).await?;
    assert_eq!(working.split_whitespace().collect::<Vec<_>>(), ["4", "4"]);
    let others = look(
        &fx,
        &container,
        "find / -xdev \\( -type b -o -type c \\) 2>/dev/null | grep -v '^/dev/' | head",
    )
    .await?;
    assert_eq!(others, "", "there are device nodes outside of /dev");
    Ok(())
}

async fn no_process_of_the_host(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    let script = "for p in /proc/[0-9]*; do [ -r $p/comm ] && read -r c < $p/comm && echo \"${p#/proc/} $c\"; done";
    let processes = look(&fx, &container, script).await?;
    let count = processes.lines().count();
    assert!((1..=6).contains(&count), "{count} processes are seen: {processes}");
    let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    assert!(
        !processes.lines().any(|line| line.ends_with(own.trim())),
        "the test itself is seen: {processes}"
    );
    let first = look(&fx, &container, "tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/comm").await?;
    for init in ["systemd", "/sbin/init"] {
        assert!(!first.contains(init), "process 1 is {first:?}");
    }
    Ok(())
}

async fn namespaces_are_its_own(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    for namespace in ["pid", "mnt", "net", "ipc", "uts"] {
        let path = format!("/proc/self/ns/{namespace}");
        let ours = fs::read_link(&path).unwrap_or_else(|_| PathBuf::from("unknown"));
        let theirs = look(&fx, &container, &format!("readlink {path}")).await?;
        assert!(theirs.starts_with(namespace), "{theirs:?}");
        assert_ne!(
            theirs.trim(),
            ours.display().to_string(),
            "the {namespace} namespace is the host's"
        );
    }
    Ok(())
}

async fn only_the_loopback_interface(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    let text = look(&fx, &container, "cat /proc/self/net/dev").await?;
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    // Some engines leave the loopback interface down, and gVisor takes over only what is up.
    assert!(names == ["lo"] || fx.own_kernel() && names.is_empty(), "{names:?}");
    let routes = look(&fx, &container, "cat /proc/self/net/route").await?;
    assert!(routes.lines().count() <= 1, "{routes}");
    Ok(())
}

async fn proc_is_masked(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    let script = "for f in kcore keys timer_list sched_debug latency_stats kmsg; do \
                  [ -e /proc/$f ] && n=$(head -c 4 /proc/$f 2>/dev/null | wc -c) && [ $n -gt 0 ] && echo $f; done; \
                  for d in acpi scsi asound; do [ -d /proc/$d ] && [ -n \"$(ls -A /proc/$d 2>/dev/null)\" ] && echo $d; done";
    assert_eq!(look(&fx, &container, script).await?, "", "these can be read in /proc");
    Ok(())
}

async fn proc_sys_is_read_only(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    let script = "for f in sys/kernel/hostname sys/kernel/core_pattern sys/kernel/modprobe sys/vm/overcommit_memory \
                  sys/net/ipv4/ip_forward sysrq-trigger irq/default_smp_affinity; do \
                  [ -e /proc/$f ] && ( : >> /proc/$f ) 2>/dev/null && echo $f; done";
    assert_eq!(
        look(&fx, &container, script).await?,
        "",
        "these can be written to in /proc"
    );
    Ok(())
}

async fn sys_is_read_only_and_masked(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    for (path, kind, options) in mounts(&fx, &container).await? {
        if [
            "sysfs",
            "debugfs",
            "tracefs",
            "securityfs",
            "efivarfs",
            "bpf",
            "configfs",
            "fusectl",
            "pstore",
        ]
        .contains(&&*kind)
        {
            assert!(kind == "sysfs", "{path} is a {kind}");
            assert!(options.iter().any(|option| option == "ro"), "{path} can be written to");
        }
    }
    let firmware = "for d in firmware kernel/debug kernel/tracing kernel/security devices/virtual/powercap fs/bpf; do \
                    [ -d /sys/$d ] && [ -n \"$(ls -A /sys/$d 2>/dev/null)\" ] && echo $d; done";
    assert_eq!(look(&fx, &container, firmware).await?, "", "these can be seen in /sys");
    Ok(())
}

async fn cgroups_cannot_be_written_to(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    for (path, kind, options) in mounts(&fx, &container).await? {
        if kind.starts_with("cgroup") {
            assert!(options.iter().any(|option| option == "ro"), "{path} can be written to");
        }
    }
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do [ -d $d ] || continue; \
                  mkdir $d/agents-probe 2>/dev/null && echo $d; \
                  for f in cgroup.procs tasks release_agent memory.max memory.limit_in_bytes; do \
                  [ -e $d/$f ] && ( : >> $d/$f ) 2>/dev/null && echo $d/$f; done; done";
    assert_eq!(look(&fx, &container, script).await?, "", "these can be written to");
    Ok(())
}

async fn writable_mounts_have_no_devices_and_no_setuid(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    let mounts = mounts(&fx, &container).await?;
    for wanted in ["/tmp", "/output"] {
        let Some((_, _, options)) = mounts.iter().rev().find(|(path, ..)| path == wanted) else {
            return failed(format!("{wanted} is no mount"));
        };
        for option in ["nosuid", "nodev"] {
            // gVisor does not tell of the second one, and makes no device nodes (`refuses_mknod_char`).
            let untold = option == "nodev" && fx.own_kernel();
            assert!(
                untold || options.iter().any(|have| have == option),
                "{wanted} lacks {option}: {options:?}"
            );
        }
    }
    Ok(())
}

async fn tools_cannot_change_the_system(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    for script in [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /",
        "umount /tmp",
        "unshare -r true",
        "unshare -m true",
        "chroot / true",
        "mknod /tmp/null c 1 3",
        "hostname probe",
        "echo probe > /proc/sys/kernel/hostname",
        "insmod /tmp/none.ko",
        "chown 0:0 /output",
        "kill -9 1 && kill -0 1 && sleep 1 && ! kill -0 1",
    ] {
        let output = fx.sh(&container, &format!("( {script} ) 2>&1")).await?;
        assert!(!output.exit.is_success(), "{script} worked");
    }
    Ok(())
}

async fn the_environment_is_clean(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    let variables = look(&fx, &container, "env").await?;
    for line in variables.lines() {
        let name = line.split('=').next().unwrap_or_default();
        let ours = std::env::var(name).unwrap_or_default();
        let forwarded = name.starts_with("CARGO")
            || name.starts_with("RUST")
            || name.starts_with("SSH_")
            || name == "LD_LIBRARY_PATH";
        assert!(!forwarded || ours.is_empty(), "{name} came in from the host");
    }
    Ok(())
}

async fn no_descriptor_is_inherited(fx: Fx) -> CaseResult {
    let container = container(&fx).await?;
    // The listing itself holds one descriptor open, the last.
    let listed = look(&fx, &container, "ls /proc/self/fd").await?;
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    Ok(())
}

async fn the_host_is_not_named(fx: Fx) -> CaseResult {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let container = container(&fx).await?;
    let name = look(&fx, &container, "cat /proc/sys/kernel/hostname").await?;
    assert!(!name.is_empty());
    assert_ne!(name, host, "the host's name is seen");
    Ok(())
}
