//! The smallest HTTP client that can ask a local server whether it is ready, and fill it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Result, fail};

/// How long a server may take to answer whether it is ready.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// How long a server may take for anything else.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// The status code of `GET path`, or `None` when nobody answers in time.
pub(super) fn status(port: u16, path: &str) -> Option<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, PROBE_LIMIT).ok()?;
    stream.set_read_timeout(Some(PROBE_LIMIT)).ok()?;
    stream.set_write_timeout(Some(PROBE_LIMIT)).ok()?;
    status_of(stream, &address.to_string(), path)
}

/// The same over a unix socket.
pub(super) fn socket_status(socket: &Path, path: &str) -> Option<u16> {
    status_of(connect(socket, PROBE_LIMIT).ok()?, "localhost", path)
}

/// Sends a request over a unix socket and returns the body of the answer; an error unless it is a success.
pub(super) fn socket_request(socket: &Path, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Vec<u8>> {
    let doing = || format!("cannot {method} {path} on {}", socket.display());
    let mut stream = connect(socket, REQUEST_LIMIT)
        .ok()
        .ok_or_else(|| Error::new(format!("nobody listens on {}", socket.display())))?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    // A server that refuses the request does not read the body, but says why.
    let mut answer = Vec::new();
    let received = stream.read_to_end(&mut answer);
    let Some(status) = parse_status(&answer) else {
        sent.and(received.map(drop)).context(doing)?;
        return fail(format!("{}: the answer is not HTTP", doing()));
    };
    let body = answer
        .windows(4)
        .position(|part| part == b"\r\n\r\n")
        .map(|end| answer.split_off(end + 4))
        .unwrap_or_default();
    if (200..300).contains(&status) {
        return Ok(body);
    }
    fail(format!(
        "{}: {status} {}",
        doing(),
        String::from_utf8_lossy(&body).trim_end()
    ))
}

fn connect(socket: &Path, limit: Duration) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

fn status_of(mut stream: impl Read + Write, host: &str, path: &str) -> Option<u16> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).ok()?;
    parse_status(&answer)
}

fn parse_status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_http_answer_counts() {
        assert_eq!(parse_status(b"HTTP/1.0 401 Unauthorized\r\n"), Some(401));
        assert_eq!(parse_status(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(parse_status(b""), None);
    }
}
