//! Workload identity federation: a token of another identity provider is exchanged for one of Google's, after
//! <https://google.aip.dev/auth/4117>.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use agents_core::{Error, Result};
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use jiff::Timestamp;
use object_store::{
    client::{HttpClient, HttpRequestBody},
    gcp::GcpCredential,
};
use serde::Deserialize;
use url::Url;

use crate::cloud::{
    ask::{Answer, ask, fault},
    config::is_local,
    credentials::{Source, refused},
};

const TOKEN_URL: &str = "https://sts.googleapis.com/v1/token";

/// Covers the objects and the signing of URLs.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// How long a token of an impersonated account holds when the file does not say.
const LIFETIME_SECONDS: u64 = 3600;

/// A file with `"type": "external_account"`.
#[derive(Deserialize)]
struct External {
    #[serde(default)]
    audience: String,
    #[serde(default)]
    subject_token_type: String,
    token_url: Option<String>,
    service_account_impersonation_url: Option<String>,
    service_account_impersonation: Option<Impersonation>,
    client_id: Option<String>,
    client_secret: Option<String>,
    workforce_pool_user_project: Option<String>,
    credential_source: Option<CredentialSource>,
}

#[derive(Deserialize)]
struct Impersonation {
    token_lifetime_seconds: Option<u64>,
}

#[derive(Deserialize)]
struct CredentialSource {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    format: Format,
    environment_id: Option<String>,
    executable: Option<serde_json::Value>,
    certificate: Option<serde_json::Value>,
}

/// How the other provider's token is written.
#[derive(Default, Deserialize)]
struct Format {
    #[serde(default)]
    r#type: String,
    subject_token_field_name: Option<String>,
}

/// Where the other provider's token comes from.
enum Subject {
    File(PathBuf),
    Url(String, HeaderMap),
}

/// Exchanges tokens.
pub(super) struct Federation {
    audience: String,
    subject_token_type: String,
    subject: Subject,
    /// The field of a JSON object that holds the token, which is otherwise the whole text.
    field: Option<String>,
    token_url: String,
    /// How the client of a workforce pool proves itself.
    basic: Option<HeaderValue>,
    user_project: Option<String>,
    impersonation: Option<(String, u64)>,
    client: HttpClient,
}

impl fmt::Debug for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Federation({})", self.audience)
    }
}

impl Federation {
    /// # Errors
    ///
    /// `ConfigInvalid` for a file that is none, and `Unsupported` for a source of tokens that is not built in.
    pub(super) fn new(json: &str, client: HttpClient) -> Result<Self> {
        // serde quotes what it cannot read, so its error is not passed on.
        let file: External = serde_json::from_str(json)
            .map_err(|_| Error::invalid("a file with \"type\": \"external_account\" has a field of the wrong kind"))?;
        let needed = |field: &str, value: String| match value.is_empty() {
            true => Err(Error::invalid(format!(
                "{field} is missing from a file with \"type\": \"external_account\""
            ))),
            false => Ok(value),
        };
        let source = file
            .credential_source
            .ok_or_else(|| Error::invalid("credential_source is missing"))?;
        if source.executable.is_some() {
            return Err(Error::unsupported(
                "credential_source.executable is not run; let it write its token to a file, and name that in \
                 credential_source.file",
            ));
        }
        if source.environment_id.is_some() || source.certificate.is_some() {
            return Err(Error::unsupported(
                "credential_source of AWS and of certificates is not built in; use one with file or url",
            ));
        }
        let field = match (source.format.r#type.as_str(), source.format.subject_token_field_name) {
            ("" | "text", _) => None,
            ("json", Some(field)) => Some(field),
            _ => {
                return Err(Error::invalid(
                    "credential_source.format must be of type text, or json with subject_token_field_name",
                ));
            }
        };
        let subject = match (source.file, source.url) {
            (Some(path), None) => Subject::File(path),
            (None, Some(url)) => {
                check_url("credential_source.url", &url)?;
                Subject::Url(url, headers(&source.headers)?)
            }
            _ => return Err(Error::invalid("credential_source must have either file or url")),
        };
        let token_url = file.token_url.unwrap_or_else(|| TOKEN_URL.to_owned());
        check_url("token_url", &token_url)?;
        let lifetime = file
            .service_account_impersonation
            .and_then(|impersonation| impersonation.token_lifetime_seconds)
            .unwrap_or(LIFETIME_SECONDS);
        if let Some(url) = &file.service_account_impersonation_url {
            check_url("service_account_impersonation_url", url)?;
        }
        let basic = match (file.client_id, file.client_secret) {
            (Some(id), Some(secret)) => Some(secret_header(format!(
                "Basic {}",
                STANDARD.encode(format!("{id}:{secret}"))
            ))?),
            _ => None,
        };
        Ok(Self {
            audience: needed("audience", file.audience)?,
            subject_token_type: needed("subject_token_type", file.subject_token_type)?,
            subject,
            field,
            token_url,
            basic,
            user_project: file.workforce_pool_user_project,
            impersonation: file.service_account_impersonation_url.map(|url| (url, lifetime)),
            client,
        })
    }

