//! Signs URLs by Google's V4 process with RSA, after
//! <https://cloud.google.com/storage/docs/authentication/canonical-requests>.
//!
//! The library's own signer escapes more of the path than that process does, and signs for Google's host alone; this one
//! gives what Google's own clients give, which their published vectors show.

use std::{fmt, time::Duration};

use agents_core::{Error, Result};
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, header::AUTHORIZATION};
use jiff::{Timestamp, fmt::strtime, tz::TimeZone};
use object_store::{
    client::{HttpClient, HttpRequestBody},
    gcp::{GcpCredentialProvider, GcpSigningCredentialProvider},
    path::Path,
    signer::{SignedUrlOptions, Signer, Url},
};
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};

use crate::{
    cloud::ask::{ask, fault},
    digest::Hasher,
};

/// Where IAM signs with keys that nobody sees.
const IAM: &str = "https://iamcredentials.googleapis.com";

/// The private key of a service account.
pub(super) struct Key {
    email: String,
    pair: RsaKeyPair,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.email)
    }
}

impl Key {
    /// Reads a key in PEM; `None` when it is none.
    pub(super) fn from_pem(email: &str, pem: &str) -> Option<Self> {
        let (_, rest) = pem.split_once("-----BEGIN PRIVATE KEY-----")?;
        let (inner, _) = rest.split_once("-----END PRIVATE KEY-----")?;
        let inner: String = inner.split_whitespace().collect();
        Some(Self {
            email: email.to_owned(),
            pair: RsaKeyPair::from_pkcs8(&STANDARD.decode(inner).ok()?).ok()?,
        })
    }

    fn sign(&self, text: &str) -> object_store::Result<Vec<u8>> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| fault("the key cannot sign"))?;
        Ok(signature)
    }
}

/// Who signs.
#[derive(Debug)]
pub(super) enum Signing {
    /// A key that we have.
    Key(Box<Key>),
    /// IAM, with the key of the service account that this names.
    Iam {
        account: GcpSigningCredentialProvider,
        credentials: GcpCredentialProvider,
        client: HttpClient,
    },
}

/// Signs URLs of one bucket.
#[derive(Debug)]
pub(super) struct UrlSigner {
    pub(super) endpoint: String,
    pub(super) bucket: String,
    pub(super) signing: Signing,
}

#[async_trait]
impl Signer for UrlSigner {
    async fn signed_url(&self, method: Method, path: &Path, expires_in: Duration) -> object_store::Result<Url> {
        let options = SignedUrlOptions::default();
        self.signed_url_opts(method, path, expires_in, &options).await
    }

    async fn signed_url_opts(
        &self,
        method: Method,
        path: &Path,
        expires_in: Duration,
        options: &SignedUrlOptions,
    ) -> object_store::Result<Url> {
        let headers: Vec<_> = options
            .signed_headers
            .iter()
            .map(|(name, value)| {
                let value = value.to_str().map_err(|_| fault("a header is not printable ASCII"))?;
                Ok((name.to_string(), value.to_owned()))
            })
            .collect::<object_store::Result<_>>()?;
        let email = match &self.signing {
            Signing::Key(key) => key.email.clone(),
            Signing::Iam { account, .. } => account.get_credential().await?.email.clone(),
        };
        let request = ToSign {
            method: method.as_str(),
            endpoint: &self.endpoint,
            path: format!("/{}/{}", self.bucket, escape(path.as_ref(), b"/")),
            headers: &headers,
            query: &options.extra_query,
            email: &email,
            now: Timestamp::now(),
            expires_in,
        };
        let (text, unsigned) = request.prepare()?;
        let signature = match &self.signing {
            Signing::Key(key) => key.sign(&text)?,
            Signing::Iam {
                credentials, client, ..
            } => sign_by_iam(IAM, client, credentials, &email, &text).await?,
        };
        let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        Url::parse(&format!("{unsigned}&X-Goog-Signature={signature}")).map_err(fault)
    }
}

struct ToSign<'a> {
    method: &'a str,
    /// Scheme and host.
    endpoint: &'a str,
    /// Bucket and object, escaped.
    path: String,
    headers: &'a [(String, String)],
    query: &'a [(String, String)],
    email: &'a str,
    now: Timestamp,
    expires_in: Duration,
}

impl ToSign<'_> {
    /// What is signed, and the URL without its signature.
    fn prepare(&self) -> object_store::Result<(String, String)> {
        let time = |format: &str| strtime::format(format, &self.now.to_zoned(TimeZone::UTC)).map_err(fault);
        let (date, day) = (time("%Y%m%dT%H%M%SZ")?, time("%Y%m%d")?);
        let scope = format!("{day}/auto/storage/goog4_request");
        let (_, host) = self
            .endpoint
            .split_once("://")
            .ok_or_else(|| fault("the endpoint has no scheme"))?;
        let mut headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_lowercase(),
                    value.split_whitespace().collect::<Vec<_>>().join(" "),
                )
            })
            .chain([("host".to_owned(), host.to_owned())])
            .collect();
        headers.sort();
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(";");
        let expires = self.expires_in.as_secs().to_string();
        let credential = format!("{}/{scope}", self.email);
        let ours = [
            ("X-Goog-Algorithm", "GOOG4-RSA-SHA256"),
            ("X-Goog-Credential", &credential),
            ("X-Goog-Date", &date),
            ("X-Goog-Expires", &expires),
            ("X-Goog-SignedHeaders", &names),
        ];
        let theirs = self.query.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut query: Vec<_> = ours
            .into_iter()
            .chain(theirs)
            .map(|(name, value)| (escape(name, b""), escape(value, b"")))
            .collect();
        query.sort();
        let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = query.join("&");
        let payload = headers.iter().find(|(name, _)| name == "x-goog-content-sha256");
        let payload = payload.map_or("UNSIGNED-PAYLOAD", |(_, value)| value);
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let canonical = format!("{}\n{}\n{query}\n{lines}\n{names}\n{payload}", self.method, self.path);
        let mut hasher = Hasher::new();
        hasher.update(canonical.as_bytes());
        let text = format!("GOOG4-RSA-SHA256\n{date}\n{scope}\n{}", hasher.finish());
        Ok((text, format!("{}{}?{query}", self.endpoint, self.path)))
    }
}

