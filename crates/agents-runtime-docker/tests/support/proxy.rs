//! An engine that fails on demand: a socket that passes requests on to the real one, but for those that a rule is about.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The engine answers with this status and body, and does nothing.
    Answer(u16, &'static str),
    /// The engine takes the request, does nothing and never answers.
    Hang,
    /// The engine does what it was asked for and never answers.
    HangAfter,
    /// The connection is closed before anything is done.
    Cut,
    /// The engine does what it was asked for, and the connection is closed without an answer.
    LoseAnswer,
    /// The connection is closed after so many bytes of the answer.
    CutAfter(usize),
    /// Somebody else makes this request, by its method and path, before the one that is about it is passed on.
    After(&'static str, String),
}

#[derive(Clone, Debug)]
struct Rule {
    method: &'static str,
    /// What the path ends with, without its query.
    path: &'static str,
    fault: Fault,
    once: bool,
}

/// The socket. It goes away when this is dropped, and every connection with it.
pub(crate) struct Proxy {
    folder: tempfile::TempDir,
    engine: PathBuf,
    rules: Arc<Mutex<Vec<Rule>>>,
    seen: Arc<Mutex<VecDeque<String>>>,
    open: watch::Sender<bool>,
    listening: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn new(engine: &Path) -> io::Result<Self> {
        let mut proxy = Self {
            folder: tempfile::tempdir()?,
            engine: engine.to_owned(),
            rules: Arc::default(),
            seen: Arc::default(),
            open: watch::channel(true).0,
            listening: None,
        };
        proxy.listen()?;
        Ok(proxy)
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// From now on requests like this go wrong.
    pub(crate) fn fail(&self, method: &'static str, path: &'static str, fault: Fault) {
        self.add(method, path, fault, false);
    }

    /// The next request like this goes wrong.
    pub(crate) fn fail_once(&self, method: &'static str, path: &'static str, fault: Fault) {
        self.add(method, path, fault, true);
    }

    fn add(&self, method: &'static str, path: &'static str, fault: Fault, once: bool) {
        let rule = Rule {
            method,
            path,
            fault,
            once,
        };
        self.rules.lock().unwrap().push(rule);
    }

    /// Everything goes well again.
    pub(crate) fn heal(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// The requests so far, oldest first.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().cloned().collect()
    }

    /// The socket is gone, and every connection with it.
    pub(crate) async fn go_away(&mut self) {
        self.open.send_replace(false);
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ = listening.await;
        }
        let _ = std::fs::remove_file(self.socket());
    }

    /// The socket is there again.
    pub(crate) fn come_back(&mut self) -> io::Result<()> {
        self.open = watch::channel(true).0;
        self.listen()
    }

    fn listen(&mut self) -> io::Result<()> {
        let listener = UnixListener::bind(self.socket())?;
        let (engine, rules, seen) = (self.engine.clone(), Arc::clone(&self.rules), Arc::clone(&self.seen));
        let open = self.open.subscribe();
        self.listening = Some(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (engine, rules, seen, mut open) =
                    (engine.clone(), Arc::clone(&rules), Arc::clone(&seen), open.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = carry(client, &engine, &rules, &seen) => {}
                        // The value changes, or the proxy is dropped.
                        _ = open.changed() => {}
                    }
                });
            }
        }));
        Ok(())
    }
}

async fn carry(
    mut client: UnixStream,
    engine: &Path,
    rules: &Mutex<Vec<Rule>>,
    seen: &Mutex<VecDeque<String>>,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    seen.lock().unwrap().push_back(format!("{method} {path}"));
    let fault = {
        let mut rules = rules.lock().unwrap();
        let at = rules
            .iter()
            .position(|rule| rule.method == method && path.ends_with(rule.path));
        at.map(|at| {
            if rules[at].once {
                rules.remove(at).fault
            } else {
                rules[at].fault.clone()
            }
        })
    };
    match &fault {
        Some(Fault::Answer(status, body)) => {
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            client.write_all(answer.as_bytes()).await?;
            // What was sent is taken, so that the answer is not lost to a reset.
            let _ = client.read_to_end(&mut Vec::new()).await;
            return Ok(());
        }
        Some(Fault::Hang) => {
            let _ = client.read_to_end(&mut Vec::new()).await;
            return std::future::pending().await;
        }
        Some(Fault::Cut) => return Ok(()),
        Some(Fault::After(method, path)) => {
            request(engine, method, path, b"").await?;
        }
        _ => {}
    }
    let mut server = UnixStream::connect(engine).await?;
    server.write_all(&head).await?;
    match fault {
        Some(Fault::LoseAnswer | Fault::HangAfter) => {
            let (mut from_client, _to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let mut answer = [0; 1];
            tokio::select! {
                _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                _ = from_server.read(&mut answer) => {}
            }
            if matches!(fault, Some(Fault::HangAfter)) {
                std::future::pending::<()>().await;
            }
        }
        Some(Fault::CutAfter(most)) => {
            let (mut from_client, mut to_client) = client.split();
            let (from_server, mut to_server) = server.split();
            let mut some = from_server.take(most as u64);
            tokio::select! {
                _ = async {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                    std::future::pending::<()>().await
                } => {}
                _ = tokio::io::copy(&mut some, &mut to_client) => {}
            }
        }
        _ => {
            copy_bidirectional(&mut client, &mut server).await?;
        }
    }
    Ok(())
}

/// One request to an engine, past the adapter: the status and the body.
pub(crate) async fn request(socket: &Path, method: &str, path: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    request_with(socket, method, path, "", body).await
}

/// One request with further headers, each with its end of line.
pub(crate) async fn request_with(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket).await?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap_or(answer.len());
    let status = String::from_utf8_lossy(&answer[..end]);
    let status = status
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    Ok((status, answer.get(end + 4..).unwrap_or_default().to_vec()))
}
