//! Engines that are reached over TCP, TLS and ssh, all of them the same one, which only here pretends to be elsewhere.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
};

use agents_core::{
    ContainerId, ContainerRuntime, ContainerRuntimeExt, ErrorKind, ExecRequest, Exit, ImagePullPolicy, Mount, Process,
    ProvisionRequest, SessionId, StartRequest,
};
use agents_runtime_docker::{DockerConfig, DockerRuntime};
use libtest_mimic::{Arguments, Trial};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use support::Target;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
};
use tokio_rustls::TlsAcceptor;

/// Set for this program when it is to be `ssh`.
const AS_SSH: &str = "AGENTS_TEST_AS_SSH";

/// The certificates of an engine and of its client, as docker names them.
fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls")
}

async fn forward(mut client: impl AsyncRead + AsyncWrite + Unpin, engine: PathBuf) {
    if let Ok(mut engine) = UnixStream::connect(engine).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
    }
}

/// A TCP port that leads to the engine.
async fn tcp(engine: PathBuf, tls: Option<TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
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
    let read = |name: &str| CertificateDer::from_pem_file(data().join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(read("ca.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from_pem_file(data().join("server-key.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![read("server-cert.pem")], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Everything that a remote engine is good for.
async fn works(config: DockerConfig, image: &str) {
    let runtime: Arc<dyn ContainerRuntime> = Arc::new(DockerRuntime::connect(config).await.unwrap());
    let availability = runtime.check_availability().await.unwrap();
    assert!(availability.available, "{availability:?}");
    let request = || {
        let session = SessionId::generate();
        let name = ContainerId::new(format!("remote-{session}")).unwrap();
        ProvisionRequest::new(session, name, image)
            .with_pull_policy(ImagePullPolicy::Never)
            .with_mounts([Mount::scratch("/output")])
    };
    // Folders of this host are not there.
    let mounted = request().with_mounts([Mount::bind("/etc", "/mounted")]);
    let refused = runtime.provision_verified(mounted).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.message().contains("another machine"), "{refused}");

    let process = Process::new(["sh", "-c", "cat; exit 3"]).with_stdin(true);
    let made = runtime.provision_verified(request().with_process(Some(process))).await;
    let container = made.unwrap_or_else(|error| panic!("{}", error.report())).handle;
    let mut session = runtime.start(StartRequest::new(container.clone())).await.unwrap();
    let mut stdin = session.take_stdin().unwrap();
    stdin.write(bytes::Bytes::from_static(b"hello\n")).await.unwrap();
    stdin.close().await.unwrap();
    let output = session.collect(10_000).await.unwrap();
    assert_eq!(
        (&output.exit, output.stdout.to_text().as_str()),
        (&Exit::Exited { code: 3 }, "hello\n")
    );
    assert!(runtime.stats(&container).await.unwrap().memory_mb > 0.0);
    runtime.destroy(&container.id).await.unwrap();

    let container = runtime.provision_verified(request()).await.unwrap().handle;
    let exec = ExecRequest::new(container.clone(), Process::new(["sh", "-c", "echo again"]));
    let output = runtime.exec(exec).await.unwrap().collect(100).await.unwrap();
    assert_eq!(output.stdout.to_text(), "again\n");
    runtime.destroy(&container.id).await.unwrap();
}

async fn unavailable(config: DockerConfig) -> String {
    let runtime = DockerRuntime::connect(config).await.unwrap();
    let availability = runtime.check_availability().await.unwrap();
    assert!(!availability.available, "{availability:?}");
    format!("{:?}", availability.problems)
}

async fn over_tcp(target: Target) {
    let port = tcp(target.socket(), None).await;
    works(DockerConfig::host(format!("tcp://127.0.0.1:{port}")), &target.image()).await;
}

async fn over_tls(target: Target) {
    let port = tcp(target.socket(), Some(acceptor())).await;
    let config = DockerConfig::host(format!("tcp://localhost:{port}")).with_cert_path(data());
    works(config, &target.image()).await;
}

async fn a_certificate_that_nobody_vouches_for_is_refused(target: Target) {
    let port = tcp(target.socket(), Some(acceptor())).await;
    let folder = tempfile::tempdir().unwrap();
    let config = |host: &str, files: &[(&str, &str)]| {
        let certificates = folder.path().join(SessionId::generate().as_str());
        fs::create_dir(&certificates).unwrap();
        for (from, to) in files {
            fs::copy(data().join(from), certificates.join(to)).unwrap();
        }
        DockerConfig::host(format!("tcp://{host}:{port}")).with_cert_path(certificates)
    };
    let own = [("cert.pem", "cert.pem"), ("key.pem", "key.pem")];
    // Another authority than the server's: a certificate that signs nobody.
    let problem = unavailable(config("localhost", &[("cert.pem", "ca.pem"), own[0], own[1]])).await;
    assert!(problem.contains("certificate"), "{problem}");
    // Not the name in the certificate.
    let problem = unavailable(config("127.0.0.2", &[("ca.pem", "ca.pem"), own[0], own[1]])).await;
    assert!(
        problem.contains("certificate") || problem.contains("refused"),
        "{problem}"
    );
    // No certificate of the client's.
    unavailable(config("localhost", &[("ca.pem", "ca.pem")])).await;
    // Another machine without TLS is never talked to.
    let error = DockerRuntime::connect(DockerConfig::host("tcp://192.0.2.1:2375"))
        .await
        .unwrap_err();
    assert!(error.message().contains("TLS"), "{error}");
}

async fn over_ssh(target: Target) {
    let host = format!("ssh://core@engine.example:2222{}", target.socket().display());
    works(DockerConfig::host(host), &target.image()).await;
}

/// What `ssh -N -L local:remote -l user -- host` does, without another host.
fn be_ssh() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let after = |option: &str| {
        let at = arguments.iter().position(|word| word == option).unwrap();
        arguments[at + 1].clone()
    };
    assert_eq!(arguments[arguments.len() - 2..], ["--", "engine.example"]);
    assert_eq!((after("-p").as_str(), after("-l").as_str()), ("2222", "core"));
    let forwarding = after("-L");
    let (local, remote) = forwarding.split_once(':').unwrap();
    let (local, remote) = (local.to_owned(), PathBuf::from(remote));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let listener = UnixListener::bind(local).unwrap();
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(forward(client, remote.clone()));
        }
    });
    ExitCode::SUCCESS
}

