//! A sink that is away, with the real binary: runs go on, `agents doctor` tells what waits, and the next command delivers it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use agents_testkit::{
    fakes::FakeDatadog,
    proxy::{Fault, FaultProxy},
};
use serde_json::{Value, json};

/// Runs a command, and gives its only line of JSON.
async fn agents(folder: &Path, args: &[&str], code: i32) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agents"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder.join("home"))
        .env("ISOLATED_AGENTS_STATE_DIR", folder.join("state"))
        .env("DD_API_KEY", "api")
        .env("DD_APP_KEY", "app")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stdout} {stderr}");
    let last = stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|_| panic!("{args:?}: {stdout} {stderr}"))
}

#[tokio::test]
async fn runs_go_on_while_the_sink_is_away_and_doctor_tells() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeDatadog::start("api", "app").await.unwrap();
    let server = fake.url().strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let url = format!("http://{}", proxy.address());
    let sink = json!({
        "api_key": "env:DD_API_KEY", "app_key": "env:DD_APP_KEY", "intake_url": url, "api_url": url,
        "timeout_seconds": 1, "spool": {"shutdown_seconds": 2},
    });
    let document = json!({"adapters": {
        "container_runtime": {"type": "native"},
        "audit_logger": {"type": "datadog", "config": sink},
    }});
    fs::write(folder.path().join("isolated_agents_config.json"), document.to_string()).unwrap();

    proxy.set(Fault::Reset);
    let ran = agents(folder.path(), &["run", "--json", "--", "true"], 0).await;
    assert_eq!(fake.count(), 0);
    let told = agents(folder.path(), &["doctor", "--json"], 1).await;
    let writer = &told["spools"][0]["writers"][0];
    let waiting = writer["events"].as_u64().unwrap();
    assert!(waiting > 3, "{told}");
    assert_eq!(writer["live"], false);
    assert!(writer["failing"]["attempts"].as_u64().unwrap() > 0, "{told}");
    let finding = |told: &Value, name: &str| -> Value {
        let findings = told["findings"].as_array().unwrap();
        let of_name = |finding: &&Value| finding["name"].as_str().unwrap().starts_with(name);
        findings.iter().find(of_name).unwrap().clone()
    };
    let spool = finding(&told, "spool of datadog");
    assert_eq!(spool["usable"], false);
    assert!(
        spool["problems"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("has not taken events"),
        "{spool}"
    );
    assert_eq!(finding(&told, "audit_logger")["usable"], true, "the spool takes events");

    proxy.set(Fault::None);
    // Who asks gets the whole trail, since what was left is delivered first.
    let session = ran["session_id"].as_str().unwrap();
    agents(folder.path(), &["audit", "query", "--json", "--session", session], 0).await;
    assert_eq!(fake.count() as u64, waiting);
    let told = agents(folder.path(), &["doctor", "--json"], 0).await;
    assert_eq!(told["spools"][0]["writers"][0]["events"], 0, "{told}");
    assert_eq!(finding(&told, "spool of datadog")["problems"], json!([]));
}
