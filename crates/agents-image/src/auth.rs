//! Credentials that `docker login` and `podman login` have stored.

use std::{collections::BTreeMap, ffi::OsString, fmt, io, path::PathBuf};

use agents_core::error::{Error, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::{
    reference::{RegistryRef, quoted},
    resolved::null_as_default,
};

/// What was found, and where.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Basic {
        username: String,
        password: String,
        file: PathBuf,
    },
    Bearer {
        token: String,
        file: PathBuf,
    },
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Basic { file, .. } => write!(f, "Basic from {}", file.display()),
            Self::Bearer { file, .. } => write!(f, "Bearer from {}", file.display()),
        }
    }
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default, deserialize_with = "null_as_default")]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(default, rename = "credHelpers", deserialize_with = "null_as_default")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore", deserialize_with = "null_as_default")]
    store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The files that may hold credentials, in the order in which they are read.
pub(crate) fn files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = folder("HOME");
    let config = folder("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = folder("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
    [
        folder("REGISTRY_AUTH_FILE"),
        folder("XDG_RUNTIME_DIR").map(|path| path.join("containers/auth.json")),
        config.map(|path| path.join("containers/auth.json")),
        docker.map(|path| path.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The credentials for the image in the first file that has any for it.
pub(crate) fn find(reference: &RegistryRef, files: &[PathBuf]) -> Result<Found> {
    for file in files {
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => {
                return Err(Error::io(
                    format!("cannot read the credentials in {}", quoted(file)),
                    error,
                ));
            }
        };
        let parsed: AuthFile = serde_json::from_slice(&bytes).map_err(|error| {
            // The source would show part of the file.
            Error::invalid(format!(
                "the file {} is no Docker or podman configuration; mend it or remove it",
                quoted(file)
            ))
            .with_context("line", error.line())
        })?;
        let entries: BTreeMap<String, &AuthEntry> =
            parsed.auths.iter().map(|(key, entry)| (normal(key), entry)).collect();
        let helpers: BTreeMap<String, &String> = parsed
            .helpers
            .iter()
            .map(|(key, helper)| (normal(key), helper))
            .collect();
        for scope in scopes(reference) {
            if let Some(helper) = helpers.get(&scope) {
                return Err(helper_error(reference, helper, file));
            }
            let Some(entry) = entries.get(&scope) else { continue };
            if let Some(found) = credentials(entry, file, reference)? {
                return Ok(found);
            }
            // Docker leaves an empty entry for what it has put into the credential store.
            if !parsed.store.is_empty() {
                return Err(helper_error(reference, &parsed.store, file));
            }
        }
    }
    Ok(Found::Nothing)
}

fn credentials(entry: &AuthEntry, file: &std::path::Path, reference: &RegistryRef) -> Result<Option<Found>> {
    let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    if let Some(token) = set(&entry.registrytoken) {
        return Ok(Some(Found::Bearer {
            token,
            file: file.into(),
        }));
    }
    if set(&entry.identitytoken).is_some() {
        return Err(Error::unsupported(format!(
            "{} has an identity token for {}, which is not supported; log in with a password or access token",
            quoted(file),
            reference.registry()
        )));
    }
    let damaged = || {
        Error::invalid(format!(
            "the credentials for {} in {} are damaged; log in again",
            reference.registry(),
            quoted(file)
        ))
    };
    let pair = match set(&entry.auth) {
        Some(auth) => {
            let bytes = STANDARD.decode(auth.trim()).map_err(|_| damaged())?;
            let text = String::from_utf8(bytes).map_err(|_| damaged())?;
            let (username, password) = text.split_once(':').ok_or_else(damaged)?;
            Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
        }
        None => set(&entry.username).zip(entry.password.clone()),
    };
    Ok(pair.map(|(username, password)| Found::Basic {
        username,
        password,
        file: file.into(),
    }))
}

fn helper_error(reference: &RegistryRef, helper: &str, file: &std::path::Path) -> Error {
    Error::unsupported(format!(
        "the credentials for {} are with the helper docker-credential-{helper} ({}), and helpers are not supported; use an own file with `podman login --authfile FILE {}` and REGISTRY_AUTH_FILE=FILE",
        reference.registry(),
        quoted(file),
        reference.registry()
    ))
}

/// The keys that apply, most specific first, as podman has it.
fn scopes(reference: &RegistryRef) -> Vec<String> {
    let mut scope = format!("{}/{}", reference.registry(), reference.repository());
    let mut scopes = vec![scope.clone()];
    while let Some(slash) = scope.rfind('/') {
        scope.truncate(slash);
        scopes.push(scope.clone());
    }
    scopes
}

fn normal(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        key => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(found: &Found) -> (&str, &str) {
        match found {
            Found::Basic { username, password, .. } => (username, password),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_most_specific_entry_of_the_first_file_wins() {
        let folder = tempfile::tempdir().unwrap();
        let podman = folder.path().join("auth.json");
        let docker = folder.path().join("config.json");
        // ann:1, bob:a:b, cy:3
        std::fs::write(
            &podman,
            r#"{"auths":{"registry.example":{"auth":"YW5uOjE="},"registry.example/team":{"auth":"Ym9iOmE6Yg=="}}}"#,
        )
        .unwrap();
        std::fs::write(
            &docker,
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"Y3k6Mw=="},"registry.example":{"auth":"Y3k6Mw=="}},"credHelpers":null}"#,
        )
        .unwrap();
        let files = [folder.path().join("missing"), podman, docker];
        let find = |name: &str| super::find(&RegistryRef::parse(name).unwrap(), &files).unwrap();
        assert_eq!(basic(&find("registry.example/x/y")), ("ann", "1"));
        assert_eq!(basic(&find("registry.example/team/y")), ("bob", "a:b"));
        assert_eq!(basic(&find("alpine")), ("cy", "3"));
        assert_eq!(find("other.example/x/y"), Found::Nothing);
        // With its quotes, since the folder's random name may hold the digit.
        assert!(!format!("{:?}", find("alpine")).contains("\"3\""));
    }

    #[test]
    fn helpers_are_refused_by_name_only_where_they_apply() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(
            &file,
            r#"{"auths":{"registry.example":{}},"credsStore":"desktop","credHelpers":{"third.example":"gcloud"}}"#,
        )
        .unwrap();
        let find = |name: &str| super::find(&RegistryRef::parse(name).unwrap(), std::slice::from_ref(&file));
        assert!(
            find("registry.example/x")
                .unwrap_err()
                .message()
                .contains("docker-credential-desktop")
        );
        assert!(
            find("third.example/x/y")
                .unwrap_err()
                .message()
                .contains("docker-credential-gcloud")
        );
        assert_eq!(find("alpine").unwrap(), Found::Nothing);
    }

    #[test]
    fn a_damaged_file_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, r#"{"auths":{"registry.example":{"auth":"hunter2"}"#).unwrap();
        let reference = RegistryRef::parse("registry.example/x").unwrap();
        let error = find(&reference, std::slice::from_ref(&file)).unwrap_err();
        assert!(
            error.report().contains("config.json") && !error.report().contains("hunter2"),
            "{error}"
        );
        std::fs::write(&file, r#"{"auths":{"registry.example":{"auth":"%%"}}}"#).unwrap();
        assert!(
            find(&reference, std::slice::from_ref(&file))
                .unwrap_err()
                .message()
                .contains("log in again")
        );
    }

    #[test]
    fn the_files_are_those_of_podman_and_docker() {
        let variables = |name: &str| match name {
            "HOME" => Some("/h".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/1".into()),
            "DOCKER_CONFIG" => Some("/d".into()),
            _ => None,
        };
        let expected: Vec<PathBuf> = [
            "/run/user/1/containers/auth.json",
            "/h/.config/containers/auth.json",
            "/d/config.json",
        ]
        .iter()
        .map(PathBuf::from)
        .collect();
        assert_eq!(files(variables), expected);
    }
}
