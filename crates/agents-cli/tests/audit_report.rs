//! `agents audit report`, looked at with a real browser: headless Chromium, which `cargo xtask install` installs.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.work()).unwrap();
        place
    }

    fn work(&self) -> PathBuf {
        self.0.path().join("work")
    }

    #[track_caller]
    fn agents(&self, args: &[&str], code: i32) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_agents"))
            .args(args)
            .current_dir(self.work())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.0.path().join("home"))
            .env("ISOLATED_AGENTS_STATE_DIR", self.0.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "agents {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the browser printed on standard output and on standard error.
    #[track_caller]
    fn browser(&self, page: &str, args: &[&str]) -> (String, String) {
        let output = Command::new("chromium")
            // The sandbox of the browser cannot be had as root, and the page is ours.
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args([
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args([
                "--disable-sync",
                "--disable-extensions",
                "--disable-default-apps",
                "--no-default-browser-check",
            ])
            .args([
                "--enable-logging=stderr",
                "--window-size=1280,1600",
                "--virtual-time-budget=5000",
            ])
            .arg(format!("--user-data-dir={}", self.0.path().join("browser").display()))
            .args(args)
            .arg(page)
            .env("HOME", self.0.path())
            .stdin(Stdio::null())
            .output()
            .expect("chromium is missing; `cargo xtask install` installs it");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "chromium: {stderr}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), stderr)
    }
}

/// Counts who connects, until the test ends.
fn listener() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    (port, count)
}

/// What an agent would write who wants to be more than text.
fn hostile(port: u16) -> String {
    let url = format!("http://127.0.0.1:{port}/x");
    format!(
        "</pre></style></script><script>document.title='taken'</script><img src=\"{url}\" onerror=\"document.title='taken'\">\
         <svg onload=\"document.title='taken'\"><iframe src=\"{url}\"></iframe><link rel=stylesheet href=\"{url}\">\
         <meta http-equiv=refresh content=\"0;url={url}\">"
    )
}

/// A session whose command, output, artifacts and names are hostile; its page, and its id.
fn session(place: &Place, hostile: &str) -> (PathBuf, String) {
    // Artifacts with such names, a long output, and both streams.
    let script = "printf '%s\\n' \"$1\"; printf '%s\\n' \"$1\" >&2; printf '\\033[31mred\\n'; \
                  printf x > \"/output/<img src=x onerror=alert(1)>.txt\"; printf '%s' \"$1\" > /output/b.txt; \
                  ln -s /etc/passwd /output/escape; i=0; while [ $i -lt 6000 ]; do echo \"line $i of the output of this agent\"; \
                  i=$((i+1)); done; exit 3";
    let ran = place.agents(
        &[
            "run", "--json", "--name", "hostile", "--memory", "64", "--", "sh", "-c", script, "sh", hostile,
        ],
        3,
    );
    let ran: Value = serde_json::from_str(&ran).unwrap();
    let id = ran["session_id"].as_str().unwrap().to_owned();
    let printed = place.agents(&["audit", "report", &id[..16]], 0);
    let page = place.work().join(format!("{id}.html"));
    assert_eq!(printed.trim(), page.file_name().unwrap().to_str().unwrap());
    (page, id)
}

fn url(page: &Path, fragment: &str) -> String {
    format!("file://{}{fragment}", page.display())
}

/// Rows of events that are shown.
fn shown(dom: &str) -> usize {
    dom.match_indices("<tr id=\"e")
        .filter(|(at, _)| !dom[*at..].split('>').next().unwrap_or_default().contains("hidden"))
        .count()
}

#[test]
fn a_hostile_session_is_a_page_of_text() {
    let place = Place::new();
    let (port, connections) = listener();
    let (page, id) = session(&place, &hostile(port));
    let (dom, log) = place.browser(&url(&page, ""), &["--dump-dom"]);
    assert!(
        dom.contains(&format!("<title>Session {id}</title>")),
        "nobody has taken the title"
    );
    for tag in ["<img", "<iframe", "<link", "<svg onload"] {
        assert!(!dom.contains(tag), "{tag} became markup");
    }
    assert_eq!(dom.matches("<script").count(), 1, "only ours");
    assert!(
        dom.matches("&lt;script&gt;document.title='taken'").count() >= 3,
        "it is shown where it was"
    );
    assert!(
        dom.contains("&lt;img src=x onerror=alert(1)&gt;.txt"),
        "the artifact's name"
    );
    assert!(dom.contains("\\u{1b}[31mred"), "an escape sequence is seen");
    assert!(
        dom.contains("are left out") && dom.contains("line 5999 of"),
        "the beginning and the end of the output"
    );
    assert!(
        dom.contains("trail intact") && dom.contains(">failed<") | dom.contains("failed</span>"),
        "status and trail"
    );
    assert_eq!(connections.load(Ordering::SeqCst), 0, "nothing was asked of anybody");
    for complaint in ["CONSOLE", "Refused to", "Uncaught"] {
        assert!(!log.contains(complaint), "the browser complains: {log}");
    }
    // The script works, so its policy knows it: it has shown the filter.
    assert!(
        !dom.split("id=\"filter\"")
            .nth(1)
            .unwrap()
            .split('>')
            .next()
            .unwrap()
            .contains("hidden")
    );
    let all = shown(&dom);
    assert_eq!(dom.matches("<tr id=\"e").count(), all);
    let trail = place.agents(&["audit", "query", "--json", "--limit", "1000", "--session", &id], 0);
    let trail: Value = serde_json::from_str(&trail).unwrap();
    assert_eq!(trail["events"].as_array().unwrap().len(), all, "every event is there");

    let (stored, _) = place.browser(&url(&page, "#find=artifact_stored"), &["--dump-dom"]);
    assert_eq!(shown(&stored), 2, "two artifacts were stored");
    let (grave, _) = place.browser(&url(&page, "#least=2"), &["--dump-dom"]);
    assert!((1..all).contains(&shown(&grave)), "{} of {all}", shown(&grave));
}

#[test]
fn the_page_can_be_seen_and_printed() {
    let place = Place::new();
    let (page, _) = session(&place, "harmless");
    let pixels = |name: &str, args: &[&str]| {
        let file = place.work().join(name);
        let screenshot = format!("--screenshot={}", file.display());
        place.browser(&url(&page, ""), &[args, &[screenshot.as_str()]].concat());
        let image = fs::read(&file).unwrap();
        assert!(image.starts_with(b"\x89PNG"), "{name}");
        image
    };
    let light = pixels("light.png", &[]);
    let dark = pixels("dark.png", &["--blink-settings=preferredColorScheme=0"]);
    // A blank page of this size compresses to a few thousand bytes.
    assert!(
        light.len() > 40_000 && dark.len() > 40_000,
        "{} {}",
        light.len(),
        dark.len()
    );
    assert_ne!(light, dark);
    let pdf = place.work().join("page.pdf");
    place.browser(&url(&page, ""), &[&format!("--print-to-pdf={}", pdf.display())]);
    assert!(fs::read(&pdf).unwrap().starts_with(b"%PDF") && fs::metadata(&pdf).unwrap().len() > 20_000);
}

#[test]
fn a_session_of_elsewhere_is_told_from_its_trail_and_an_unknown_one_is_not() {
    let place = Place::new();
    place.agents(&["run", "-q", "--", "true"], 0);
    let sessions: Value = serde_json::from_str(&place.agents(&["ps", "-a", "--json"], 0)).unwrap();
    let id = sessions[0]["session_id"].as_str().unwrap();
    fs::remove_dir_all(place.0.path().join("state/sessions")).unwrap();
    place.agents(&["audit", "report", id, "--output", "out.html"], 0);
    let page = fs::read_to_string(place.work().join("out.html")).unwrap();
    assert!(page.contains("completed") && page.contains("policy_validated"));
    place.agents(&["audit", "report", "nobody"], 1);
    assert!(!place.work().join("nobody.html").exists());
}
