//! Several audit loggers as one: what is read, and what is wrong with it.

use std::{path::Path, sync::Arc};

use agents_config::{AuditPart, Environment, Kind, Loader, LocalSecrets, Registry};
use agents_core::{AuditLogger, BuildContext, Error, Factory, Result};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod fakes;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct SinkConfig {
    url: String,
    batch: Option<u32>,
}

struct Remote;

#[async_trait]
impl Factory for Remote {
    const TYPE: &'static str = "remote";
    type Config = SinkConfig;
    type Adapter = dyn AuditLogger;

    fn validate(config: &SinkConfig) -> Result<()> {
        match config.url.as_str() {
            "" => Err(Error::invalid("url is not set; name one")),
            _ => Ok(()),
        }
    }

    async fn build(config: SinkConfig, _: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        Ok(Arc::new(fakes::Fake(config.url)))
    }
}

fn combine(parts: Vec<AuditPart>) -> Result<Arc<dyn AuditLogger>> {
    let name = |part: &AuditPart| format!("{}:{}", part.logger.location(), part.required);
    let names: Vec<_> = parts.iter().map(name).collect();
    Ok(Arc::new(fakes::Fake(names.join(" "))))
}

fn registry() -> Registry {
    Registry::new()
        .register_audit::<Remote>()
        .and_then(|registry| registry.register_audit_composite(combine))
        .unwrap()
}

fn fake(name: &str) -> Arc<fakes::Fake> {
    Arc::new(fakes::Fake(name.to_owned()))
}

/// Loads a configuration of the audit logger, with fakes of the other kinds.
fn load(config: &Value, variables: &[(&str, &str)]) -> Result<agents_config::Config> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.json");
    let document = json!({"adapters": {"audit_logger": {"type": "composite", "config": config}}});
    std::fs::write(&file, document.to_string()).unwrap();
    Loader::new()
        .with_file(Some(file))
        .with_environment(variables.iter().copied().collect())
        .with_runtime(fake("r"))
        .with_storage(fake("s"))
        .with_policy(fake("p"))
        .load(&registry())
}

async fn built(config: agents_config::Config) -> String {
    let secrets = Arc::new(LocalSecrets::new(Environment::default()));
    let context = BuildContext::new(Path::new("/s"), Path::new("/d"), secrets);
    config.build(&context).await.unwrap().adapters.audit.location()
}

#[tokio::test]
async fn each_sink_is_read_by_its_own_factory() {
    let config = json!({"sinks": [
        {"type": "remote", "config": {"url": "one", "batch": 7}},
        {"type": "remote", "config": {"url": "two"}, "required": false},
    ]});
    let loaded = load(&config, &[]).unwrap();
    assert_eq!(loaded.adapter_type(Kind::AuditLogger), Some("composite"));
    let settings = loaded.settings();
    let sinks = settings
        .iter()
        .find(|setting| setting.key.ends_with("config.sinks"))
        .unwrap();
    assert_eq!(
        sinks.value[0],
        json!({"type": "remote", "required": true, "config": {"url": "one", "batch": 7}})
    );
    assert_eq!(sinks.value[1]["config"], json!({"url": "two", "batch": null}));
    assert_eq!(built(loaded).await, "one:true two:false");
}

#[tokio::test]
async fn a_variable_holds_the_list_as_json() {
    let sinks = r#"[{"type": "remote", "config": {"url": "three"}}]"#;
    let loaded = load(&json!({}), &[("ISOLATED_AGENTS_AUDIT_COMPOSITE_SINKS", sinks)]).unwrap();
    assert_eq!(built(loaded).await, "three:true");
}

#[tokio::test]
async fn one_may_be_within_another() {
    let inner = json!({"sinks": [{"type": "remote", "config": {"url": "a"}}]});
    let loaded = load(&json!({"sinks": [{"type": "composite", "config": inner}]}), &[]).unwrap();
    assert_eq!(built(loaded).await, "a:true:true");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let sink = |config: Value| json!({"sinks": [{"type": "remote", "config": {"url": "u"}}, config]});
    for (config, words) in [
        (json!({}), "sinks has none that is required"),
        (
            json!({"sinks": [{"type": "remote", "config": {"url": "u"}, "required": false}]}),
            "none that is required",
        ),
        (json!({"sink": []}), "did you mean adapters.audit_logger.config.sinks?"),
        (sink(json!({"type": "remotee", "config": {}})), "config.sinks.1.type"),
        (
            sink(json!({"type": "remotee", "config": {}})),
            "did you mean \"remote\"?",
        ),
        (sink(json!({"type": "datadog"})), "enable the feature \"audit-datadog\""),
        (
            sink(json!({"type": "remote"})),
            "sinks.1 of type \"remote\": url is not set",
        ),
        (
            sink(json!({"type": "remote", "config": {"ur": "u"}})),
            "config.sinks.1.config.ur",
        ),
        (
            sink(json!({"type": "remote", "config": {"ur": "u"}})),
            "did you mean adapters.audit_logger.config.sinks.1.config.url?",
        ),
        (
            sink(json!({"type": "remote", "config": {"url": "u", "batch": "x"}})),
            "config.sinks.1.config.batch",
        ),
        (sink(json!({"type": "remote", "requird": true})), "requird"),
        (sink(json!({"config": {}})), "type"),
    ] {
        let error = load(&config, &[]).err().unwrap_or_else(|| panic!("{config} was taken"));
        assert!(error.message().contains(words), "{config}: {error}");
    }
    let twice = registry().register_audit_composite(combine).unwrap_err();
    assert_eq!(twice.kind(), agents_core::ErrorKind::AlreadyExists);
}
