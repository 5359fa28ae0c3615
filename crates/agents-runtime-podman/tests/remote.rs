//! Engines that are reached over TCP, TLS and ssh, all of them the same one, which only here pretends to be elsewhere.

#[path = "support/variables.rs"]
mod variables;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
};

use agents_core::{
    ContainerId, ContainerRuntime, ContainerRuntimeExt, ErrorKind, ExecRequest, Exit, ImagePullPolicy, Mount, Process,
    ProvisionRequest, ResourceLimits, SecurityConfig, SessionId, StartRequest,
};
use agents_runtime_podman::{PodmanConfig, PodmanRuntime};
use libtest_mimic::{Arguments, Trial};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
};
use tokio_rustls::TlsAcceptor;

/// Set for this program when it is to be `ssh`.
const AS_SSH: &str = "AGENTS_TEST_AS_SSH";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
}

async fn forward(mut client: impl AsyncRead + AsyncWrite + Unpin, engine: PathBuf) {
    if let Ok(mut engine) = UnixStream::connect(engine).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
    }
}

/// A TCP port that leads to the engine.
async fn tcp(engine: PathBuf, tls: Option<TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (engine, tls) = (engine.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => forward(client, engine).await,
                    Some(tls) => {
                        if let Ok(client) = tls.accept(client).await {
                            forward(client, engine).await;
                        }
                    }
                }
            });
        }
    });
    port
}

/// TLS that wants a certificate of the client's.
fn acceptor() -> TlsAcceptor {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(data("ca.crt")).expect("a certificate"))
        .expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let chain = vec![CertificateDer::from_pem_file(data("server.crt")).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(data("server.key")).expect("a key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("a certificate with its key");
    TlsAcceptor::from(Arc::new(config))
}

fn with_client_certificate(config: PodmanConfig) -> PodmanConfig {
    config.with_tls(data("ca.crt"), Some((data("client.crt"), data("client.key"))))
}

/// Everything that a remote engine is good for.
async fn works(config: PodmanConfig, image: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime: Arc<dyn ContainerRuntime> =
        Arc::new(PodmanRuntime::new(config, folder.path()).unwrap_or_else(|error| panic!("{}", error.report())));
    let availability = runtime.check_availability().await.expect("an answer");
    assert!(availability.available, "{availability:?}");
    let request = || {
        let session = SessionId::generate();
        let name = ContainerId::new(format!("remote-{session}")).expect("a name");
        ProvisionRequest::new(session, name, image)
            .with_pull_policy(ImagePullPolicy::Never)
            .with_mounts([Mount::scratch("/output")])
            .with_resources(
                ResourceLimits::none()
                    .with_memory_bytes(Some(128 << 20))
                    .with_pids(Some(64)),
            )
    };
    // Folders of this host are not there.
    let mounted = request().with_mounts([Mount::bind("/etc", "/mounted")]);
    let refused = runtime.provision_verified(mounted).await.expect_err("a refusal");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.message().contains("another host"), "{refused}");

    let process = Process::new(["sh", "-c", "cat; ls -l /.agents; exit 3"]).with_stdin(true);
    let container = runtime
        .provision_verified(request().with_process(Some(process)))
        .await
        .unwrap_or_else(|error| panic!("{}", error.report()))
        .handle;
    let mut session = runtime
        .start(StartRequest::new(container.clone()))
        .await
        .expect("a process");
    let mut stdin = session.take_stdin().expect("an input");
    stdin
        .write(bytes::Bytes::from_static(b"hello\n"))
        .await
        .expect("written");
    stdin.close().await.expect("closed");
    let output = session.collect(10_000).await.expect("output");
    assert_eq!(output.exit, Exit::Exited { code: 3 });
    assert!(output.stdout.to_text().starts_with("hello\n"), "{output:?}");
    assert!(runtime.stats(&container).await.expect("stats").memory_mb > 0.0);
    runtime.destroy(&container.id).await.expect("destroyed");

    // The filter is ours there too, and so is one of the caller's.
    let profile = folder.path().join("profile.json");
    let json =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&profile, json).expect("a profile");
    let security = SecurityConfig::default().with_seccomp_profile(Some(profile));
    let container = runtime
        .provision_verified(request().with_security(security))
        .await
        .unwrap_or_else(|error| panic!("{}", error.report()))
        .handle;
    let process = Process::new(["sh", "-c", "touch /output/x && ! mkdir /output/y"]);
    let session = runtime
        .exec(ExecRequest::new(container.clone(), process))
        .await
        .expect("a process");
    assert_eq!(
        session.collect(1000).await.expect("output").exit,
        Exit::Exited { code: 0 }
    );
    runtime.destroy(&container.id).await.expect("destroyed");
    assert_eq!(runtime.reap().await.expect("a clean-up"), [""; 0]);
}

