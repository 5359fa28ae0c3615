//! Credentials for registries, from docker's `config.json` and the credential helpers that it names.
//!
//! A helper is a program of the user's own choice, `docker-credential-NAME`; it is the one program that is started here.

use std::{collections::BTreeMap, io, path::Path, process::Stdio, time::Duration};

use agents_core::{Error, ErrorKind, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::{image::ImageName, null_as_default};

/// How long a helper may take.
const HELPER: Duration = Duration::from_secs(30);

/// What docker calls its own registry in files and to helpers.
const DOCKER_IO: &str = "https://index.docker.io/v1/";

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    #[serde(deserialize_with = "null_as_default")]
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers", deserialize_with = "null_as_default")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore", deserialize_with = "null_as_default")]
    store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(deserialize_with = "null_as_default")]
    auth: String,
    #[serde(deserialize_with = "null_as_default")]
    identitytoken: String,
    #[serde(deserialize_with = "null_as_default")]
    registrytoken: String,
}

/// What a helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    username: String,
    secret: String,
}

/// The credentials for an image's registry, if there are any.
pub(crate) async fn find(folder: Option<&Path>, image: &ImageName) -> Result<Option<DockerCredentials>> {
    let Some(path) = folder.map(|folder| folder.join("config.json")) else {
        return Ok(None);
    };
    let bytes = match tokio::fs::read(&path).await {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(Error::io(
                format!("cannot read the credentials in {}", path.display()),
                error,
            ));
        }
    };
    // The source would show part of the file.
    let file: File = serde_json::from_slice(&bytes).map_err(|_| {
        Error::invalid(format!(
            "{} is no docker configuration; mend it or remove it",
            path.display()
        ))
    })?;
    let keys = keys(image.registry());
    let helper = keys.iter().find_map(|key| file.helpers.get(key));
    let helper = helper.or(Some(&file.store).filter(|store| !store.is_empty()));
    if let Some(helper) = helper
        && let Some(found) = ask(helper, &keys[0]).await?
    {
        return Ok(Some(found));
    }
    let entries = file.auths.iter().map(|(key, entry)| (normal(key), entry));
    let entry = entries
        .into_iter()
        .find(|(key, _)| key == image.registry())
        .map(|(_, entry)| entry);
    match entry {
        None => Ok(None),
        Some(entry) => stored(entry, image.registry(), &path),
    }
}

fn stored(entry: &Entry, registry: &str, path: &Path) -> Result<Option<DockerCredentials>> {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let mut found = DockerCredentials {
        identitytoken: given(&entry.identitytoken),
        registrytoken: given(&entry.registrytoken),
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    };
    if let Some(auth) = given(&entry.auth) {
        let damaged = || {
            Error::invalid(format!(
                "the credentials for {registry} in {} are damaged; log in again",
                path.display()
            ))
        };
        let bytes = STANDARD.decode(auth.trim()).map_err(|_| damaged())?;
        let text = String::from_utf8(bytes).map_err(|_| damaged())?;
        let (username, password) = text.split_once(':').ok_or_else(damaged)?;
        found.username = Some(username.to_owned());
        found.password = Some(password.trim_end_matches('\0').to_owned());
    }
    let any = found.username.is_some() || found.identitytoken.is_some() || found.registrytoken.is_some();
    Ok(any.then_some(found))
}

async fn ask(helper: &str, registry: &str) -> Result<Option<DockerCredentials>> {
    if !helper
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    {
        return Err(Error::invalid(format!(
            "the credential helper {helper:?} is not a name"
        )));
    }
    ask_program(Path::new(&format!("docker-credential-{helper}")), registry).await
}

