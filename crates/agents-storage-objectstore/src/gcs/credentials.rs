//! Where credentials come from when they are not the key of a service account.

use std::{fmt, path::Path, sync::Arc, time::SystemTime};

use agents_core::{Error, Result, SecretRef, SecretResolver};
use async_trait::async_trait;
use object_store::gcp::GcpCredential;

use crate::cloud::{
    config::text,
    credentials::{Source, refused},
};

/// A token that something else keeps fresh.
pub(super) struct Token {
    pub(super) secrets: Arc<dyn SecretResolver>,
    pub(super) reference: SecretRef,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?})", self.reference)
    }
}

impl Token {
    pub(super) async fn resolve(&self) -> Result<GcpCredential> {
        let bearer = text("access_token", &self.secrets.resolve(&self.reference).await?)?;
        if !bearer.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::invalid("the secret of access_token is no token"));
        }
        Ok(GcpCredential { bearer })
    }
}

#[async_trait]
impl Source for Token {
    type Credential = GcpCredential;

    async fn fetch(&self) -> object_store::Result<(GcpCredential, Option<SystemTime>)> {
        match self.resolve().await {
            Ok(credential) => Ok((credential, None)),
            Err(error) => Err(refused(error.report())),
        }
    }
}

/// The application default credentials that are a file.
pub(super) enum DefaultCredentials {
    /// The key of a service account, in JSON.
    ServiceAccount(String),
    /// What `gcloud auth application-default login` left, by its path.
    User(String),
    /// What federates another identity provider, in JSON.
    Federation(String),
}

impl DefaultCredentials {
    /// Looks where Google's own clients look.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` for a file that `GOOGLE_APPLICATION_CREDENTIALS` names and that cannot be used.
    pub(super) fn find() -> Result<Option<Self>> {
        let named = std::env::var("GOOGLE_APPLICATION_CREDENTIALS").ok();
        let path = match &named {
            Some(path) => path.into(),
            None => {
                let home = std::env::var_os("HOME").unwrap_or_default();
                Path::new(&home).join(".config/gcloud/application_default_credentials.json")
            }
        };
        let fault = |error: Error| error.with_context("file", path.display());
        let json = match std::fs::read_to_string(&path) {
            Ok(json) => json,
            Err(_) if named.is_none() => return Ok(None),
            Err(error) => {
                return Err(fault(Error::io(
                    "cannot read the file of GOOGLE_APPLICATION_CREDENTIALS",
                    error,
                )));
            }
        };
        #[derive(serde::Deserialize)]
        struct Kind {
            #[serde(default)]
            r#type: String,
        }
        let kind = serde_json::from_str::<Kind>(&json)
            .map(|kind| kind.r#type)
            .unwrap_or_default();
        match kind.as_str() {
            "service_account" => Ok(Some(Self::ServiceAccount(json))),
            "authorized_user" => Ok(Some(Self::User(path.display().to_string()))),
            "external_account" => Ok(Some(Self::Federation(json))),
            "impersonated_service_account" | "external_account_authorized_user" => {
                Err(fault(Error::unsupported(format!(
                    "credentials of \"type\": \"{kind}\" are not built in; let `gcloud auth print-access-token` write a token \
                 to a file, and give it as access_token",
                ))))
            }
            _ => Err(fault(Error::invalid(
                "the application default credentials must be a service account's key, a login of gcloud, or a file of \
                 workload identity federation",
            ))),
        }
    }
}