    /// The account that is impersonated, which can sign URLs.
    pub(super) fn account(&self) -> Option<String> {
        let (url, _) = self.impersonation.as_ref()?;
        let (_, account) = url.rsplit_once("/serviceAccounts/")?;
        let (email, _) = account.split_once(':')?;
        email.contains('@').then(|| email.to_owned())
    }

    async fn subject_token(&self) -> object_store::Result<String> {
        let text = match &self.subject {
            Subject::File(path) => std::fs::read_to_string(path)
                .map_err(|error| refused(format!("cannot read the subject token {}: {error}", path.display())))?,
            Subject::Url(url, headers) => {
                let mut request = Request::get(url).body(HttpRequestBody::empty()).map_err(fault)?;
                request.headers_mut().extend(headers.clone());
                let body = accepted(
                    "credential_source.url gives no subject token",
                    ask(&self.client, &request).await?,
                )?;
                String::from_utf8(body).map_err(|_| refused("the subject token is not text"))?
            }
        };
        let token = match &self.field {
            None => Some(text),
            Some(field) => serde_json::from_str::<serde_json::Value>(&text)
                .ok()
                .and_then(|json| Some(json.get(field)?.as_str()?.to_owned())),
        };
        let token = token.unwrap_or_default();
        match token.trim() {
            "" => Err(refused(
                "credential_source gives no subject token in the format that is told",
            )),
            token => Ok(token.to_owned()),
        }
    }

    /// The form of the exchange.
    fn form(&self, subject: &str) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", GRANT_TYPE)
            .append_pair("audience", &self.audience)
            .append_pair("scope", SCOPE)
            .append_pair("requested_token_type", ACCESS_TOKEN)
            .append_pair("subject_token_type", &self.subject_token_type)
            .append_pair("subject_token", subject);
        // With a client the project is the client's.
        if let (Some(project), None) = (&self.user_project, &self.basic) {
            form.append_pair("options", &serde_json::json!({ "userProject": project }).to_string());
        }
        form.finish()
    }

    async fn exchange(&self, subject: &str) -> object_store::Result<(String, Option<SystemTime>)> {
        let mut request = Request::post(&self.token_url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(HttpRequestBody::from(Bytes::from(self.form(subject))))
            .map_err(fault)?;
        if let Some(basic) = &self.basic {
            request.headers_mut().insert(AUTHORIZATION, basic.clone());
        }
        #[derive(Deserialize)]
        struct Exchanged {
            access_token: String,
            expires_in: Option<u64>,
        }
        let asked = SystemTime::now();
        let body = accepted(
            "the token service refuses the subject token; check audience, subject_token_type and the pool's conditions",
            ask(&self.client, &request).await?,
        )?;
        let exchanged: Exchanged =
            serde_json::from_slice(&body).map_err(|_| refused("the token service gave no token"))?;
        let expires = exchanged.expires_in.map(|seconds| asked + Duration::from_secs(seconds));
        Ok((exchanged.access_token, expires))
    }

    async fn impersonate(
        &self,
        url: &str,
        lifetime: u64,
        token: String,
    ) -> object_store::Result<(String, Option<SystemTime>)> {
        let body = serde_json::json!({ "scope": [SCOPE], "lifetime": format!("{lifetime}s") }).to_string();
        let bearer = secret_header(format!("Bearer {token}")).map_err(|error| refused(error.message()))?;
        let request = Request::post(url)
            .header(AUTHORIZATION, bearer)
            .header(CONTENT_TYPE, "application/json")
            .body(HttpRequestBody::from(Bytes::from(body)))
            .map_err(fault)?;
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Impersonated {
            access_token: String,
            expire_time: Timestamp,
        }
        let body = accepted(
            "the service account cannot be impersonated; grant roles/iam.workloadIdentityUser on it",
            ask(&self.client, &request).await?,
        )?;
        let impersonated: Impersonated = serde_json::from_slice(&body).map_err(|_| refused("IAM gave no token"))?;
        Ok((impersonated.access_token, Some(impersonated.expire_time.into())))
    }
}

#[async_trait]
impl Source for Federation {
    type Credential = GcpCredential;

    async fn fetch(&self) -> object_store::Result<(GcpCredential, Option<SystemTime>)> {
        let subject = self.subject_token().await?;
        let mut fetched = self.exchange(&subject).await?;
        if let Some((url, lifetime)) = &self.impersonation {
            fetched = self.impersonate(url, *lifetime, fetched.0).await?;
        }
        let (bearer, expires) = fetched;
        Ok((GcpCredential { bearer }, expires))
    }
}