async fn unavailable(config: PodmanConfig) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = PodmanRuntime::new(config, folder.path()).unwrap_or_else(|error| panic!("{}", error.report()));
    let availability = runtime.check_availability().await.expect("an answer");
    assert!(!availability.available, "{availability:?}");
    format!("{:?}", availability.problems)
}

async fn over_tcp(engine: PathBuf, image: String) {
    let port = tcp(engine, None).await;
    works(
        PodmanConfig::default().with_remote_url(format!("tcp://127.0.0.1:{port}")),
        &image,
    )
    .await;
}

async fn over_tls(engine: PathBuf, image: String) {
    let port = tcp(engine, Some(acceptor())).await;
    let config = PodmanConfig::default().with_remote_url(format!("tcp://localhost:{port}"));
    works(with_client_certificate(config), &image).await;
}

async fn a_certificate_that_nobody_vouches_for_is_refused(engine: PathBuf, _: String) {
    let port = tcp(engine, Some(acceptor())).await;
    let url = |host: &str| PodmanConfig::default().with_remote_url(format!("tcp://{host}:{port}"));
    // Another authority than the server's: a certificate that signs nobody.
    let other = url("localhost").with_tls(data("client.crt"), Some((data("client.crt"), data("client.key"))));
    let problem = unavailable(other).await;
    assert!(problem.contains("certificate"), "{problem}");
    // No certificate of the client's.
    unavailable(url("localhost").with_tls(data("ca.crt"), None)).await;
    // Not the name in the certificate.
    let problem = unavailable(with_client_certificate(url("127.0.0.2"))).await;
    assert!(
        problem.contains("certificate") || problem.contains("refused"),
        "{problem}"
    );
    // Another host without TLS is never talked to.
    let plain = PodmanConfig::default().with_remote_url("tcp://192.0.2.1:8080");
    let error = PodmanRuntime::new(plain, "/nowhere").expect_err("a refusal");
    assert!(error.message().contains("TLS"), "{error}");
}

async fn over_ssh(engine: PathBuf, image: String) {
    let url = format!("ssh://core@engine.example:2222{}", engine.display());
    works(PodmanConfig::default().with_remote_url(url), &image).await;
}

/// What `ssh -N -L local:remote -- user@host` does, without another host.
fn be_ssh() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let after = |option: &str| {
        let at = arguments.iter().position(|word| word == option).expect("the option");
        arguments[at + 1].clone()
    };
    assert_eq!(arguments[arguments.len() - 2..], ["--", "core@engine.example"]);
    assert_eq!(after("-p"), "2222");
    let forwarding = after("-L");
    let (local, remote) = forwarding.split_once(':').expect("two sockets");
    let (local, remote) = (local.to_owned(), PathBuf::from(remote));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let listener = UnixListener::bind(local).expect("a socket");
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(forward(client, remote.clone()));
        }
    });
    ExitCode::SUCCESS
}

type Work = fn(PathBuf, String) -> futures_util::future::BoxFuture<'static, ()>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), (|engine, image| Box::pin($name(engine, image))) as Work)),*]
    };
}

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if name == "ssh" || std::env::var_os(AS_SSH).is_some() && std::env::args().any(|word| word == "-L") {
        return be_ssh();
    }
    if std::env::var_os(AS_SSH).is_none() {
        return again_with_ssh();
    }
    let url = variables::variable("AGENTS_TEST_PODMAN", "podman");
    let image = variables::variable("AGENTS_TEST_ENGINE_IMAGE", "podman");
    let (url, image) = match (url, image) {
        (Ok(url), Ok(image)) => (url, image),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let engine = PathBuf::from(url.strip_prefix("unix://").expect("a unix socket"));
    let cases = cases![
        over_tcp,
        over_tls,
        a_certificate_that_nobody_vouches_for_is_refused,
        over_ssh,
    ];
    let trial = |(name, work): (&'static str, Work)| {
        let (engine, image) = (engine.clone(), image.clone());
        Trial::test(name, move || {
            let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
            runtime.block_on(work(engine, image));
            Ok(())
        })
    };
    libtest_mimic::run(&Arguments::from_args(), cases.into_iter().map(trial).collect()).exit_code()
}

/// Runs this program again with itself as the `ssh` that is found first.
fn again_with_ssh() -> ExitCode {
    let folder = tempfile::tempdir().expect("a folder");
    let own = std::env::current_exe().expect("this program");
    let ssh = folder.path().join("ssh");
    std::fs::write(&ssh, format!("#!/bin/sh\nexec '{}' \"$@\"\n", own.display())).expect("a script");
    std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).expect("an executable");
    let mut path = folder.path().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let status = Command::new(own)
        .args(std::env::args_os().skip(1))
        .env("PATH", path)
        .env(AS_SSH, "1")
        .status();
    match status
        .ok()
        .and_then(|status| status.code())
        .and_then(|code| u8::try_from(code).ok())
    {
        Some(code) => ExitCode::from(code),
        None => ExitCode::FAILURE,
    }
}
