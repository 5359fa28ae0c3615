//! A registry on loopback that misbehaves on request.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use super::{TestImage, digest};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Auth {
    #[default]
    None,
    /// `user:password` in base64.
    Basic(&'static str),
    /// The token service asks for this, or for nothing.
    Token(Option<&'static str>),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) manifests: HashMap<String, (String, Vec<u8>)>,
    pub(crate) auth: Auth,
    /// How many bytes of a blob are sent before the connection is cut, one number for each request.
    pub(crate) cuts: HashMap<String, Vec<usize>>,
    pub(crate) no_ranges: bool,
    /// Answered to every request.
    pub(crate) status: Option<(u16, &'static str)>,
    /// No digest header, so that the client must check by itself.
    pub(crate) no_digest_header: bool,
    pub(crate) requests: Vec<String>,
}

pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Fake {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), shared) = (stream, Arc::clone(&shared)) else {
                    return;
                };
                std::thread::spawn(move || {
                    let _ = serve(stream, address, &shared);
                });
            }
        });
        Self { address, state }
    }

    pub(crate) fn put(&self, tag: &str, image: &TestImage) {
        let mut state = self.state.lock().unwrap();
        state.blobs.insert(digest(&image.config), image.config.clone());
        for (_, stored) in &image.layers {
            state.blobs.insert(digest(stored), stored.clone());
        }
        let manifest = (
            "application/vnd.oci.image.manifest.v1+json".to_owned(),
            image.manifest.clone(),
        );
        state.manifests.insert(digest(&image.manifest), manifest.clone());
        state.manifests.insert(tag.to_owned(), manifest);
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn serve(stream: TcpStream, address: SocketAddr, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut state = state.lock().unwrap();
    state.requests.push(path.clone());
    let authorization = headers.get("authorization").cloned().unwrap_or_default();

    if let Some((status, body)) = state.status {
        return reply(stream, status, &[], body.as_bytes(), usize::MAX);
    }
    if path.starts_with("/token") {
        return match state.auth {
            Auth::Token(Some(wanted)) if authorization != format!("Basic {wanted}") => {
                reply(stream, 401, &[], b"{}", usize::MAX)
            }
            _ => reply(stream, 200, &[], br#"{"token":"sesame"}"#, usize::MAX),
        };
    }
    let challenge = match &state.auth {
        Auth::Basic(wanted) if authorization != format!("Basic {wanted}") => Some("Basic realm=\"x\"".to_owned()),
        Auth::Token(_) if authorization != "Bearer sesame" => {
            Some(format!("Bearer realm=\"http://{address}/token\",service=\"fake\""))
        }
        _ => None,
    };
    if let Some(challenge) = challenge {
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        return reply(stream, 401, &[("WWW-Authenticate", challenge)], body, usize::MAX);
    }
    if path == "/v2/" {
        return reply(stream, 200, &[], b"{}", usize::MAX);
    }
    let (kind, name) = {
        let mut parts = path.rsplit('/');
        let name = parts.next().unwrap_or_default().to_owned();
        (parts.next().unwrap_or_default().to_owned(), name)
    };
    if kind == "manifests"
        && let Some((media_type, bytes)) = state.manifests.get(&name)
    {
        let mut headers = vec![("Content-Type", media_type.clone())];
        if !state.no_digest_header {
            headers.push(("Docker-Content-Digest", digest(bytes)));
        }
        return reply(stream, 200, &headers, bytes, usize::MAX);
    }
    if kind == "blobs"
        && let Some(bytes) = state.blobs.get(&name).cloned()
    {
        let cut = match state.cuts.get_mut(&name) {
            Some(cuts) if !cuts.is_empty() => cuts.remove(0),
            _ => usize::MAX,
        };
        let range = headers.get("range").filter(|_| !state.no_ranges);
        drop(state);
        return match range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()) {
            Some(from) => {
                let content_range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                reply(stream, 206, &[("Content-Range", content_range)], &bytes[from..], cut)
            }
            None => reply(stream, 200, &[], &bytes, cut),
        };
    }
    let code = if kind == "manifests" {
        "MANIFEST_UNKNOWN"
    } else {
        "BLOB_UNKNOWN"
    };
    reply(
        stream,
        404,
        &[],
        format!(r#"{{"errors":[{{"code":"{code}","message":"unknown"}}]}}"#).as_bytes(),
        usize::MAX,
    )
}

fn reply(
    mut stream: TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    cut: usize,
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body[..body.len().min(cut)])?;
    stream.flush()
}