/// The body of a success. Otherwise what was wrong, with the service's code for it; its message may quote tokens.
fn accepted(why: &str, answer: Answer) -> object_store::Result<Vec<u8>> {
    if matches!(answer.status, 200..300 | 429 | 500..) {
        return answer.success();
    }
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = [&json["error"]["status"], &json["error"]];
    let code = code.into_iter().find_map(|code| code.as_str()).unwrap_or("no code");
    let code: String = code.chars().filter(|c| !c.is_control()).take(60).collect();
    Err(refused(format!("{why} (status {}, {code})", answer.status)))
}

/// Tokens go to such addresses, so they must be encrypted or stay on this machine and its host.
fn check_url(field: &str, url: &str) -> Result<()> {
    let parsed = Url::parse(url).map_err(|_| Error::invalid(format!("{field} must be a URL")))?;
    match parsed.scheme() {
        "https" => Ok(()),
        "http" if is_local(&parsed) => Ok(()),
        _ => Err(Error::invalid(format!(
            "{field} must begin with https://, unless it is on this machine or a link-local address"
        ))),
    }
}

fn headers(pairs: &BTreeMap<String, String>) -> Result<HeaderMap> {
    let bad = |name: &str| Error::invalid(format!("credential_source.headers: {name:?} is no header"));
    pairs
        .iter()
        .map(|(name, value)| {
            let value = secret_header(value.clone()).map_err(|_| bad(name))?;
            Ok((HeaderName::try_from(name).map_err(|_| bad(name))?, value))
        })
        .collect()
}

fn secret_header(value: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(value).map_err(|_| Error::invalid("a token holds what no header can"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use object_store::client::HttpConnector;

    use super::*;
    use crate::cloud::http::Connector;

    fn parse(source: &str, more: &str) -> Result<Federation> {
        let connector = Connector::new(1, Duration::ZERO);
        let client = connector.connect(&object_store::ClientOptions::new()).unwrap();
        let json = format!(
            r#"{{"type": "external_account", "audience": "//iam.googleapis.com/p", "subject_token_type": "t",
                "credential_source": {source}{more}}}"#
        );
        Federation::new(&json, client)
    }

    #[test]
    fn files_are_checked_when_they_are_read() {
        let file = r#"{"file": "/run/token"}"#;
        assert!(parse(file, "").is_ok());
        assert!(
            parse(
                r#"{"url": "http://169.254.169.254/token", "headers": {"Metadata": "True"}}"#,
                ""
            )
            .is_ok()
        );
        let account = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com";
        let more = format!(r#", "service_account_impersonation_url": "{account}:generateAccessToken""#);
        let email = parse(file, &more).unwrap().account();
        assert_eq!(email.as_deref(), Some("a@p.iam.gserviceaccount.com"));
        for (source, more, told) in [
            (r#"{"executable": {"command": "/bin/x"}}"#, "", "credential_source.file"),
            (r#"{"environment_id": "aws1"}"#, "", "not built in"),
            (r#"{"certificate": {}}"#, "", "not built in"),
            ("{}", "", "either file or url"),
            (r#"{"file": "/a", "url": "https://b"}"#, "", "either file or url"),
            (r#"{"url": "http://example.com/token"}"#, "", "credential_source.url"),
            (r#"{"url": "https://a/b", "headers": {"a b": "c"}}"#, "", "headers"),
            (
                r#"{"file": "/a", "format": {"type": "json"}}"#,
                "",
                "subject_token_field_name",
            ),
            (file, r#", "token_url": "http://example.com""#, "token_url"),
            (
                file,
                r#", "service_account_impersonation_url": "ftp://x""#,
                "impersonation_url",
            ),
            (r#""hunter2""#, "", "wrong kind"),
        ] {
            let error = parse(source, more).unwrap_err();
            assert!(error.message().contains(told), "{source}{more}: {}", error.message());
            assert!(!error.report().contains("hunter2"));
        }
    }

    #[test]
    fn refusals_tell_the_code_and_no_token() {
        let answer = |status: StatusCode, body: &str| Answer {
            status: status.as_u16(),
            body: body.as_bytes().to_vec(),
        };
        let sts = r#"{"error": "invalid_grant", "error_description": "the token hunter2 is wrong"}"#;
        let iam = r#"{"error": {"status": "PERMISSION_DENIED", "message": "hunter2"}}"#;
        for (body, code) in [
            (sts, "invalid_grant"),
            (iam, "PERMISSION_DENIED"),
            ("hunter2", "no code"),
        ] {
            let error = accepted("it is refused", answer(StatusCode::FORBIDDEN, body)).unwrap_err();
            let told = error.to_string();
            assert!(told.contains(code) && !told.contains("hunter2"), "{told}");
        }
    }
}
