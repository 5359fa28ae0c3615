//! Google's application default credentials, at Google's own addresses. What is stored goes to fake-gcs-server once the token
//! was checked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{Response, request::Parts};
use jiff::{Timestamp, ToSpan};
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::{
    Process, Tokens, form, is_child,
    support::{
        gcs_xml,
        internet::{Internet, said},
        servers::{Server, prefix, variable},
    },
    text,
};

const ACCOUNT: &str = "agents@project.iam.gserviceaccount.com";
const AUDIENCE: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const PROOF: &str = "proof-of-who-asks";

/// What Google knows.
struct Known {
    seconds: i64,
    tokens: Tokens,
    /// The tokens of federated identities, which are good for impersonation alone when an account is to be impersonated.
    federated: Mutex<Vec<String>>,
    signed: Mutex<BTreeMap<String, String>>,
}

struct Google {
    internet: Internet,
    known: Arc<Known>,
}

impl Google {
    /// Gives tokens that hold for so long.
    async fn giving(seconds: i64) -> Self {
        let known = Arc::new(Known {
            seconds,
            tokens: Tokens::default(),
            federated: Mutex::default(),
            signed: Mutex::default(),
        });
        let storage = gcs_xml::before(&Server::FakeGcs.endpoint().unwrap());
        let issuer = Arc::clone(&known);
        let internet = Internet::of(Arc::new(move |parts: Parts, body: Bytes| {
            let (issuer, storage) = (Arc::clone(&issuer), Arc::clone(&storage));
            Box::pin(async move {
                match parts.headers["host"] == "storage.googleapis.com" {
                    true if issuer.tokens.check(bearer(&parts)) || is_own_token(bearer(&parts)) => {
                        storage(parts, body).await
                    }
                    true => Ok(said(401, "<Error><Code>AuthenticationRequired</Code></Error>")),
                    false => Ok(issuer.serve(&parts, &body)),
                }
            })
        }))
        .await;
        Self { internet, known }
    }

    fn process(&self, more: Value) -> Process {
        let mut config = json!({
            "bucket": variable("AGENTS_TEST_GCS_BUCKET"),
            "prefix": prefix(),
            "ca_file": self.internet.ca_file(),
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        Process::new("gcs", config).env(self.internet.env())
    }

    /// A process whose application default credentials are this file.
    fn with_file(&self, more: Value, file: &Value) -> Process {
        let process = self.process(more);
        let path = process.file("google.json", &file.to_string());
        process.env([("GOOGLE_APPLICATION_CREDENTIALS", text(&path))])
    }
}

fn bearer(parts: &Parts) -> &str {
    let value = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    value
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default()
}

fn service_account() -> Value {
    let data: Value = serde_json::from_str(include_str!("../data/gcs_v4.json")).unwrap();
    data["service_account"].clone()
}

/// Whether it is a token that the service account of the vectors signed for itself.
fn is_own_token(token: &str) -> bool {
    let Some((message, signature)) = token.rsplit_once('.') else {
        return false;
    };
    let account = service_account();
    let pem = account["private_key"].as_str().unwrap();
    let inner: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let key = RsaKeyPair::from_pkcs8(&STANDARD.decode(inner).unwrap()).unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(message.split_once('.').unwrap().1).unwrap()).unwrap();
    let now = Timestamp::now().as_second();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key())
        .verify(message.as_bytes(), &signature)
        .is_ok()
        && claims["iss"] == account["client_email"]
        && claims["exp"]
            .as_i64()
            .is_some_and(|expires| (now..now + 3700).contains(&expires))
        && claims["scope"].as_str().is_some_and(|scope| scope.contains(SCOPE))
}

impl Known {
    fn token(&self) -> Response<Bytes> {
        let token = json!({ "access_token": self.tokens.give(), "expires_in": self.seconds, "token_type": "Bearer" });
        said(200, &token.to_string())
    }

