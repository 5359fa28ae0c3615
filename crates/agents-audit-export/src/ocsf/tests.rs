//! The rules of the schema, version 1.6.0, for the classes that are used: what is required, which numbers there are, and
//! of which attributes at least one must be there.

use agents_core::{AgentId, ChainLink, EventType, SessionId};

use super::*;

/// What every class requires.
const BASE: &[&str] = &[
    "activity_id",
    "category_uid",
    "class_uid",
    "metadata",
    "severity_id",
    "time",
    "type_uid",
];

/// Class, category, activities, and what the class requires besides.
const CLASSES: &[(u64, u64, &[u64], &[&str])] = &[
    (1007, 1, &[0, 1, 2, 3, 4, 5, 99], &["actor", "device", "process"]),
    (2004, 2, &[0, 1, 2, 3, 99], &["finding_info"]),
    (6002, 6, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 99], &["app"]),
    (6003, 6, &[0, 1, 2, 3, 4, 99], &["actor", "api", "src_endpoint"]),
    (
        6006,
        6,
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 99],
        &["actor", "file", "src_endpoint"],
    ),
    (6008, 6, &[0, 1, 2, 99], &[]),
];

/// Object, what it requires, and the attributes of which at least one must be there.
const OBJECTS: &[(&str, &[&str], &[&str])] = &[
    ("/metadata", &["version", "product"], &[]),
    ("/metadata/product", &[], &["name", "uid"]),
    (
        "/actor",
        &[],
        &["process", "user", "invoked_by", "session", "app_name", "app_uid"],
    ),
    ("/actor/user", &[], &["account", "name", "uid"]),
    ("/device", &["type_id"], &["ip", "uid", "name", "hostname"]),
    ("/process", &[], &["pid", "uid", "cpid"]),
    ("/app", &[], &["name", "uid"]),
    ("/api", &["operation"], &[]),
    ("/src_endpoint", &[], &["ip", "uid", "name", "hostname", "svc_name"]),
    ("/file", &["name", "type_id"], &[]),
    ("/file/hashes/0", &["algorithm_id", "value"], &[]),
    ("/finding_info", &["uid"], &[]),
];

fn faults(made: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let number = |key: &str| made[key].as_u64().unwrap_or(u64::MAX);
    let class = number("class_uid");
    let Some((_, category, activities, required)) = CLASSES.iter().find(|(uid, ..)| *uid == class) else {
        return vec![format!("no class {class}")];
    };
    for key in BASE.iter().chain(*required) {
        if made.get(key).is_none_or(Value::is_null) {
            faults.push(format!("{key} is missing"));
        }
    }
    if number("category_uid") != *category || !activities.contains(&number("activity_id")) {
        faults.push("a category or activity of another class".to_owned());
    }
    if number("type_uid") != class * 100 + number("activity_id") {
        faults.push("type_uid is not class_uid * 100 + activity_id".to_owned());
    }
    if !matches!(number("severity_id"), 0..=6 | 99) || !matches!(made["status_id"].as_u64(), None | Some(0..=2 | 99)) {
        faults.push("a severity or status that there is not".to_owned());
    }
    // Whoever says "other" must say what.
    if number("activity_id") == 99 && made["activity_name"].as_str().is_none_or(str::is_empty) {
        faults.push("an activity without a name".to_owned());
    }
    for (path, required, one_of) in OBJECTS {
        let Some(object) = made.pointer(path) else { continue };
        for key in *required {
            if object.get(key).is_none() {
                faults.push(format!("{path}/{key} is missing"));
            }
        }
        if !one_of.is_empty() && one_of.iter().all(|key| object.get(key).is_none()) {
            faults.push(format!("{path} has none of {one_of:?}"));
        }
    }
    faults
}

fn bare(event_type: EventType) -> AuditEvent {
    AuditEvent::now(event_type)
}

fn full(event_type: EventType) -> AuditEvent {
    AuditEvent::now(event_type)
        .with_session(SessionId::generate())
        .with_agent(AgentId::new("agent").unwrap())
        .with_user(Some("me".to_owned()))
        .with_severity(Severity::Critical)
        .with_fact("command", json!(["sh", "-c", "true"]))
        .with_fact("name", "out/a.txt")
        .with_fact("uri", "s3://bucket/a.txt")
        .with_fact("size", 7)
        .with_fact("sha256", "ab".repeat(32))
        .with_fact("version", "v1")
        .with_fact("container_id", "c1")
        .with_fact("exit_code", 3)
        .with_fact("error", "what went wrong")
        .with_fact("status", "failed")
        .with_tag("tag")
        .with_chain(Some(ChainLink::new("w", 9, "a", "b")))
}

#[test]
fn every_event_keeps_the_rules_of_its_class() {
    let mut classes = std::collections::BTreeSet::new();
    for event_type in EventType::ALL {
        for event in [bare(*event_type), full(*event_type)] {
            let made = ocsf(&event);
            assert_eq!(faults(&made), Vec::<String>::new(), "{made:#}");
            classes.insert(made["class_uid"].as_u64());
            assert_eq!(made["time"], event.timestamp.as_millisecond());
            assert_eq!(made["metadata"]["uid"], event.event_id.as_str());
            assert_eq!(made["unmapped"]["payload"], Value::Object(event.payload.clone()));
            assert_eq!(
                made["unmapped"].get("chain"),
                event.chain.as_ref().map(|chain| json!(chain)).as_ref()
            );
        }
    }
    assert_eq!(classes.len(), CLASSES.len(), "each class is used: {classes:?}");
}

#[test]
fn the_rules_can_be_broken() {
    let good = ocsf(&full(EventType::AgentFailed));
    let changes: [fn(&mut Value); 7] = [
        |made| made["class_uid"] = 1.into(),
        |made| made["activity_id"] = 77.into(),
        |made| made["type_uid"] = 1.into(),
        |made| made["severity_id"] = 7.into(),
        |made| made["process"] = json!({}),
        |made| made["device"] = json!({"uid": "x"}),
        |made| drop(made.as_object_mut().unwrap().remove("actor")),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut made = good.clone();
        change(&mut made);
        assert_ne!(faults(&made), Vec::<String>::new(), "change {n}");
    }
}

#[test]
fn what_happened_is_in_the_attributes_that_others_look_at() {
    let failed = ocsf(&full(EventType::AgentFailed));
    assert_eq!(
        (&failed["class_uid"], &failed["activity_name"], &failed["status"]),
        (&json!(1007), &json!("Terminate"), &json!("Failure"))
    );
    assert_eq!(
        (&failed["exit_code"], &failed["process"]["cmd_line"]),
        (&json!(3), &json!("sh -c true"))
    );
    assert_eq!(failed["actor"]["user"]["name"], "me");
    let stored = ocsf(&full(EventType::ArtifactStored));
    assert_eq!(stored["file"]["hashes"][0]["value"], "ab".repeat(32));
    let refused = ocsf(&full(EventType::PolicyViolation));
    assert_eq!(
        (&refused["severity"], &refused["finding_info"]["desc"]),
        (&json!("Critical"), &json!("what went wrong"))
    );
    // An intent has no outcome.
    assert_eq!(ocsf(&full(EventType::AgentLaunched)).get("status_id"), None);
}
