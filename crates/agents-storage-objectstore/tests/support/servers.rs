//! The servers that `cargo xtask services up` starts, and storage in them.

use std::{env, error::Error, sync::Arc};

use agents_core::{BuildContext, Factory, Result, SecretBytes, SecretRef, SecretResolver, StorageBackend};
use agents_storage_objectstore::{AzureFactory, GcsFactory, S3Factory};
use agents_testkit::storage::StorageFixture;
use serde_json::{Value, json};

use super::gcs_xml;

/// A server of one of the three clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Versitygw,
    Minio,
    Azurite,
    FakeGcs,
}

impl Server {
    pub const ALL: [Self; 4] = [Self::Versitygw, Self::Minio, Self::Azurite, Self::FakeGcs];

    /// The suite, and what `cargo xtask services up` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Versitygw => "versitygw",
            Self::Minio => "minio",
            Self::Azurite => "azurite",
            Self::FakeGcs => "fake-gcs",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Versitygw => "AGENTS_TEST_VERSITYGW",
            Self::Minio => "AGENTS_TEST_MINIO",
            Self::Azurite => "AGENTS_TEST_AZURITE",
            Self::FakeGcs => "AGENTS_TEST_GCS",
        }
    }

    /// Its address.
    pub fn endpoint(self) -> Result<String, String> {
        get(self, "")
    }

    /// The configuration that reaches it, with some other fields.
    pub fn config(self, more: Value) -> Result<Value, String> {
        let variable = self.variable();
        let mut config = match self {
            Self::Versitygw | Self::Minio => json!({
                "bucket": get(self, "_BUCKET")?,
                "access_key_id": format!("env:{variable}_KEY"),
                "secret_access_key": format!("env:{variable}_SECRET"),
            }),
            Self::Azurite => json!({
                "account": get(self, "_ACCOUNT")?,
                "container": get(self, "_CONTAINER")?,
                "access_key": format!("env:{variable}_KEY"),
            }),
            Self::FakeGcs => json!({
                "bucket": get(self, "_BUCKET")?,
                "access_token": format!("env:{variable}_TOKEN"),
            }),
        };
        config["endpoint"] = self.endpoint()?.into();
        if self == Self::Minio {
            config["ca_file"] = get(self, "_CA")?.into();
        }
        let (Value::Object(config), Value::Object(more)) = (&mut config, more) else {
            return Err("a configuration is an object".to_owned());
        };
        config.extend(more);
        Ok(Value::Object(config.clone()))
    }

    /// Storage in it, with some other fields in its configuration.
    pub async fn storage(self, more: Value) -> Result<Arc<dyn StorageBackend>, Box<dyn Error>> {
        let config = self.config(more)?;
        Ok(match self {
            Self::Versitygw | Self::Minio => build::<S3Factory>(config).await?,
            Self::Azurite => build::<AzureFactory>(config).await?,
            Self::FakeGcs => build::<GcsFactory>(config).await?,
        })
    }
}

/// A variable of the environment that `cargo xtask services env` gives.
pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `cargo xtask services up`, then `eval \"$(cargo xtask services env)\"`")
    })
}

fn get(server: Server, suffix: &str) -> Result<String, String> {
    let variable = format!("{}{suffix}", server.variable());
    let name = server.name();
    env::var(&variable).map_err(|_| {
        format!(
            "{variable} is not set: run `cargo xtask services up {name}`, then `eval \"$(cargo xtask services env)\"`"
        )
    })
}

/// Builds storage as the facade does.
pub async fn build<F>(config: Value) -> Result<Arc<dyn StorageBackend>, Box<dyn Error>>
where
    F: Factory<Adapter = dyn StorageBackend>,
{
    let config = serde_json::from_value(config)?;
    F::validate(&config)?;
    let context = BuildContext::new("/nowhere", "/nowhere", Arc::new(Environment));
    Ok(F::build(config, &context).await?)
}

/// A prefix that nobody else has.
pub fn prefix() -> String {
    format!("tests/{}", uuid::Uuid::now_v7().simple())
}

/// Temporary credentials of MinIO, by Amazon's own client, for what a policy allows or for everything.
pub fn assume(policy: Option<&Value>) -> Value {
    let mut command = std::process::Command::new("python3");
    command
        .args("-m awscli sts assume-role --output json --role-session-name agents".split(' '))
        .args(["--role-arn", "arn:aws:iam::111111111111:role/agents"])
        .args(["--endpoint-url", &variable("AGENTS_TEST_MINIO")])
        .env("PYTHONPATH", variable("AGENTS_TEST_AWS_PYTHONPATH"))
        .env("AWS_ACCESS_KEY_ID", variable("AGENTS_TEST_MINIO_KEY"))
        .env("AWS_SECRET_ACCESS_KEY", variable("AGENTS_TEST_MINIO_SECRET"))
        .env("AWS_CA_BUNDLE", variable("AGENTS_TEST_MINIO_CA"))
        .env("AWS_DEFAULT_REGION", "us-east-1");
    if let Some(policy) = policy {
        command.args(["--policy", &policy.to_string()]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["Credentials"].clone()
}

/// Storage for the conformance suite.
pub async fn fixture(server: Server) -> Result<StorageFixture, Box<dyn Error>> {
    let mut one = json!({ "prefix": prefix() });
    let mut two = json!({ "prefix": prefix() });
    if server != Server::FakeGcs {
        return Ok(StorageFixture::new(server.storage(one).await?).with_other(server.storage(two).await?));
    }
    let front = gcs_xml::start(&server.endpoint()?).await;
    one["endpoint"] = front.url.clone().into();
    two["endpoint"] = front.url.clone().into();
    let fixture = StorageFixture::new(server.storage(one).await?).with_other(server.storage(two).await?);
    Ok(fixture.keeping(front))
}

#[derive(Debug)]
struct Environment;

#[async_trait::async_trait]
impl SecretResolver for Environment {
    async fn resolve(&self, reference: &SecretRef) -> Result<SecretBytes> {
        let missing = || agents_core::Error::not_found(format!("{reference} is not set"));
        let value = match reference.provider() {
            "file" => std::fs::read(reference.key()).map_err(|_| missing())?,
            _ => env::var(reference.key()).map_err(|_| missing())?.into_bytes(),
        };
        Ok(SecretBytes::new(value))
    }
}
