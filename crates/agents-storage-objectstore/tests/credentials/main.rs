//! Every source of credentials that the docs name, as a process finds it: from the environment, through the addresses that
//! are built in, to a request that a server accepts. Who gives the credentials is a fake that accepts no other request.

#![cfg(all(feature = "s3", feature = "azure", feature = "gcs"))]

mod aws;
mod azure;
mod gcp;
#[path = "../support/mod.rs"]
mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use agents_core::{ArtifactName, SessionId, StorageBackendExt};
use agents_storage_objectstore::{AzureFactory, GcsFactory, S3Factory};
use serde_json::{Value, json};

/// What a child process is to do.
const TASK: &str = "TEST_CREDENTIALS_TASK";

/// A process that stores and reads, whose environment holds only what it is given.
struct Process {
    task: Value,
    env: Vec<(&'static str, String)>,
    home: tempfile::TempDir,
}

impl Process {
    fn new(kind: &str, config: Value) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self {
            task: json!({ "kind": kind, "config": config }),
            env: vec![("HOME", home.path().display().to_string())],
            home,
        }
    }

    fn env(mut self, pairs: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.env.extend(pairs);
        self
    }

    /// Stores a second time after so long.
    fn again_after(mut self, seconds: u64) -> Self {
        self.task["again_after"] = seconds.into();
        self
    }

    /// Signs a URL too.
    fn presigning(mut self) -> Self {
        self.task["presign"] = true.into();
        self
    }

    /// Writes a file in the home folder.
    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// What it said: the URL that it signed, or why it failed.
    async fn run(self) -> Result<String, String> {
        let name = std::thread::current().name().unwrap().to_owned();
        let program = std::env::current_exe().unwrap();
        let path = format!("{}:/usr/bin:/bin", self.home.path().display());
        let output = tokio::task::spawn_blocking(move || {
            Command::new(program)
                .args(["--exact", &name, "--nocapture"])
                .env_clear()
                .env("PATH", path)
                .env(TASK, self.task.to_string())
                .envs(self.env.iter().map(|(name, value)| (name, value)))
                .output()
                .unwrap()
        });
        let output = output.await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = |mark: &str| Some(text.split_once(mark)?.1.lines().next()?.to_owned());
        match (told("SUCCEEDED "), told("FAILED ")) {
            (Some(url), None) => Ok(url),
            (None, Some(report)) => Err(report),
            _ => panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

/// Does the task of a child process; false in the test itself.
async fn is_child() -> bool {
    let Ok(task) = std::env::var(TASK) else { return false };
    let task: Value = serde_json::from_str(&task).unwrap();
    match child(&task).await {
        Ok(url) => println!("\nSUCCEEDED {url}"),
        Err(report) => println!("\nFAILED {}", report.replace('\n', " ")),
    }
    true
}

async fn child(task: &Value) -> Result<String, String> {
    let config = task["config"].clone();
    let storage = match task["kind"].as_str() {
        Some("s3") => support::servers::build::<S3Factory>(config).await,
        Some("azure") => support::servers::build::<AzureFactory>(config).await,
        _ => support::servers::build::<GcsFactory>(config).await,
    };
    let storage = storage.map_err(|error| match error.downcast_ref::<agents_core::Error>() {
        Some(error) => error.report(),
        None => error.to_string(),
    })?;
    let session = SessionId::generate();
    let mut waits = vec![0];
    waits.extend(task["again_after"].as_u64());
    let mut uri = String::new();
    for seconds in waits {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let name = ArtifactName::new("a").unwrap();
        let stored = storage.store_bytes(&session, name, "content".into()).await;
        uri = stored.map_err(|error| error.report())?.uri;
        let read = storage.retrieve_bytes(&uri, 100).await;
        assert_eq!(read.map_err(|error| error.report())?, "content");
    }
    match task["presign"].as_bool() {
        Some(true) => storage
            .presign(&uri, Duration::from_secs(60))
            .await
            .map_err(|error| error.report()),
        _ => Ok(String::new()),
    }
}

/// The tokens that a fake has given, and those that came back with a request.
#[derive(Default)]
struct Tokens {
    given: Mutex<Vec<String>>,
    used: Mutex<Vec<String>>,
}

impl Tokens {
    fn give(&self) -> String {
        let mut given = self.given.lock().unwrap();
        let token = format!("token-{}", given.len() + 1);
        given.push(token.clone());
        token
    }

    /// Whether it was given.
    fn check(&self, token: &str) -> bool {
        let known = self.given.lock().unwrap().iter().any(|given| given == token);
        let mut used = self.used.lock().unwrap();
        if known && !used.iter().any(|used| used == token) {
            used.push(token.to_owned());
        }
        known
    }

    fn used(&self) -> usize {
        self.used.lock().unwrap().len()
    }
}

/// The fields of a form.
fn form(body: &[u8]) -> std::collections::BTreeMap<String, String> {
    form_urlencoded::parse(body).into_owned().collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
