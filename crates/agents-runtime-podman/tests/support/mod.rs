//! What the suites share: where the engine is, and what only an engine's output can do.

mod fixture;
mod variables;

use std::{process::ExitCode, sync::Arc};

pub(crate) use variables::variable;

use agents_core::{CopyFromRequest, ExecRequest, Exit, NetworkConfig, Process, StartRequest};
use agents_testkit::{Case, Failure, hostile::hostile_outputs, probe, runtime, runtime::RuntimeFixture, trials};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Runs the shared suites over an engine as it is, and over one that has gVisor, in that class.
pub(crate) fn run(name: &str, url: &str, gvisor: &str, image: &str) -> ExitCode {
    let mut all = Vec::new();
    for (class, url) in [(None, url), (Some("gvisor"), gvisor)] {
        let (url, image) = (url.to_owned(), image.to_owned());
        let make = move || {
            let (url, image) = (url.clone(), image.clone());
            async move { fixture::make(&url, &image, class).await }
        };
        let name = class.map_or_else(|| name.to_owned(), |class| format!("{name}::{class}"));
        all.push(trials(&name, runtime::cases(), make.clone()));
        all.push(trials(&format!("{name}::probe"), probe::grouped_cases(), make.clone()));
        all.push(trials(&format!("{name}::ports"), port_cases(), make.clone()));
        all.push(trials(&format!("{name}::hostile"), hostile_cases(), make));
    }
    agents_testkit::run(all)
}

/// Ports on loopback, into a container without a network.
fn port_cases() -> Vec<Case<RuntimeFixture>> {
    vec![
        Case::new(
            "a_port_leads_to_a_server_inside",
            |fx: Arc<RuntimeFixture>| async move {
                let (port, request) = with_port(&fx);
                let container = fx.provision(request).await?;
                assert!(
                    container
                        .comparison
                        .iter()
                        .any(|row| row.field == "network.ingress_ports" && row.holds)
                );
                let container = container.handle;
                let serve = format!("nc -ll -p {port} -e cat");
                let process = Process::new(["sh", "-c", &serve]);
                let server = fx.runtime.exec(ExecRequest::new(container.clone(), process)).await?;
                let begun = std::time::Instant::now();
                let mut echoed = String::new();
                while echoed != "hello" {
                    assert!(begun.elapsed().as_secs() < 20, "nothing comes back: {echoed:?}");
                    echoed = say(port, "hello").await.unwrap_or_default();
                }
                let interfaces = fx.sh(&container, "cat /proc/net/dev").await?.stdout.to_text();
                assert!(!interfaces.contains("eth"), "{interfaces}");
                drop(server);
                fx.runtime.destroy(&container.id).await?;
                assert!(say(port, "hello").await.is_err(), "the port outlives its container");
                Ok(())
            },
        ),
        Case::new("a_port_in_use_is_a_conflict", |fx: Arc<RuntimeFixture>| async move {
            let (port, request) = with_port(&fx);
            let taken = tokio::net::TcpListener::bind(("127.0.0.1", port)).await;
            let Err(Failure::Failed(error)) = fx.provision(request).await else {
                return Err(Failure::Skipped("the runtime publishes no ports".to_owned()));
            };
            assert!(
                error.contains(&port.to_string()) && error.contains("[conflict]"),
                "{error}"
            );
            drop(taken);
            Ok(())
        }),
    ]
}

fn with_port(fx: &RuntimeFixture) -> (u16, agents_core::ProvisionRequest) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a free port").port();
    let network = NetworkConfig::disabled().with_ingress_ports(vec![port]);
    (port, fx.request().with_network(network))
}

async fn say(port: u16, words: &str) -> std::io::Result<String> {
    let talk = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(words.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), talk).await?
}

/// How much of an archive is looked at: some agents leave more than anybody wants.
const LOOKED_AT: usize = 64 << 20;

/// Whatever an agent leaves behind, its good files come out as they are, and the container goes away. What is done with the
/// others is decided by who unpacks the archive.
fn hostile_cases() -> Vec<Case<RuntimeFixture>> {
    let case = |output: agents_testkit::hostile::HostileOutput| {
        let name = output.name.replace([' ', '-'], "_");
        Case::new(name, move |fx: Arc<RuntimeFixture>| {
            let output = output.clone();
            async move {
                let process = Process::new(["sh", "-c", &output.script]);
                let container = fx.provision(fx.request().with_process(Some(process))).await?.handle;
                let session = fx.runtime.start(StartRequest::new(container.clone())).await?;
                let ended = session.collect(10_000).await?;
                assert_eq!(ended.exit, Exit::Exited { code: 0 }, "{}", ended.stderr.to_text());
                let request = CopyFromRequest::new(container.clone(), "/output").with_quiesce(true);
                let mut stream = fx.runtime.copy_from(request).await?;
                let mut archive = Vec::new();
                while let Some(chunk) = stream.next().await {
                    archive.extend_from_slice(&chunk?);
                    if archive.len() > LOOKED_AT {
                        break;
                    }
                }
                let whole = archive.len() <= LOOKED_AT;
                drop(stream);
                if whole {
                    stored(&archive, &output.stored)?;
                }
                fx.runtime.destroy(&container.id).await?;
                Ok(())
            }
        })
    };
    hostile_outputs().into_iter().map(case).collect()
}

/// Whether the files are in the archive, with their contents.
fn stored(archive: &[u8], files: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Failure> {
    let broken = |error: std::io::Error| Failure::Failed(format!("the archive is broken: {error}"));
    let mut found = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path_bytes().into_owned();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(&mut entry, 1 << 20), &mut content).map_err(broken)?;
        found.insert(name, content);
    }
    for (name, content) in files {
        let full = [b"output/".as_slice(), name].concat();
        if found.get(&full) != Some(content) {
            let shown = String::from_utf8_lossy(name);
            return Err(Failure::Failed(format!("{shown:?} did not come out as it is")));
        }
    }
    Ok(())
}
