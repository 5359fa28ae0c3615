//! Ports of a container on this host's loopback interface: a listener here, and for each connection a process of the guest
//! program that carries it to the container's own loopback interface. So the container needs no network.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use agents_core::{Error, ErrorKind, Result};
use agents_guest::connect_command;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};

use crate::client::Client;

/// How many connections of one port are carried at once: each is a process in the container.
const AT_ONCE: usize = 64;

/// The listeners of a container that is to be. Dropping them frees the ports.
#[derive(Debug)]
pub(crate) struct Bound(Vec<(u16, TcpListener)>);

/// The ports of a container, as long as this lives.
#[derive(Debug)]
pub(crate) struct Ports(Vec<JoinHandle<()>>);

impl Bound {
    /// Takes the ports, before anything is created.
    pub(crate) async fn take(ports: &[u16]) -> Result<Self> {
        let mut bound = Vec::new();
        for port in ports {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            let listener = TcpListener::bind(address).await.map_err(|error| {
                let kind = match error.kind() {
                    std::io::ErrorKind::AddrInUse => ErrorKind::Conflict,
                    std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                    _ => ErrorKind::Unexpected,
                };
                Error::new(
                    kind,
                    format!("network.ingress_ports: {port} cannot be taken on 127.0.0.1; free it or choose another"),
                )
                .with_source(error)
            })?;
            bound.push((*port, listener));
        }
        Ok(Self(bound))
    }

    /// Carries what comes to the container.
    pub(crate) fn carry(self, client: &Arc<Client>, id: &str) -> Ports {
        let carry = |(port, listener)| tokio::spawn(listen(listener, port, Arc::clone(client), id.to_owned()));
        Ports(self.0.into_iter().map(carry).collect())
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        for listening in &self.0 {
            listening.abort();
        }
    }
}

async fn listen(listener: TcpListener, port: u16, client: Arc<Client>, id: String) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    // Aborted with this task, when the container goes away.
    let mut carried = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(port, %error, "a connection cannot be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (client, id) = (Arc::clone(&client), id.clone());
        carried.spawn(async move {
            // The other side sees the connection close, which is all that it can be told.
            if let Err(error) = one(stream, port, &client, &id).await {
                tracing::debug!(port, container = %id, %error, "a connection was not carried");
            }
            drop(permit);
        });
        while carried.try_join_next().is_some() {}
    }
}

async fn one(mut stream: TcpStream, port: u16, client: &Client, id: &str) -> Result<()> {
    let attached = client.exec(id, &connect_command(port)).await?;
    let connecting = tokio::time::timeout(client.deadline(), attached.connection.connect());
    let mut inside = connecting
        .await
        .map_err(|_| Error::new(ErrorKind::Timeout, "the container's guest program does not answer"))??;
    tokio::io::copy_bidirectional(&mut stream, &mut inside)
        .await
        .map_err(|error| Error::io("the connection was cut", error))?;
    Ok(())
}
