//! Azure's identities. Azurite takes no token without TLS, so what stands before it checks the token and signs with the
//! account's key instead.

use std::{os::unix::fs::PermissionsExt, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, header::AUTHORIZATION, request::Parts};
use jiff::{Timestamp, ToSpan};
use object_store::{
    azure::{AzureAccessKey, AzureAuthorizer, AzureCredential},
    client::HttpRequestBody,
};
use serde_json::{Value, json};

use crate::{
    Process, Tokens, form, is_child,
    support::{
        internet::{Internet, said},
        proxy::{Proxy, forward},
        servers::{Server, prefix, variable},
    },
    text,
};

const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
const PROOF: &str = "proof-of-who-asks";

struct Azure {
    internet: Internet,
    front: Proxy,
    tokens: Arc<Tokens>,
}

impl Azure {
    /// Gives tokens that hold for so long.
    async fn giving(seconds: i64) -> Self {
        let tokens = Arc::new(Tokens::default());
        let issuer = Arc::clone(&tokens);
        let internet = Internet::of(Arc::new(move |parts, body| {
            let answer = serve(&issuer, seconds, &parts, &body);
            Box::pin(async move { Ok(answer) })
        }))
        .await;
        let checker = Arc::clone(&tokens);
        let front = Proxy::serving(Arc::new(move |parts, body| {
            let checker = Arc::clone(&checker);
            Box::pin(async move { resign(&checker, parts, body).await })
        }))
        .await;
        Self {
            internet,
            front,
            tokens,
        }
    }

