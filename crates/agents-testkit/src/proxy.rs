//! A TCP proxy that fails on purpose, between an adapter and a real server.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What the proxy does with connections, those that exist and new ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Everything passes.
    #[default]
    None,
    /// An outage: connections are reset, and new ones as well.
    Reset,
    /// Connections stay open, and nothing passes. Those that hung once hang for ever, as behind a lost route.
    Hang,
    /// Once the client has sent these bytes, whatever the server answers next is lost and the connection is reset: the server
    /// has done it, and the client does not know. Happens once; then everything passes.
    LoseAnswerTo(Vec<u8>),
    /// So many HTTP requests get this whole response, and the server sees none of them; then everything passes. Requests
    /// need a `content-length` or `transfer-encoding: chunked`, unless they have no body.
    Respond(Vec<u8>, usize),
}

/// A TCP proxy on loopback that fails on purpose. It ends when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    faults: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy before a server. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When loopback cannot be listened on.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (fault, _) = watch::channel(Fault::None);
        let faults = Arc::new(AtomicUsize::new(0));
        let shared = Shared {
            fault: fault.clone(),
            faults: Arc::clone(&faults),
            server,
        };
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(shared.clone().serve(client));
            }
        });
        Ok(Self {
            address,
            fault,
            faults,
            accepting,
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what happens from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How many connections were reset or hung, and how many requests were answered, on purpose so far.
    pub fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.fault.send_replace(Fault::Reset);
    }
}

#[derive(Clone)]
struct Shared {
    fault: watch::Sender<Fault>,
    faults: Arc<AtomicUsize>,
    server: SocketAddr,
}

impl Shared {
    async fn serve(self, client: TcpStream) {
        // A connection that breaks by itself is the business of its two ends.
        let _ = self.run(client).await;
    }

    async fn run(&self, mut client: TcpStream) -> io::Result<()> {
        let mut changes = self.fault.subscribe();
        let mut server: Option<TcpStream> = None;
        let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let (mut sent, mut lose) = (Vec::new(), false);
        loop {
            let fault = changes.borrow_and_update().clone();
            match &fault {
                Fault::Reset => return self.reset(client),
                Fault::Hang => {
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    let ended = changes.wait_for(|fault| *fault == Fault::Reset);
                    let _ = ended.await;
                    return Ok(());
                }
                Fault::Respond(response, _) => {
                    // A connection to the server may be in the middle of an answer.
                    if server.is_some() {
                        return Ok(());
                    }
                    return self.respond(client, response).await;
                }
                Fault::None | Fault::LoseAnswerTo(_) => {}
            }
            let upstream = match &mut server {
                Some(server) => server,
                None => server.insert(TcpStream::connect(self.server).await?),
            };
            tokio::select! {
                _ = changes.changed() => {}
                read = client.read(&mut up) => {
                    let read = read?;
                    if read == 0 {
                        return drain(upstream, &mut client).await;
                    }
                    if let Fault::LoseAnswerTo(needle) = &fault {
                        sent.extend_from_slice(&up[..read]);
                        lose = lose || contains(&sent, needle);
                        let keep = sent.len().saturating_sub(needle.len());
                        sent.drain(..keep);
                    }
                    upstream.write_all(&up[..read]).await?;
                }
                read = upstream.read(&mut down) => {
                    let read = read?;
                    if lose {
                        self.fault.send_replace(Fault::None);
                        return self.reset(client);
                    }
                    if read == 0 {
                        return Ok(());
                    }
                    client.write_all(&down[..read]).await?;
                }
            }
        }
    }

    fn reset(&self, client: TcpStream) -> io::Result<()> {
        self.faults.fetch_add(1, Ordering::Relaxed);
        client.set_zero_linger()
    }

    async fn respond(&self, mut client: TcpStream, response: &[u8]) -> io::Result<()> {
        read_request(&mut client).await?;
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.fault.send_modify(|fault| {
            if let Fault::Respond(_, times) = fault {
                *times = times.saturating_sub(1);
                if *times == 0 {
                    *fault = Fault::None;
                }
            }
        });
        client.write_all(response).await?;
        client.shutdown().await
    }
}

/// What the server still has to say after the client has said everything.
async fn drain(server: &mut TcpStream, client: &mut TcpStream) -> io::Result<()> {
    server.shutdown().await?;
    tokio::io::copy(server, client).await?;
    Ok(())
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len().max(1)).any(|window| window == needle)
}

/// Reads an HTTP/1.1 request with its body, and drops it.
async fn read_request(client: &mut TcpStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let body = &bytes[end + 4..];
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let whole = match header("content-length:") {
                Some(length) => length.parse().is_ok_and(|length: usize| body.len() >= length),
                None => header("transfer-encoding:").is_none() || body.ends_with(b"0\r\n\r\n"),
            };
            if whole {
                return Ok(());
            }
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// An HTTP response for [`Fault::Respond`].
pub fn http_response(status: u16, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 {status} Injected\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    format!("{head}\r\n{body}").into_bytes()
}

/// Runs an operation while a fault lasts, and ends the fault after so long.
pub async fn during<T>(
    proxy: &FaultProxy,
    fault: Fault,
    lasting: std::time::Duration,
    operation: impl Future<Output = T>,
) -> T {
    proxy.set(fault);
    let over = async {
        tokio::time::sleep(lasting).await;
        proxy.set(Fault::None);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = operation => result,
        () = over => unreachable!("it never ends"),
    }
}
