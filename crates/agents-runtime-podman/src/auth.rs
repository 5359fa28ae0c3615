//! Credentials of registries, as `podman login` and `docker login` have stored them: in a file, or with a helper program.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use agents_core::{Error, ErrorKind, Result};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use hyper::header::HeaderValue;
use serde::{Deserialize, Deserializer};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::reference::Reference;

/// How long a helper may take; some ask a cloud.
const HELPER: Duration = Duration::from_secs(30);

/// The longest answer of a helper.
const ANSWER: usize = 64 << 10;

/// What a registry wants to see. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password { username: String, password: String },
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
        })
    }
}

impl Credentials {
    /// The value of the header `X-Registry-Auth`.
    pub(crate) fn header(&self) -> Result<HeaderValue> {
        let json = match self {
            Self::Password { username, password } => {
                serde_json::json!({ "username": username, "password": password })
            }
            Self::IdentityToken(token) => serde_json::json!({ "identitytoken": token }),
        };
        let mut value = HeaderValue::from_str(&URL_SAFE.encode(json.to_string()))
            .map_err(|_| Error::unexpected("credentials cannot be written into a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default, deserialize_with = "null_as_default")]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers", deserialize_with = "null_as_default")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore", deserialize_with = "null_as_default")]
    store: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The files that may hold credentials, in podman's order: the first that has any for an image counts.
pub(crate) fn files(chosen: Option<&Path>) -> Vec<PathBuf> {
    match chosen {
        Some(path) => vec![path.to_owned()],
        None => usual_files(|name| env::var_os(name)),
    }
}

fn usual_files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
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

/// Where a registry's credentials are.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here(Credentials),
    Helper { name: String, server: String },
}

/// The credentials for an image, if there are any.
pub(crate) async fn find(reference: &Reference, files: &[PathBuf]) -> Result<Option<Credentials>> {
    for file in files {
        match in_file(reference, file)? {
            None => {}
            Some(Place::Here(credentials)) => return Ok(Some(credentials)),
            Some(Place::Helper { name, server }) => {
                if let Some(credentials) = ask_helper(&name, &server).await? {
                    return Ok(Some(credentials));
                }
            }
        }
    }
    Ok(None)
}

fn in_file(reference: &Reference, file: &Path) -> Result<Option<Place>> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(Error::io(
                format!("cannot read the credentials in {}", file.display()),
                error,
            ));
        }
    };
    let parsed: AuthFile = serde_json::from_slice(&bytes).map_err(|error| {
        // The source would show part of the file.
        Error::invalid(format!(
            "the file {} is no Docker or podman configuration; mend it or remove it",
            file.display()
        ))
        .with_context("line", error.line())
    })?;
    let named = |key: &str, scope: &str| normal(key) == scope;
    for scope in reference.scopes() {
        if let Some((server, name)) = parsed.helpers.iter().find(|(key, _)| named(key, &scope)) {
            return helper(name, server).map(Some);
        }
        let Some((server, entry)) = parsed.auths.iter().find(|(key, _)| named(key, &scope)) else {
            continue;
        };
        if let Some(credentials) = entry.credentials(reference, file)? {
            return Ok(Some(Place::Here(credentials)));
        }
        // Docker leaves an empty entry for what it has put into the credential store.
        if !parsed.store.is_empty() {
            return helper(&parsed.store, server).map(Some);
        }
    }
    Ok(None)
}

impl Entry {
    fn credentials(&self, reference: &Reference, file: &Path) -> Result<Option<Credentials>> {
        let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        let damaged = || {
            Error::invalid(format!(
                "the credentials for {} in {} are damaged; log in again",
                reference.registry(),
                file.display()
            ))
        };
        let pair = match set(&self.auth) {
            Some(auth) => {
                let bytes = STANDARD.decode(auth.trim()).map_err(|_| damaged())?;
                let text = String::from_utf8(bytes).map_err(|_| damaged())?;
                let (username, password) = text.split_once(':').ok_or_else(damaged)?;
                Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
            }
            None => set(&self.username).zip(self.password.clone()),
        };
        Ok(pair.map(|(username, password)| Credentials::Password { username, password }))
    }
}

fn helper(name: &str, server: &str) -> Result<Place> {
    // It becomes part of a program's name.
    let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !fits {
        return Err(Error::invalid(format!(
            "{:?} is no name of a credential helper; mend credHelpers or credsStore",
            name.escape_debug().to_string()
        )));
    }
    Ok(Place::Helper {
        name: name.to_owned(),
        server: server.to_owned(),
    })
}

