//! Secret references that need nothing but this machine.

use agents_core::{Error, Result, SecretBytes, SecretRef, SecretResolver};
use async_trait::async_trait;

use crate::Environment;

/// No secret that belongs into a variable or a small file is larger.
const MAX_SIZE: u64 = 1 << 20;

/// Resolves `env:NAME` and `file:PATH`; the content is used as it is, byte for byte.
#[derive(Clone, Debug)]
pub struct LocalSecrets {
    environment: Environment,
}

impl LocalSecrets {
    /// Reads variables from an environment.
    pub fn new(environment: Environment) -> Self {
        Self { environment }
    }
}

#[async_trait]
impl SecretResolver for LocalSecrets {
    async fn resolve(&self, reference: &SecretRef) -> Result<SecretBytes> {
        match reference.provider() {
            "env" => match self.environment.get(reference.key()) {
                Some(value) => Ok(SecretBytes::new(value.as_encoded_bytes())),
                None => Err(Error::not_found(format!(
                    "the secret {reference} is not there: set the variable {}",
                    reference.key()
                ))),
            },
            "file" => read(reference),
            provider => Err(Error::unsupported(format!(
                "the secret {reference} cannot be resolved: the provider {provider} is not built in; use env:NAME or file:/path"
            ))),
        }
    }
}

fn read(reference: &SecretRef) -> Result<SecretBytes> {
    use std::io::Read;

    let cannot = |error| Error::io(format!("cannot read the secret {reference}"), error);
    let file = std::fs::File::open(reference.key()).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Error::invalid(format!("the secret {reference} is larger than 1 MiB")));
    }
    Ok(SecretBytes::new(bytes))
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;

    use super::*;

    async fn resolve(reference: &str) -> Result<SecretBytes> {
        let secrets = LocalSecrets::new([("TOKEN", "s3cret")].into_iter().collect());
        secrets.resolve(&reference.parse().unwrap()).await
    }

    #[tokio::test]
    async fn variables_and_files_are_read_as_they_are() {
        assert_eq!(resolve("env:TOKEN").await.unwrap().expose(), b"s3cret");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, b"\xff\n").unwrap();
        let read = resolve(&format!("file:{}", path.display())).await.unwrap();
        assert_eq!(read.expose(), b"\xff\n");
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let error = resolve("env:MISSING").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains("MISSING"), "{error}");
        assert_eq!(
            resolve("file:/no/such/file").await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        let error = resolve("vault:a/b").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("vault"), "{error}");
    }

    #[tokio::test]
    async fn nothing_prints_a_secret() {
        let secrets = LocalSecrets::new([("TOKEN", "s3cret")].into_iter().collect());
        assert!(!format!("{secrets:?}").contains("s3cret"));
        assert!(!format!("{:?}", resolve("env:TOKEN").await.unwrap()).contains("s3cret"));
    }
}
