//! Amazon's chain. Whoever gives credentials gives those that MinIO's own token service gave, with a session token, so that
//! MinIO checks what is made of them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Response, request::Parts};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::{
    Process, form, is_child,
    support::{
        internet::{Internet, said},
        servers::{assume, prefix, variable},
    },
    text,
};

const ROLE: &str = "arn:aws:iam::111122223333:role/agents";

/// A token that Kubernetes, SSO or a metadata service gave.
const PROOF: &str = "proof-of-who-asks";

/// Who gives credentials.
struct Issuer {
    key: String,
    secret: String,
    token: String,
    seconds: i64,
    given: AtomicUsize,
}

struct Amazon {
    internet: Internet,
    issuer: Arc<Issuer>,
}

impl Amazon {
    /// Gives credentials of which it says that they hold for so long.
    async fn giving(seconds: i64) -> Self {
        let credentials = tokio::task::spawn_blocking(|| assume(None)).await.unwrap();
        let field = |name: &str| credentials[name].as_str().unwrap().to_owned();
        let issuer = Arc::new(Issuer {
            key: field("AccessKeyId"),
            secret: field("SecretAccessKey"),
            token: field("SessionToken"),
            seconds,
            given: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&issuer);
        let internet = Internet::of(Arc::new(move |parts, body| {
            let answer = serving.serve(&parts, &body);
            Box::pin(async move { Ok(answer) })
        }))
        .await;
        Self { internet, issuer }
    }

    fn process(&self, more: Value) -> Process {
        let config = json!({
            "bucket": variable("AGENTS_TEST_MINIO_BUCKET"),
            "endpoint": variable("AGENTS_TEST_MINIO"),
            "region": "us-east-1",
            "prefix": prefix(),
        });
        let mut process = Process::new("s3", config).env(self.internet.env());
        // Two authorities in one file: Amazon's here, and MinIO's.
        let authorities = [self.internet.ca_file(), variable("AGENTS_TEST_MINIO_CA").into()];
        let authorities = authorities.map(|path| std::fs::read_to_string(path).unwrap());
        let config = &mut process.task["config"];
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let path = process.file("ca.pem", &authorities.concat());
        process.task["config"]["ca_file"] = text(&path).into();
        process
    }

    fn given(&self) -> usize {
        self.issuer.given.load(Ordering::SeqCst)
    }
}

fn root() -> [(&'static str, String); 2] {
    [
        ("AWS_ACCESS_KEY_ID", variable("AGENTS_TEST_MINIO_KEY")),
        ("AWS_SECRET_ACCESS_KEY", variable("AGENTS_TEST_MINIO_SECRET")),
    ]
}

impl Issuer {
    fn serve(&self, parts: &Parts, body: &[u8]) -> Response<Bytes> {
        let header = |name: &str| {
            parts
                .headers
                .get(name)
                .map(|value| value.to_str().unwrap())
                .unwrap_or_default()
        };
        let expires = Timestamp::now().checked_add(self.seconds.seconds()).unwrap();
        let expires_text = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let (key, secret, token) = (&self.key, &self.secret, &self.token);
        let give = || self.given.fetch_add(1, Ordering::SeqCst);
        let metadata = || {
            give();
            json!({
                "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-11-24T00:00:00Z",
                "AccessKeyId": key, "SecretAccessKey": secret, "Token": token, "Expiration": expires_text,
            })
        };
        let sts = |action: &str| {
            give();
            format!(
                "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
             <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken>\
             <Expiration>{expires_text}</Expiration></Credentials><AssumedRoleUser><Arn>{ROLE}</Arn>\
             <AssumedRoleId>A:b</AssumedRoleId></AssumedRoleUser></{action}Result></{action}Response>"
            )
        };
        let query = parts.uri.query().unwrap_or_default();
        match (header("host"), parts.method.as_str(), parts.uri.path()) {
            ("sts.us-east-1.amazonaws.com", "POST", "/") => {
                let form = form(body);
                let field = |name: &str| form.get(name).map_or("", String::as_str);
                let source = "Credential=SOURCE/";
                match (field("Action"), field("RoleArn"), field("WebIdentityToken")) {
                    ("AssumeRoleWithWebIdentity", ROLE, PROOF) => said(200, &sts("AssumeRoleWithWebIdentity")),
                    ("AssumeRole", ROLE, "") if header("authorization").contains(source) => {
                        said(200, &sts("AssumeRole"))
                    }
                    _ => said(
                        403,
                        "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>",
                    ),
                }
            }
            ("portal.sso.us-east-1.amazonaws.com", "GET", "/federation/credentials")
                if header("x-amz-sso_bearer_token") == PROOF
                    && query.contains("role_name=agents")
                    && query.contains("account_id=111122223333") =>
            {
                give();
                let credentials = json!({ "roleCredentials": {
                    "accessKeyId": key, "secretAccessKey": secret, "sessionToken": token,
                    "expiration": expires.as_millisecond(),
                }});
                said(200, &credentials.to_string())
            }
            // Tasks of ECS, and the agent of EKS Pod Identity, which wants a token.
            ("169.254.170.2", "GET", "/v2/credentials/task") => said(200, &metadata().to_string()),
            ("169.254.170.23", "GET", "/v1/credentials") if header("authorization") == PROOF => {
                said(200, &metadata().to_string())
            }
            // Instances, by the second version alone.
            ("169.254.169.254", "PUT", "/latest/api/token")
                if !header("x-aws-ec2-metadata-token-ttl-seconds").is_empty() =>
            {
                let mut response = said(200, PROOF);
                let ttl = header("x-aws-ec2-metadata-token-ttl-seconds").parse().unwrap();
                response
                    .headers_mut()
                    .insert("x-aws-ec2-metadata-token-ttl-seconds", ttl);
                response
            }
            ("169.254.169.254", "GET", path) if header("x-aws-ec2-metadata-token") == PROOF => {
                match path.strip_prefix("/latest/meta-data/iam/security-credentials/") {
                    Some("") => said(200, "agents"),
                    Some("agents") => said(200, &metadata().to_string()),
                    _ => said(404, ""),
                }
            }
            _ => said(404, ""),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_from_the_environment_and_from_a_profile() {
    if is_child().await {
        return;
    }
    let amazon = Amazon::giving(3600).await;
    amazon.process(json!({})).env(root()).run().await.unwrap();
    let process = amazon.process(json!({ "profile": "work", "region": null }));
    process.file(
        ".aws/credentials",
        &format!(
            "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n\
             [work]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            root()[0].1,
            root()[1].1
        ),
    );
    process.file(".aws/config", "[profile work]\nregion = us-east-1\n");
    process.run().await.unwrap();
    assert_eq!(amazon.given(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_may_run_a_program_assume_a_role_or_be_one_of_sso() {
    if is_child().await {
        return;
    }
    let amazon = Amazon::giving(3600).await;
    let config = |process: &Process, profile: &str| process.file(".aws/config", &format!("[default]\n{profile}"));

    let process = amazon.process(json!({}));
    let issuer = &amazon.issuer;
    let output = json!({
        "Version": 1, "AccessKeyId": issuer.key, "SecretAccessKey": issuer.secret, "SessionToken": issuer.token,
        "Expiration": "2099-01-01T00:00:00Z",
    });
    let file = process.file("credentials.json", &output.to_string());
    config(&process, &format!("credential_process = /bin/cat {}\n", text(&file)));
    process.run().await.unwrap();
    assert_eq!(amazon.given(), 0);

    let process = amazon.process(json!({}));
    config(
        &process,
        &format!(
            "role_arn = {ROLE}\nsource_profile = source\n\
             [profile source]\naws_access_key_id = SOURCE\naws_secret_access_key = s\n"
        ),
    );
    process.run().await.unwrap();
    assert_eq!(amazon.given(), 1);

    let process = amazon.process(json!({}));
    config(
        &process,
        "sso_session = work\nsso_account_id = 111122223333\nsso_role_name = agents\n\
         [sso-session work]\nsso_region = us-east-1\nsso_start_url = https://work.awsapps.com/start\n",
    );
    let cached = json!({ "accessToken": PROOF, "expiresAt": "2099-01-01T00:00:00Z" }).to_string();
    // The name is the SHA-1 of "work".
    process.file(".aws/sso/cache/e274eeff768c6396088ec6eb091f4bf4d47ab1e0.json", &cached);
    process.run().await.unwrap();
    assert_eq!(amazon.given(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_identity_is_exchanged_again_before_it_expires() {
    if is_child().await {
        return;
    }
    let amazon = Amazon::giving(240).await;
    let process = amazon.process(json!({})).again_after(11);
    let file = process.file("token", PROOF);
    process
        .env([
            ("AWS_ROLE_ARN", ROLE.to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", text(&file)),
        ])
        .run()
        .await
        .unwrap();
    assert_eq!(amazon.given(), 2, "what ends within five minutes is fetched again");

    let process = amazon.process(json!({}));
    let file = process.file("token", "another");
    let told = process
        .env([
            ("AWS_ROLE_ARN", ROLE.to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", text(&file)),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ])
        .run()
        .await
        .unwrap_err();
    assert!(told.contains("credentials") && !told.contains("another"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_and_an_instance_ask_their_metadata() {
    if is_child().await {
        return;
    }
    let amazon = Amazon::giving(3600).await;
    amazon
        .process(json!({}))
        .env([(
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "/v2/credentials/task".to_owned(),
        )])
        .run()
        .await
        .unwrap();
    assert_eq!(amazon.given(), 1);

    let process = amazon.process(json!({}));
    let file = process.file("token", PROOF);
    process
        .env([
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://169.254.170.23/v1/credentials".to_owned(),
            ),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", text(&file)),
        ])
        .run()
        .await
        .unwrap();
    assert_eq!(amazon.given(), 2);

    amazon.process(json!({})).run().await.unwrap();
    assert_eq!(amazon.given(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configured_proxy_leads_to_the_token_service() {
    if is_child().await {
        return;
    }
    let amazon = Amazon::giving(3600).await;
    let mut process = amazon.process(json!({ "proxy": amazon.internet.url }));
    process.env.retain(|(name, _)| !name.ends_with("_PROXY"));
    let file = process.file("token", PROOF);
    process
        .env([
            ("AWS_ROLE_ARN", ROLE.to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", text(&file)),
        ])
        .run()
        .await
        .unwrap();
    assert_eq!(amazon.given(), 1);
    // Without it the authority is not trusted.
    let mut process = amazon.process(json!({}));
    process.task["config"]["ca_file"] = variable("AGENTS_TEST_MINIO_CA").into();
    let file = process.file("token", PROOF);
    let told = process
        .env([
            ("AWS_ROLE_ARN", ROLE.to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", text(&file)),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ])
        .run()
        .await
        .unwrap_err();
    assert!(told.contains("credentials") && !told.contains(PROOF), "{told}");
}
