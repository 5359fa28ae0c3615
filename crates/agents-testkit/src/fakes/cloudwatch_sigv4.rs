//! Checks of AWS Signature Version 4, as a service does them.

use std::time::Duration;

use hyper::{Request, header::HeaderMap};
use jiff::{Timestamp, fmt::strtime, tz::TimeZone};
use ring::{digest, hmac};

/// How far the time of a request may be away.
const SKEW: Duration = Duration::from_secs(300);

/// Who may send, and where to.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    pub(super) region: String,
    pub(super) service: String,
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) session_token: Option<String>,
}

/// Why a request is refused: the exception and what it says.
pub(super) type Refusal = (&'static str, String);

impl Signer {
    /// # Errors
    ///
    /// As the service names them.
    pub(super) fn check<B: AsRef<[u8]>>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let headers = request.headers();
        let missing = || {
            (
                "MissingAuthenticationTokenException",
                "Missing Authentication Token".to_owned(),
            )
        };
        let authorization = text(headers, "authorization").ok_or_else(missing)?;
        let fields = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or_else(missing)?;
        let field = |name: &str| {
            let mut fields = fields.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let incomplete = |what: &str| ("IncompleteSignature", format!("{what} is missing"));
        let credential = field("Credential").ok_or_else(|| incomplete("Credential"))?;
        let signed = field("SignedHeaders").ok_or_else(|| incomplete("SignedHeaders"))?;
        let signature = field("Signature").ok_or_else(|| incomplete("Signature"))?;

        let time = text(headers, "x-amz-date").ok_or_else(|| incomplete("x-amz-date"))?;
        let sent = strtime::parse("%Y%m%dT%H%M%SZ", time)
            .and_then(|parsed| parsed.to_datetime())
            .and_then(|time| time.to_zoned(TimeZone::UTC))
            .map_err(|_| incomplete("the date of x-amz-date"))?
            .timestamp();
        let now = Timestamp::now();
        if sent < now - SKEW || sent > now + SKEW {
            return Err(("InvalidSignatureException", format!("Signature expired: {time}")));
        }
        let unknown = || {
            let told = "The security token included in the request is invalid.".to_owned();
            ("UnrecognizedClientException", told)
        };
        let day = &time[..8];
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        match credential.split_once('/') {
            Some((id, _)) if id != self.access_key_id => return Err(unknown()),
            Some((_, rest)) if rest == scope => {}
            _ => {
                return Err((
                    "InvalidSignatureException",
                    format!("Credential should be scoped to {scope}"),
                ));
            }
        }
        if text(headers, "x-amz-security-token") != self.session_token.as_deref() {
            return Err(match self.session_token {
                // A token that was good once is one that has expired.
                Some(_) => (
                    "ExpiredTokenException",
                    "The security token included in the request is expired".to_owned(),
                ),
                None => unknown(),
            });
        }
        let names: Vec<_> = signed.split(';').collect();
        for name in ["host", "x-amz-date"] {
            if !names.contains(&name) {
                return Err(incomplete(name));
            }
        }
        let payload = hex(digest::digest(&digest::SHA256, request.body().as_ref()).as_ref());
        if text(headers, "x-amz-content-sha256").is_some_and(|told| told != payload) {
            return Err(("InvalidSignatureException", "The payload has another hash".to_owned()));
        }
        let canonical = canonical_request(request, &names, &payload);
        let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
        let mut key = format!("AWS4{}", self.secret_access_key).into_bytes();
        for part in [day, &self.region, &self.service, "aws4_request"] {
            key = mac(&key, part.as_bytes());
        }
        if hex(&mac(&key, to_sign.as_bytes())) != signature {
            let told = "The request signature we calculated does not match the signature you provided.".to_owned();
            return Err(("InvalidSignatureException", told));
        }
        Ok(())
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn canonical_request<B>(request: &Request<B>, names: &[&str], payload: &str) -> String {
    // Every service but S3 encodes the path as it came once more.
    let path = encode(request.uri().path(), true);
    let mut pairs: Vec<_> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    pairs.sort_unstable();
    let query: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut headers = String::new();
    for name in names {
        let values: Vec<_> = request
            .headers()
            .get_all(*name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let value = values.join(",");
        let words: Vec<_> = value.split(' ').filter(|word| !word.is_empty()).collect();
        headers.push_str(&format!("{name}:{}\n", words.join(" ")));
    }
    format!(
        "{}\n{path}\n{}\n{headers}\n{}\n{payload}",
        request.method(),
        query.join("&"),
        names.join(";")
    )
}

fn encode(text: &str, slash: bool) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        b'/' if slash => "/".to_owned(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text)
        .as_ref()
        .to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the documentation ("Signature calculations … for IAM"), as far as its date allows: the canonical request.
    #[test]
    fn the_canonical_request_is_that_of_the_documentation() {
        let request = Request::builder()
            .method("GET")
            .uri("/?Action=ListUsers&Version=2010-05-08")
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .header("host", "iam.amazonaws.com")
            .header("x-amz-date", "20150830T123600Z")
            .body(Vec::<u8>::new())
            .unwrap();
        let empty = hex(digest::digest(&digest::SHA256, b"").as_ref());
        let canonical = canonical_request(&request, &["content-type", "host", "x-amz-date"], &empty);
        let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        assert_eq!(
            hashed,
            "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
        );
        let mut key = b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_vec();
        for part in ["20150830", "us-east-1", "iam", "aws4_request"] {
            key = mac(&key, part.as_bytes());
        }
        assert_eq!(
            hex(&key),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
    }
}
