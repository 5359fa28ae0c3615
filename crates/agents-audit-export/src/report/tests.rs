//! What the page shows, and what it must not.

use agents_core::{AgentId, Severity};
use serde_json::json;

use super::*;

const HOSTILE: &str = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>";

fn report() -> SessionReport {
    let id = SessionId::new("s1").unwrap();
    let event = |event_type| {
        AuditEvent::now(event_type)
            .with_session(id.clone())
            .with_agent(AgentId::new("agent").unwrap())
            .with_user(Some(HOSTILE.to_owned()))
    };
    let events = vec![
        event(EventType::SessionCreated)
            .with_fact("image", HOSTILE)
            .with_fact("runtime", "native")
            .with_fact("command", json!(["sh", "-c", HOSTILE])),
        event(EventType::PolicyCapClamped)
            .with_severity(Severity::Warning)
            .with_fact("field", HOSTILE)
            .with_fact("from", 4096)
            .with_fact("to", 512)
            .with_fact("code", "max_memory_mb"),
        event(EventType::PolicyValidated)
            .with_fact("warnings", json!([HOSTILE]))
            .with_fact("policy", json!({"memory_mb": 512, "cpu_cores": 1.0, HOSTILE: HOSTILE})),
        event(EventType::ContainerCreated).with_fact(
            "effective",
            json!([{"field": "network", "requested": "none", "effective": HOSTILE, "holds": true}]),
        ),
        event(EventType::ArtifactStored)
            .with_fact("name", HOSTILE)
            .with_fact("uri", HOSTILE)
            .with_fact("size", 1536)
            .with_fact("sha256", "ab".repeat(32)),
        event(EventType::SecurityViolation)
            .with_severity(Severity::Critical)
            .with_fact("error", HOSTILE),
        event(EventType::SessionClosed)
            .with_fact("status", "failed")
            .with_fact("ending", json!({"kind": "exited", "code": 3}))
            .with_fact(
                "resource_samples",
                json!([
                    {"at_ms": 10, "cpu_percent": 50.0, "memory_mb": 64.0, "pids": null},
                    {"at_ms": 20, "cpu_percent": 100.0, "memory_mb": 100.0, "pids": HOSTILE},
                    {"at_ms": HOSTILE, "cpu_percent": HOSTILE, "memory_mb": -1.0},
                ]),
            )
            .with_fact(
                "timings_ms",
                json!({"validate": 1.0, "provision": 5.0, "run": 20.0, "collect": 2.0, "destroy": 1.0, "total": 30.0}),
            ),
    ];
    SessionReport::new(id, events)
        .with_inspection(json!({
            "status": HOSTILE,
            "agent_id": HOSTILE,
            "result": {
                "error": HOSTILE,
                "refused_artifacts": [{"name": HOSTILE, "reason": HOSTILE}],
                "usage": {"cpu_seconds": 0.01, "memory_peak_bytes": 104857600},
            },
        }))
        .with_output(
            vec![
                OutputPiece {
                    stderr: false,
                    text: HOSTILE.to_owned(),
                    after_gap: false,
                },
                OutputPiece {
                    stderr: true,
                    text: "\u{1b}[31mred".to_owned(),
                    after_gap: true,
                },
            ],
            4096,
        )
        .with_chain(ChainCheck {
            verdict: ChainVerdict::Broken,
            summary: HOSTILE.to_owned(),
        })
        .with_location(HOSTILE)
}

#[test]
fn nothing_of_the_agent_is_markup() {
    let page = report().to_html();
    for tag in ["<script", "</script", "<style", "</style"] {
        assert_eq!(page.matches(tag).count(), 1, "{tag}");
    }
    for tag in [
        "<img",
        "<svg onload",
        "onerror=alert(2)>\"",
        "<iframe",
        "<link",
        "<object",
    ] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert!(
        page.matches("&lt;script&gt;alert(1)").count() > 15,
        "it is shown where it was"
    );
    assert!(page.contains("\\u{1b}[31mred") && page.contains("4.0 KiB are left out"));
    assert!(!page.contains('\u{1b}'));
}

#[test]
fn it_needs_nothing_else_and_the_policy_knows_its_script_and_style() {
    let page = report().to_html();
    for elsewhere in [
        "src=\"",
        "href=\"http",
        "url(",
        "@import",
        "style=\"",
        "fetch(",
        "onclick",
    ] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    let hash = |from: &str, to: &str| {
        let (_, rest) = page.split_once(from).unwrap();
        STANDARD.encode(Sha256::digest(rest.split_once(to).unwrap().0))
    };
    let (style, script) = (hash("<style>", "</style>"), hash("<script>", "</script>"));
    assert!(page.contains(&format!("style-src 'sha256-{style}'").replace('\'', "&#39;")));
    assert!(page.contains(&format!("script-src 'sha256-{script}'").replace('\'', "&#39;")));
}

#[test]
fn what_is_known_is_shown() {
    let page = report().to_html();
    for words in [
        "trail tampered with",
        "<dd>3</dd>",
        "30 ms",
        "100.0 MiB",
        "of 512.0 MiB",
        "1.5 KiB",
        "0.50 of 1 cores on average",
        "<td class=\"was\">4096</td>",
        "&quot;holds&quot;: true",
    ] {
        assert!(page.contains(words), "{words}");
    }
    for id in ["timeline", "resources", "decisions", "artifacts", "output", "events"] {
        assert!(page.contains(&format!("<section id=\"{id}\"")), "{id}");
        assert!(page.contains(&format!("href=\"#{id}\"")), "{id}");
    }
}

#[test]
fn little_is_enough() {
    let page = SessionReport::new(SessionId::new("s1").unwrap(), Vec::new()).to_html();
    assert!(page.contains("not closed") && page.contains("None were stored"));
}

#[test]
fn many_events_are_cut_in_the_middle() {
    let events = (0..6000).map(|_| AuditEvent::now(EventType::SystemWarning)).collect();
    let page = SessionReport::new(SessionId::new("s1").unwrap(), events).to_html();
    assert!(page.contains("1000 events are left out here"));
    assert_eq!(page.matches("<tr id=\"e").count(), 5000);
}

#[test]
fn use_over_time_is_drawn() {
    let page = report().to_html();
    assert!(page.contains("CPU over 20 ms: at most 100 % of a core, 100 % of a core allowed"));
    assert!(page.contains("Memory over 20 ms: at most 100.0 MiB, 512.0 MiB allowed"));
    assert_eq!(page.matches("<polyline").count(), 2, "nobody counted processes");
    assert_eq!(page.matches("<circle class=\"p2\"").count(), 2);
    // The limit of memory is too far away to be drawn.
    assert_eq!(page.matches("class=\"limit\"").count(), 1);
    assert!(!page.contains("no readings over time"));

    let none = SessionReport::new(SessionId::new("s1").unwrap(), Vec::new()).to_html();
    assert!(none.contains("no readings over time") && !none.contains("<polyline"));
    assert!(none.contains("<b>0 B</b>"));
}
