//! A unix socket between the runtime and the engine that can be made to misbehave, call by call.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// What happens to a call instead of being passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The engine is not asked, and this is answered.
    Answer(u16, &'static str),
    /// The engine is not asked, and nothing is answered.
    Hang,
    /// The engine is not asked, and the connection is closed.
    Close,
    /// The engine does it, and nobody hears of it: the connection stays open.
    DoneAndHang,
    /// The engine does it, and nobody hears of it: the connection is closed.
    DoneAndClosed,
    /// The connection is cut after so many bytes of the answer.
    CutAfter(usize),
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    path: &'static str,
    fault: Fault,
    times: usize,
}

#[derive(Debug)]
struct Shared {
    engine: PathBuf,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<String>>,
    /// Changes when all connections are to be cut.
    cut: watch::Sender<u64>,
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Proxy {
    path: PathBuf,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Proxy {
    pub(crate) fn start(engine: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("s");
        let shared = Arc::new(Shared {
            engine: engine.to_owned(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            cut: watch::channel(0).0,
        });
        let listening = listen(&path, &shared);
        Self {
            path,
            shared,
            listening,
            _folder: folder,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// The next so many calls of this method whose path ends like this meet the fault.
    pub(crate) fn inject(&self, method: &'static str, path: &'static str, fault: Fault, times: usize) {
        let mut rules = self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.push(Rule {
            method,
            path,
            fault,
            times,
        });
    }

    /// The calls so far, oldest first, without their queries.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every fault has been met.
    pub(crate) fn is_spent(&self) -> bool {
        let rules = self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.iter().all(|rule| rule.times == 0)
    }

    /// Cuts every connection, and listens no more.
    pub(crate) fn stop(&self) {
        self.listening.abort();
        let _ = std::fs::remove_file(&self.path);
        self.cut();
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Listens again.
    pub(crate) fn restart(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.listening = listen(&self.path, &self.shared);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

fn listen(path: &Path, shared: &Arc<Shared>) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).expect("a socket");
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let mut cut = shared.cut.subscribe();
                tokio::select! {
                    _ = cut.changed() => {}
                    () = serve(client, &shared) => {}
                }
            });
        }
    })
}

async fn serve(mut client: UnixStream, shared: &Shared) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if client.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let line = String::from_utf8_lossy(&head)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let fault = take(shared, &line);
    match fault {
        Some(Fault::Answer(status, body)) => {
            let answer = format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = client.write_all(answer.as_bytes()).await;
            // What was sent beside is taken, so that the answer is not lost by a reset.
            let _ = tokio::time::timeout(Duration::from_millis(200), drain(&mut client)).await;
            return;
        }
        Some(Fault::Close) => return,
        Some(Fault::Hang) => {
            drain(&mut client).await;
            return;
        }
        _ => {}
    }
    let Ok(mut engine) = UnixStream::connect(&shared.engine).await else {
        return;
    };
    if engine.write_all(&head).await.is_err() {
        return;
    }
    match fault {
        None => {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
        }
        Some(fault) => {
            let (mut from_client, mut to_client) = client.split();
            let (mut from_engine, mut to_engine) = engine.split();
            let inward = async {
                let _ = tokio::io::copy(&mut from_client, &mut to_engine).await;
                std::future::pending::<()>().await;
            };
            let outward = async {
                let passed = match fault {
                    Fault::CutAfter(bytes) => bytes,
                    _ => 0,
                };
                let mut passing = (&mut from_engine).take(passed as u64);
                let _ = tokio::io::copy(&mut passing, &mut to_client).await;
                // The engine's answer says that it has done it.
                let mut byte = [0; 1];
                let _ = from_engine.read(&mut byte).await;
                if fault == Fault::DoneAndHang {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = inward => {}
                () = outward => {}
            }
        }
    }
}

async fn drain(client: &mut UnixStream) {
    let mut buffer = vec![0; 4096];
    while client.read(&mut buffer).await.unwrap_or(0) > 0 {}
}

fn take(shared: &Shared, line: &str) -> Option<Fault> {
    let mut words = line.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let path = target.split('?').next()?;
    let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.push(format!("{method} {path}"));
    drop(seen);
    let mut rules = shared.rules.lock().unwrap_or_else(PoisonError::into_inner);
    let rule = rules
        .iter_mut()
        .find(|rule| rule.times > 0 && rule.method == method && matches(path, rule.path))?;
    rule.times -= 1;
    Some(rule.fault)
}

/// Whether a path ends with a pattern, in which `*` is any one part.
fn matches(path: &str, pattern: &str) -> bool {
    let path: Vec<_> = path.split('/').collect();
    let pattern: Vec<_> = pattern.split('/').collect();
    path.len() >= pattern.len()
        && path[path.len() - pattern.len()..]
            .iter()
            .zip(&pattern)
            .all(|(part, wanted)| *wanted == "*" || part == wanted)
}