/// Asks `docker-credential-NAME get`, docker-credential-helpers' protocol: the server on standard input, JSON back.
async fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>> {
    let program = format!("docker-credential-{name}");
    let failed = |why: &str| {
        Error::new(
            ErrorKind::Unauthenticated,
            format!("the credential helper {program} gives nothing for {server}: {why}"),
        )
    };
    let mut command = Command::new(&program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .map_err(|error| failed("it cannot be started; install it or log in again").with_source(error))?;
    let asking = async {
        if let Some(mut input) = child.stdin.take() {
            input.write_all(server.as_bytes()).await?;
            input.shutdown().await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER, asking).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(failed("it cannot be talked to").with_source(error)),
        Err(_) => return Err(failed("it does not answer")),
    };
    if !output.status.success() {
        // It says so on its standard output, in words that are part of the protocol.
        return if output.stdout.starts_with(b"credentials not found") {
            Ok(None)
        } else {
            Err(failed("it failed; call it by hand to see why"))
        };
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Got {
        username: String,
        secret: String,
    }
    if output.stdout.len() > ANSWER {
        return Err(failed("its answer is too long"));
    }
    // The source would show the secret.
    let got: Got = serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer is not understood"))?;
    Ok(Some(if got.username == "<token>" {
        Credentials::IdentityToken(got.secret)
    } else {
        Credentials::Password {
            username: got.username,
            password: got.secret,
        }
    }))
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

    fn reference(name: &str) -> Reference {
        Reference::parse(name).unwrap()
    }

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("auth.json");
        std::fs::write(&file, text).unwrap();
        (folder, file)
    }

    #[tokio::test]
    async fn the_most_specific_entry_of_the_first_file_wins() {
        // ann:1, bob:a:b, cy:3
        let (_one, podman) = write(
            r#"{"auths":{"registry.example":{"auth":"YW5uOjE="},"registry.example/team":{"auth":"Ym9iOmE6Yg=="}}}"#,
        );
        let (_two, docker) = write(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"Y3k6Mw=="},"registry.example":{"identitytoken":"t"},"t.example":{"identitytoken":"t"}},"credHelpers":null}"#,
        );
        let files = [PathBuf::from("/no/such/file"), podman, docker];
        let password = |username: &str, password: &str| {
            Some(Credentials::Password {
                username: username.into(),
                password: password.into(),
            })
        };
        for (name, expected) in [
            ("registry.example/x/y", password("ann", "1")),
            ("registry.example/team/y:1", password("bob", "a:b")),
            ("alpine", password("cy", "3")),
            ("t.example/x", Some(Credentials::IdentityToken("t".into()))),
            ("other.example/x", None),
        ] {
            assert_eq!(find(&reference(name), &files).await.unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn helpers_are_named_where_they_apply() {
        let (_folder, file) = write(
            r#"{"auths":{"registry.example":{}},"credsStore":"desktop","credHelpers":{"third.example":"gcloud","bad.example":"../x"}}"#,
        );
        let place = |name: &str| in_file(&reference(name), &file);
        let named = |name: &str, server: &str| {
            Some(Place::Helper {
                name: name.into(),
                server: server.into(),
            })
        };
        assert_eq!(
            place("registry.example/x").unwrap(),
            named("desktop", "registry.example")
        );
        assert_eq!(place("third.example/x/y").unwrap(), named("gcloud", "third.example"));
        assert_eq!(place("alpine").unwrap(), None);
        assert!(place("bad.example/x").is_err());
    }

    #[tokio::test]
    async fn a_missing_helper_is_named_and_a_damaged_file_is_not_shown() {
        let error = ask_helper("agents-no-such-helper", "registry.example")
            .await
            .unwrap_err();
        assert!(
            error.message().contains("docker-credential-agents-no-such-helper"),
            "{error}"
        );
        let (_folder, file) = write(r#"{"auths":{"registry.example":{"auth":"hunter2"}"#);
        let error = in_file(&reference("registry.example/x"), &file).unwrap_err();
        assert!(
            error.report().contains("auth.json") && !error.report().contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn a_secret_is_in_the_header_and_in_nothing_that_is_printed() {
        let credentials = Credentials::Password {
            username: "ann".into(),
            password: "hunter2".into(),
        };
        let header = credentials.header().unwrap();
        let json = URL_SAFE.decode(header.as_bytes()).unwrap();
        assert_eq!(json, br#"{"password":"hunter2","username":"ann"}"#);
        assert_eq!(
            (format!("{credentials:?}"), format!("{header:?}")),
            ("Password".into(), "Sensitive".into())
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
        assert_eq!(usual_files(variables), expected);
        assert_eq!(files(Some(Path::new("/a"))), [Path::new("/a")]);
    }
}