/// Asks IAM to sign: `iam.serviceAccounts.signBlob`.
async fn sign_by_iam(
    iam: &str,
    client: &HttpClient,
    credentials: &GcpCredentialProvider,
    email: &str,
    text: &str,
) -> object_store::Result<Vec<u8>> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Signed {
        signed_blob: String,
    }
    let credential = credentials.get_credential().await?;
    let body = serde_json::json!({ "payload": STANDARD.encode(text) }).to_string();
    let request = Request::post(format!(
        "{iam}/v1/projects/-/serviceAccounts/{}:signBlob",
        escape(email, b"@")
    ))
    .header(AUTHORIZATION, format!("Bearer {}", credential.bearer))
    .header("content-type", "application/json")
    .body(HttpRequestBody::from(Bytes::from(body)))
    .map_err(fault)?;
    let answer = ask(client, &request).await?.success()?;
    let signed: Signed = serde_json::from_slice(&answer).map_err(fault)?;
    STANDARD.decode(signed.signed_blob).map_err(fault)
}

/// Escapes all but the unreserved characters of RFC 3986, and those that are kept.
fn escape(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The parts of a service account's key that must be good.
#[derive(serde::Deserialize)]
struct ServiceAccount {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    client_email: String,
    #[serde(default)]
    private_key: String,
}

/// Reads the key of a service account. The library takes nonsense for a key and fails with the first request, so it is
/// looked at here.
pub(super) fn service_account(json: &str) -> Result<Key> {
    let bad = |why: &str| Error::invalid(format!("the key of the service account {why}"));
    // serde quotes what it cannot read, so its error is not passed on.
    let account: ServiceAccount = serde_json::from_str(json).map_err(|_| bad("must be a key file in JSON"))?;
    if account.r#type != "service_account" {
        return Err(bad(
            "must have \"type\": \"service_account\"; files of other kinds belong to GOOGLE_APPLICATION_CREDENTIALS",
        ));
    }
    if !account.client_email.contains('@') {
        return Err(bad("has no client_email"));
    }
    Key::from_pem(&account.client_email, &account.private_key)
        .ok_or_else(|| bad("has no private_key that is an RSA key in PEM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        service_account: serde_json::Value,
        vectors: Vec<Vector>,
    }

    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Vector {
        description: String,
        bucket: String,
        #[serde(default)]
        object: String,
        method: String,
        expiration: u64,
        timestamp: Timestamp,
        #[serde(default)]
        headers: std::collections::BTreeMap<String, String>,
        #[serde(default)]
        query_parameters: std::collections::BTreeMap<String, String>,
        expected_url: String,
    }

    #[test]
    fn urls_are_those_of_googles_vectors() {
        let vectors: Vectors = serde_json::from_str(include_str!("../../tests/data/gcs_v4.json")).unwrap();
        let key = service_account(&vectors.service_account.to_string()).unwrap();
        assert_eq!(vectors.vectors.len(), 17);
        for vector in vectors.vectors {
            let pairs = |map: std::collections::BTreeMap<String, String>| map.into_iter().collect::<Vec<_>>();
            let (headers, query) = (pairs(vector.headers), pairs(vector.query_parameters));
            let object = match vector.object.as_str() {
                "" => String::new(),
                object => format!("/{}", escape(object, b"/")),
            };
            let request = ToSign {
                method: &vector.method,
                endpoint: "https://storage.googleapis.com",
                path: format!("/{}{object}", vector.bucket),
                headers: &headers,
                query: &query,
                email: &key.email,
                now: vector.timestamp,
                expires_in: Duration::from_secs(vector.expiration),
            };
            let (text, unsigned) = request.prepare().unwrap();
            let signature: String = key
                .sign(&text)
                .unwrap()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let url = format!("{unsigned}&X-Goog-Signature={signature}");
            assert_eq!(url, vector.expected_url, "{}", vector.description);
        }
    }

    #[test]
    fn nonsense_keys_are_refused_at_once_and_not_quoted() {
        let pem = "-----BEGIN PRIVATE KEY-----\\nhunter2\\n-----END PRIVATE KEY-----";
        for json in [
            "hunter2".to_owned(),
            "{}".to_owned(),
            r#"{"type": "authorized_user", "refresh_token": "hunter2"}"#.to_owned(),
            r#"{"type": "service_account", "private_key": "hunter2"}"#.to_owned(),
            r#"{"type": "service_account", "client_email": "a@b", "private_key": "hunter2"}"#.to_owned(),
            format!(r#"{{"type": "service_account", "client_email": "a@b", "private_key": "{pem}"}}"#),
        ] {
            let error = service_account(&json).unwrap_err();
            assert_eq!(error.kind(), agents_core::ErrorKind::ConfigInvalid);
            assert!(error.message().contains("service account"));
            assert!(!error.report().contains("hunter2"), "{}", error.report());
        }
    }
}