/// Runs this program again with itself as the `ssh` that is found first.
fn again_with_ssh() -> ExitCode {
    let folder = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    let ssh = folder.path().join("ssh");
    fs::write(&ssh, format!("#!/bin/sh\nexec '{}' \"$@\"\n", own.display())).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let mut path = folder.path().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let status = Command::new(own)
        .args(std::env::args_os().skip(1))
        .env("PATH", path)
        .env(AS_SSH, "1")
        .status();
    let code = status.ok().and_then(|status| status.code());
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(code) => ExitCode::from(code),
        None => ExitCode::FAILURE,
    }
}

fn main() -> ExitCode {
    let again = std::env::var_os(AS_SSH).is_some();
    if again && std::env::args().any(|word| word == "-L") {
        return be_ssh();
    }
    if !again {
        return again_with_ssh();
    }
    let arguments = Arguments::from_args();
    let trials = support::engines().into_iter().flat_map(|target| {
        [
            trial(target, "over_tcp", over_tcp),
            trial(target, "over_tls", over_tls),
            trial(
                target,
                "a_certificate_that_nobody_vouches_for_is_refused",
                a_certificate_that_nobody_vouches_for_is_refused,
            ),
            trial(target, "over_ssh", over_ssh),
        ]
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn trial<R: Future<Output = ()>>(
    target: Target,
    name: &'static str,
    case: impl Fn(Target) -> R + Send + 'static,
) -> Trial {
    Trial::test(format!("{}::{name}", target.name()), move || {
        // A panic is the failure, which the harness catches.
        tokio::runtime::Runtime::new()?.block_on(case(target));
        Ok(())
    })
}