    fn process(&self, more: Value) -> Process {
        let account = variable("AGENTS_TEST_AZURITE_ACCOUNT");
        let mut config = json!({
            "account": account,
            "container": variable("AGENTS_TEST_AZURITE_CONTAINER"),
            "endpoint": format!("{}/{account}", self.front.url),
            "prefix": prefix(),
            "ca_file": self.internet.ca_file(),
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        Process::new("azure", config).env(self.internet.env())
    }
}

/// Passes a request with a token on, signed.
async fn resign(tokens: &Tokens, mut parts: Parts, body: Bytes) -> std::io::Result<Response<Bytes>> {
    let bearer = parts.headers.remove(AUTHORIZATION);
    let bearer = bearer
        .as_ref()
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if !bearer.is_some_and(|bearer| tokens.check(bearer)) {
        return Ok(said(401, "<Error><Code>InvalidAuthenticationInfo</Code></Error>"));
    }
    if parts
        .uri
        .query()
        .is_some_and(|query| query.contains("comp=userdelegationkey"))
    {
        let key = format!(
            "<UserDelegationKey><SignedOid>{CLIENT}</SignedOid><SignedTid>{CLIENT}</SignedTid>\
             <SignedStart>2026-01-01T00:00:00Z</SignedStart><SignedExpiry>2099-01-01T00:00:00Z</SignedExpiry>\
             <SignedService>b</SignedService><SignedVersion>2020-12-06</SignedVersion><Value>a2V5</Value></UserDelegationKey>"
        );
        return Ok(said(200, &key));
    }
    let endpoint = Server::Azurite.endpoint().unwrap();
    let authority = endpoint.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let path = parts.uri.path_and_query().unwrap();
    parts.uri = format!("http://{authority}{path}").parse().unwrap();
    let account = variable("AGENTS_TEST_AZURITE_ACCOUNT");
    let key = AzureAccessKey::try_new(&variable("AGENTS_TEST_AZURITE_KEY")).unwrap();
    let mut request = Request::from_parts(parts, HttpRequestBody::empty());
    AzureAuthorizer::new(&AzureCredential::AccessKey(key), &account)
        .try_authorize(&mut request)
        .unwrap();
    forward(authority, request.into_parts().0, body).await
}

fn serve(tokens: &Tokens, seconds: i64, parts: &Parts, body: &[u8]) -> Response<Bytes> {
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    };
    let identity = || {
        let expires = Timestamp::now().checked_add(seconds.seconds()).unwrap().as_second();
        let token = json!({ "access_token": tokens.give(), "expires_on": expires.to_string(), "token_type": "Bearer" });
        said(200, &token.to_string())
    };
    let query = form(parts.uri.query().unwrap_or_default().as_bytes());
    let resource = query
        .get("resource")
        .is_some_and(|resource| resource == "https://storage.azure.com");
    match (header("host"), parts.method.as_str(), parts.uri.path()) {
        ("login.microsoftonline.com", "POST", "/tenant/oauth2/v2.0/token") => {
            let form = form(body);
            let field = |name: &str| form.get(name).map_or("", String::as_str);
            let common = field("client_id") == CLIENT
                && field("grant_type") == "client_credentials"
                && field("scope") == "https://storage.azure.com/.default";
            let assertion = field("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
                && field("client_assertion") == PROOF;
            match common && (field("client_secret") == PROOF || assertion) {
                true => {
                    let token = json!({ "access_token": tokens.give(), "expires_in": seconds, "token_type": "Bearer" });
                    said(200, &token.to_string())
                }
                false => said(
                    401,
                    r#"{"error": "invalid_client", "error_description": "AADSTS7000215"}"#,
                ),
            }
        }
        ("169.254.169.254", "GET", "/metadata/identity/oauth2/token") if resource && header("metadata") == "true" => {
            match query.get("client_id").map(String::as_str) {
                None | Some(CLIENT) => identity(),
                _ => said(
                    400,
                    r#"{"error": "invalid_request", "error_description": "Identity not found"}"#,
                ),
            }
        }
        ("service.internal", "GET", "/token") if resource && header("x-identity-header") == PROOF => identity(),
        _ => said(404, ""),
    }
}

fn application() -> [(&'static str, String); 2] {
    [
        ("AZURE_CLIENT_ID", CLIENT.to_owned()),
        ("AZURE_TENANT_ID", "tenant".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_proves_itself_by_a_secret_or_by_kubernetes() {
    if is_child().await {
        return;
    }
    // What ends within five minutes is fetched again for the next request.
    let azure = Azure::giving(200).await;
    let url = azure
        .process(json!({}))
        .env(application())
        .env([("AZURE_CLIENT_SECRET", PROOF.to_owned())])
        .again_after(1)
        .presigning()
        .run()
        .await
        .unwrap();
    assert!(azure.tokens.used() >= 2);
    assert!(
        url.contains(&format!("skoid={CLIENT}")) && url.contains("sig="),
        "{url}"
    );

    let azure = Azure::giving(3600).await;
    let process = azure.process(json!({ "client_id": CLIENT, "tenant_id": "tenant" }));
    let file = process.file("secret", PROOF);
    let mut process = process;
    process.task["config"]["client_secret"] = format!("file:{}", text(&file)).into();
    process.run().await.unwrap();
    assert_eq!(azure.tokens.used(), 1);

    let process = azure.process(json!({}));
    let file = process.file("token", PROOF);
    process
        .env(application())
        .env([
            ("AZURE_FEDERATED_TOKEN_FILE", text(&file)),
            ("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/".to_owned()),
        ])
        .run()
        .await
        .unwrap();
    assert_eq!(azure.tokens.used(), 2);

    let process = azure.process(json!({}));
    let told = process
        .env(application())
        .env([("AZURE_CLIENT_SECRET", "hunter2".to_owned())])
        .run()
        .await
        .unwrap_err();
    assert!(told.contains("credentials") && !told.contains("hunter2"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_and_an_app_service_have_identities() {
    if is_child().await {
        return;
    }
    let azure = Azure::giving(3600).await;
    azure.process(json!({})).run().await.unwrap();
    let chosen = json!({ "credentials": "managed_identity", "client_id": CLIENT });
    azure.process(chosen).run().await.unwrap();
    assert_eq!(azure.tokens.used(), 2);
    let other = json!({ "credentials": "managed_identity", "client_id": "another" });
    assert!(azure.process(other).run().await.is_err());
    azure
        .process(json!({}))
        .env([
            ("IDENTITY_ENDPOINT", "http://service.internal/token".to_owned()),
            ("IDENTITY_HEADER", PROOF.to_owned()),
        ])
        .run()
        .await
        .unwrap();
    assert_eq!(azure.tokens.used(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_logged_in_to_the_cli_may_store() {
    if is_child().await {
        return;
    }
    let azure = Azure::giving(3600).await;
    for (config, works) in [
        (json!({}), true),
        (json!({ "credentials": "cli" }), true),
        (json!({}), false),
    ] {
        let process = azure.process(config);
        let expires = Timestamp::now().checked_add(2.hours()).unwrap();
        let token = json!({
            "accessToken": azure.tokens.give(),
            "expiresOn": expires.strftime("%Y-%m-%d %H:%M:%S.000000").to_string(),
            "tokenType": "Bearer",
        });
        let script = match works {
            true => format!(
                "#!/bin/sh\n[ \"$*\" = \"account get-access-token --output json --scope https://storage.azure.com/.default\" ] \
                 || exit 1\necho '{token}'\n"
            ),
            false => "#!/bin/sh\necho 'Please run az login' >&2\nexit 1\n".to_owned(),
        };
        let program = process.file("az", &script);
        std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
        let result = process.env([("TZ", "UTC".to_owned())]).run().await;
        match works {
            true => assert_eq!(result, Ok(String::new())),
            false => assert!(result.unwrap_err().contains("az login")),
        }
    }
    assert_eq!(azure.tokens.used(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_may_hold_the_key_itself() {
    if is_child().await {
        return;
    }
    let config = json!({
        "account": variable("AGENTS_TEST_AZURITE_ACCOUNT"),
        "container": variable("AGENTS_TEST_AZURITE_CONTAINER"),
        "endpoint": Server::Azurite.endpoint().unwrap(),
        "prefix": prefix(),
    });
    let process = Process::new("azure", config).env([("AZURE_STORAGE_KEY", variable("AGENTS_TEST_AZURITE_KEY"))]);
    let url = process.presigning().run().await.unwrap();
    assert!(url.contains("sig="), "{url}");
}
