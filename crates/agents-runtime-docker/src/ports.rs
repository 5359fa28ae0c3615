//! Published ports: listeners on this host's loopback interface, whose connections an exec carries into the container. The
//! container has no network all the while.

use std::{net::Ipv4Addr, sync::Arc};

use agents_core::{Error, ErrorKind, Result};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use crate::{engine::Engine, streams};

/// How many connections are carried at once for a container.
const AT_ONCE: usize = 64;

/// Listeners that wait for their container.
pub(crate) struct Reserved(Vec<(u16, TcpListener)>);

/// Listeners whose connections are carried; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Published(#[expect(dead_code, reason = "it is held so that the tasks live")] JoinSet<()>);

/// Takes the ports before anything is created.
pub(crate) async fn reserve(ports: &[u16]) -> Result<Reserved> {
    let mut reserved = Vec::new();
    for port in ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).await.map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::AddrInUse => ErrorKind::Conflict,
                std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unexpected,
            };
            Error::new(
                kind,
                format!("network.ingress_ports: cannot listen on 127.0.0.1:{port}; choose another port"),
            )
            .with_source(error)
        })?;
        reserved.push((*port, listener));
    }
    Ok(Reserved(reserved))
}

impl Reserved {
    /// The ports that are listened on.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.0.iter().map(|(port, _)| *port).collect()
    }

    /// Carries connections into a container from now on.
    pub(crate) fn publish(self, engine: &Arc<Engine>, id: &str) -> Published {
        let mut listeners = JoinSet::new();
        let places = Arc::new(Semaphore::new(AT_ONCE));
        for (port, listener) in self.0 {
            listeners.spawn(listen(
                listener,
                port,
                Arc::clone(engine),
                id.to_owned(),
                Arc::clone(&places),
            ));
        }
        Published(listeners)
    }
}

async fn listen(listener: TcpListener, port: u16, engine: Arc<Engine>, id: String, places: Arc<Semaphore>) {
    let mut carried = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (engine, id) = (Arc::clone(&engine), id.clone());
                    carried.spawn(async move {
                        // Whoever connected sees its connection end; there is nobody else to tell.
                        if let Err(error) = carry(stream, port, &engine, &id).await {
                            tracing::debug!(port, %error, "a connection to a published port ended");
                        }
                        drop(place);
                    });
                }
                // Too many open files, say; trying again at once would only burn time.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry(mut stream: TcpStream, port: u16, engine: &Engine, id: &str) -> Result<()> {
    let broken = |error| Error::io("the connection broke", error);
    stream.set_nodelay(true).map_err(broken)?;
    let attached = engine.exec(id, agents_guest::connect_command(port)).await?;
    let (connection, _) = streams::connection(attached, None);
    let mut inside = tokio::time::timeout(engine.deadline(), connection.connect())
        .await
        .map_err(|_| crate::error::late("cannot reach the port", Some(engine.deadline())))??;
    tokio::io::copy_bidirectional(&mut stream, &mut inside)
        .await
        .map_err(broken)?;
    Ok(())
}
