//! Ports on this host's loopback interface, into a container without a network.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agents_core::{ExecRequest, NetworkConfig, Process, ProvisionRequest};
use agents_testkit::{Case, Failure, runtime::RuntimeFixture};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The cases.
pub(crate) fn cases() -> Vec<Case<RuntimeFixture>> {
    vec![
        Case::new(
            "a_port_leads_to_a_server_inside",
            |fx: Arc<RuntimeFixture>| async move {
                let (port, request) = with_port(&fx);
                let container = fx.provision(request).await?;
                let published = |row: &agents_core::Comparison| row.field == "network.ingress_ports" && row.holds;
                assert!(container.comparison.iter().any(published));
                let container = container.handle;
                let serve = Process::new(["sh", "-c", &format!("nc -ll -p {port} -e cat")]);
                let server = fx.runtime.exec(ExecRequest::new(container.clone(), serve)).await?;
                let begun = Instant::now();
                let mut echoed = String::new();
                while echoed != "hello" {
                    assert!(
                        begun.elapsed() < Duration::from_secs(20),
                        "nothing comes back: {echoed:?}"
                    );
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
            match fx.provision(request).await {
                Err(Failure::Failed(error)) => {
                    assert!(
                        error.contains(&port.to_string()) && error.contains("[conflict]"),
                        "{error}"
                    );
                }
                Err(skipped) => return Err(skipped),
                Ok(_) => return Err(Failure::Failed("a port that is taken was taken again".to_owned())),
            }
            drop(taken);
            Ok(())
        }),
    ]
}

fn with_port(fx: &RuntimeFixture) -> (u16, ProvisionRequest) {
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
    tokio::time::timeout(Duration::from_secs(5), talk).await?
}