    fn serve(&self, parts: &Parts, body: &[u8]) -> Response<Bytes> {
        let header = |name: &str| {
            parts
                .headers
                .get(name)
                .map(|value| value.to_str().unwrap())
                .unwrap_or_default()
        };
        let form = form(body);
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let account = format!("/v1/projects/-/serviceAccounts/{ACCOUNT}");
        match (header("host"), parts.method.as_str(), parts.uri.path()) {
            ("accounts.google.com", "POST", "/o/oauth2/token")
                if field("grant_type") == "refresh_token"
                    && field("refresh_token") == PROOF
                    && field("client_id") == "id"
                    && field("client_secret") == "secret" =>
            {
                self.token()
            }
            ("metadata.google.internal", "GET", path) if header("metadata-flavor") == "Google" => {
                match path.strip_prefix("/computeMetadata/v1/instance/service-accounts/default/") {
                    Some("token") => self.token(),
                    Some("email") => said(200, ACCOUNT),
                    _ => said(404, ""),
                }
            }
            ("sts.googleapis.com", "POST", "/v1/token") => {
                let good = field("grant_type") == "urn:ietf:params:oauth:grant-type:token-exchange"
                    && field("audience") == AUDIENCE
                    && field("scope") == SCOPE
                    && field("requested_token_type") == "urn:ietf:params:oauth:token-type:access_token"
                    && field("subject_token_type") == "urn:ietf:params:oauth:token-type:jwt"
                    && field("subject_token") == PROOF;
                if !good {
                    let told = format!("the token {} is wrong", field("subject_token"));
                    return said(
                        400,
                        &json!({ "error": "invalid_grant", "error_description": told }).to_string(),
                    );
                }
                let mut federated = self.federated.lock().unwrap();
                let next = federated.len() + 1;
                federated.push(format!("federated-{next}"));
                let token = json!({
                    "access_token": federated.last(), "expires_in": self.seconds, "token_type": "Bearer",
                    "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                });
                said(200, &token.to_string())
            }
            // A user who is not federated, for pools of the workforce and for pools without an account.
            ("workforce.googleapis.com", "POST", "/v1/token")
                if header("authorization") == format!("Basic {}", STANDARD.encode("id:secret"))
                    && field("subject_token") == PROOF =>
            {
                self.token()
            }
            ("iamcredentials.googleapis.com", "POST", path) if path == format!("{account}:generateAccessToken") => {
                let known = self
                    .federated
                    .lock()
                    .unwrap()
                    .iter()
                    .any(|token| token == bearer(parts));
                if !known || json["scope"] != json!([SCOPE]) || json["lifetime"] != "1800s" {
                    return said(
                        403,
                        r#"{"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "no"}}"#,
                    );
                }
                let expires = Timestamp::now().checked_add(self.seconds.seconds()).unwrap();
                said(
                    200,
                    &json!({ "accessToken": self.tokens.give(), "expireTime": expires }).to_string(),
                )
            }
            ("iamcredentials.googleapis.com", "POST", path) if path == format!("{account}:signBlob") => {
                if !self.tokens.check(bearer(parts)) {
                    return said(403, r#"{"error": {"status": "PERMISSION_DENIED"}}"#);
                }
                let payload = json["payload"].as_str().unwrap().to_owned();
                self.signed.lock().unwrap().insert("payload".to_owned(), payload);
                said(
                    200,
                    &json!({ "keyId": "k", "signedBlob": STANDARD.encode("signed") }).to_string(),
                )
            }
            _ => said(404, ""),
        }
    }
}

/// A file of workload identity federation.
fn federation(source: &Value, impersonating: bool) -> Value {
    let mut file = json!({
        "type": "external_account",
        "audience": AUDIENCE,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": source,
    });
    if impersonating {
        let account = format!("https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{ACCOUNT}");
        file["service_account_impersonation_url"] = format!("{account}:generateAccessToken").into();
        file["service_account_impersonation"] = json!({ "token_lifetime_seconds": 1800 });
    }
    file
}

/// The URL was signed by IAM for the account.
fn assert_signed_by_iam(google: &Google, url: &str) {
    let credential = format!("X-Goog-Credential={}%2F", ACCOUNT.replace('@', "%40"));
    let signature: String = b"signed".iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(url.contains(&credential), "{url}");
    assert!(url.ends_with(&format!("X-Goog-Signature={signature}")), "{url}");
    let payload = google.known.signed.lock().unwrap()["payload"].clone();
    let payload = String::from_utf8(STANDARD.decode(payload).unwrap()).unwrap();
    assert!(payload.starts_with("GOOG4-RSA-SHA256\n"), "{payload}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_a_login_and_a_machine_are_found() {
    if is_child().await {
        return;
    }
    let google = Google::giving(3600).await;
    let url = google
        .with_file(json!({}), &service_account())
        .presigning()
        .run()
        .await
        .unwrap();
    assert!(url.contains("X-Goog-Credential=test-iam-credentials%40"), "{url}");
    assert_eq!(google.known.tokens.used(), 0, "it signs its own tokens");

    let login =
        json!({ "type": "authorized_user", "client_id": "id", "client_secret": "secret", "refresh_token": PROOF });
    let process = google.process(json!({}));
    process.file(
        ".config/gcloud/application_default_credentials.json",
        &login.to_string(),
    );
    process.run().await.unwrap();
    assert_eq!(google.known.tokens.used(), 1);
    let told = google
        .with_file(json!({}), &login)
        .presigning()
        .run()
        .await
        .unwrap_err();
    assert!(told.contains("signing_account"), "{told}");

    let google = Google::giving(200).await;
    let url = google
        .process(json!({}))
        .again_after(1)
        .presigning()
        .run()
        .await
        .unwrap();
    assert!(
        google.known.tokens.used() >= 2,
        "what ends within five minutes is fetched again"
    );
    assert_signed_by_iam(&google, &url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federated_identity_impersonates_a_service_account() {
    if is_child().await {
        return;
    }
    let google = Google::giving(240).await;
    let process = google.process(json!({})).again_after(11).presigning();
    let token = process.file("token", &format!("{PROOF}\n"));
    let file = federation(&json!({ "file": token }), true);
    let path = process.file("google.json", &file.to_string());
    let url = process
        .env([("GOOGLE_APPLICATION_CREDENTIALS", text(&path))])
        .run()
        .await
        .unwrap();
    assert_signed_by_iam(&google, &url);
    assert_eq!(
        google.known.tokens.used(),
        2,
        "what ends within five minutes is fetched again"
    );
    assert_eq!(google.known.federated.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federated_identity_may_come_from_an_address_and_store_by_itself() {
    if is_child().await {
        return;
    }
    let google = Google::giving(3600).await;
    let provider = crate::support::proxy::Proxy::serving(Arc::new(|parts, _| {
        Box::pin(async move {
            Ok(match parts.headers.get("metadata").map(|value| value.as_bytes()) {
                Some(b"True") => said(200, &json!({ "token": PROOF }).to_string()),
                _ => said(403, "{}"),
            })
        })
    }))
    .await;
    let source = |header: &str| {
        json!({
            "url": format!("{}/token", provider.url),
            "headers": { "Metadata": header },
            "format": { "type": "json", "subject_token_field_name": "token" },
        })
    };
    // Without an account to impersonate, the token of the exchange is the one that stores.
    let mut file = federation(&source("True"), false);
    file["token_url"] = "https://workforce.googleapis.com/v1/token".into();
    file["client_id"] = "id".into();
    file["client_secret"] = "secret".into();
    google.with_file(json!({}), &file).run().await.unwrap();
    assert_eq!(google.known.tokens.used(), 1);
    let told = google.with_file(json!({}), &file).presigning().run().await.unwrap_err();
    assert!(told.contains("signing_account"), "{told}");
    let signing = json!({ "signing_account": ACCOUNT });
    let url = google.with_file(signing, &file).presigning().run().await.unwrap();
    assert_signed_by_iam(&google, &url);

    let told = google
        .with_file(json!({}), &federation(&source("False"), true))
        .run()
        .await
        .unwrap_err();
    assert!(told.contains("credential_source.url"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_told_and_never_quoted() {
    if is_child().await {
        return;
    }
    let google = Google::giving(3600).await;
    let secret = "hunter2";
    let process = google.process(json!({}));
    let token = process.file("token", secret);
    let mut other = federation(&json!({ "file": token }), true);
    let refused = process.file("google.json", &other.to_string());
    let told = process
        .env([("GOOGLE_APPLICATION_CREDENTIALS", text(&refused))])
        .run()
        .await
        .unwrap_err();
    assert!(told.contains("invalid_grant") && told.contains("audience"), "{told}");
    assert!(!told.contains(secret), "{told}");

    other["credential_source"] = json!({ "file": "/nowhere/token" });
    let told = google.with_file(json!({}), &other).run().await.unwrap_err();
    assert!(told.contains("/nowhere/token"), "{told}");

    other["credential_source"] = json!({ "executable": { "command": "/bin/false" } });
    let told = google.with_file(json!({}), &other).run().await.unwrap_err();
    assert!(told.contains("executable is not run"), "{told}");

    // An account that may not be impersonated.
    let process = google.process(json!({}));
    let token = process.file("token", PROOF);
    let mut file = federation(&json!({ "file": token }), true);
    file["service_account_impersonation"] = json!({ "token_lifetime_seconds": 7 });
    let path = process.file("google.json", &file.to_string());
    let told = process
        .env([("GOOGLE_APPLICATION_CREDENTIALS", text(&path))])
        .run()
        .await
        .unwrap_err();
    assert!(
        told.contains("workloadIdentityUser") && told.contains("PERMISSION_DENIED"),
        "{told}"
    );

    let told = google
        .with_file(json!({}), &json!({ "type": "impersonated_service_account" }))
        .run()
        .await
        .unwrap_err();
    assert!(told.contains("access_token"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configured_proxy_leads_to_the_storage() {
    if is_child().await {
        return;
    }
    let google = Google::giving(3600).await;
    let mut process = google.process(json!({ "proxy": google.internet.url }));
    process.env.retain(|(name, _)| !name.ends_with("_PROXY"));
    let token = process.file("token", &google.known.tokens.give());
    process.task["config"]["access_token"] = format!("file:{}", text(&token)).into();
    process.run().await.unwrap();
    assert_eq!(google.known.tokens.used(), 1);
}