/// Asks a helper for a registry's credentials, see docker/docker-credential-helpers.
async fn ask_program(program: &Path, registry: &str) -> Result<Option<DockerCredentials>> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let broken = |error: io::Error| {
        let kind = if error.kind() == io::ErrorKind::NotFound {
            ErrorKind::NotFound
        } else {
            ErrorKind::Unexpected
        };
        Error::new(
            kind,
            format!("the credential helper {name} cannot be run; install it, or log in to {registry} without one"),
        )
        .with_source(error)
    };
    let run = async {
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(registry.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match timeout(HELPER, run).await {
        Ok(output) => output.map_err(broken)?,
        Err(_) => {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("the credential helper {name} did not answer within {HELPER:?}"),
            ));
        }
    };
    if !output.status.success() {
        // The protocol's own words, on standard output. Anything else may hold what must not be shown.
        if String::from_utf8_lossy(&output.stdout).contains("credentials not found") {
            return Ok(None);
        }
        return Err(Error::new(
            ErrorKind::Unauthenticated,
            format!("the credential helper {name} failed for {registry}; run `{name} get` to see why"),
        ));
    }
    let printed: Printed = serde_json::from_slice(&output.stdout)
        .map_err(|_| Error::invalid(format!("the credential helper {name} printed no credentials")))?;
    let mut found = DockerCredentials {
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    };
    if printed.username == "<token>" {
        found.identitytoken = Some(printed.secret);
    } else {
        found.username = Some(printed.username);
        found.password = Some(printed.secret);
    }
    Ok(Some(found))
}

/// How a registry may be called in the file, as helpers know it first.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}")];
    if registry == "docker.io" {
        keys.insert(0, DOCKER_IO.to_owned());
        keys.push("index.docker.io".to_owned());
    }
    keys
}

fn normal(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.split('/').next().unwrap_or_default();
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        key => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn of(folder: &Path, image: &str) -> Result<Option<DockerCredentials>> {
        find(Some(folder), &ImageName::parse(image).unwrap()).await
    }

    #[tokio::test]
    async fn stored_credentials_are_found_by_registry() {
        let folder = tempfile::tempdir().unwrap();
        // ann:1, bob:a:b
        let text = r#"{"auths":{"registry.example":{"auth":"YW5uOjE="},"https://index.docker.io/v1/":{"auth":"Ym9iOmE6Yg=="},
            "token.example":{"identitytoken":"t"},"empty.example":{}},"credsStore":""}"#;
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let found = of(folder.path(), "registry.example/a/b:1").await.unwrap().unwrap();
        assert_eq!(
            (found.username.as_deref(), found.password.as_deref()),
            (Some("ann"), Some("1"))
        );
        let found = of(folder.path(), "alpine").await.unwrap().unwrap();
        assert_eq!(found.password.as_deref(), Some("a:b"));
        let found = of(folder.path(), "token.example/x").await.unwrap().unwrap();
        assert_eq!(found.identitytoken.as_deref(), Some("t"));
        for none in ["empty.example/x", "other.example/x"] {
            assert!(of(folder.path(), none).await.unwrap().is_none());
        }
        assert!(find(None, &ImageName::parse("x").unwrap()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_damaged_file_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            r#"{"auths":{"r.example":{"auth":"hunter2"}"#,
        )
        .unwrap();
        let error = of(folder.path(), "r.example/x").await.unwrap_err();
        assert!(
            error.report().contains("config.json") && !error.report().contains("hunter2"),
            "{error}"
        );
        std::fs::write(
            folder.path().join("config.json"),
            r#"{"auths":{"r.example":{"auth":"%%"}}}"#,
        )
        .unwrap();
        assert!(
            of(folder.path(), "r.example/x")
                .await
                .unwrap_err()
                .message()
                .contains("log in again")
        );
    }

    #[tokio::test]
    async fn helpers_are_asked_by_the_name_that_docker_uses() {
        let folder = tempfile::tempdir().unwrap();
        let helper = folder.path().join("docker-credential-test");
        let script = "#!/bin/sh\nread -r server\ncase $server in\n\
            https://index.docker.io/v1/) echo '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"s3\"}';;\n\
            token.example) echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}';;\n\
            none.example) echo 'credentials not found in native keychain'; exit 1;;\n\
            *) echo secret-of-the-helper; exit 1;;\nesac\n";
        std::fs::write(&helper, script).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let ask = async |registry: &str| ask_program(&helper, registry).await;
        assert_eq!(ask(DOCKER_IO).await.unwrap().unwrap().password.as_deref(), Some("s3"));
        assert_eq!(
            ask("token.example").await.unwrap().unwrap().identitytoken.as_deref(),
            Some("t")
        );
        assert!(ask("none.example").await.unwrap().is_none());
        let failed = ask("other.example").await.unwrap_err();
        assert!(!failed.report().contains("secret-of-the-helper"), "{failed:?}");
    }
}
