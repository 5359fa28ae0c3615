//! Loading from files, variables and code, with adapters that only exist here.

use std::{path::Path, sync::Arc};

use agents_config::{Built, Config, Environment, Kind, Loader, LocalSecrets, Registry, Setting};
use agents_core::{
    AuditClass, AuditLogger, AuditSettings, BuildContext, CommandRecord, ContainerRuntime, EnvironmentRecord, Error,
    ErrorKind, Factory, PolicyValidator, Requirement, Result, SecretRef, StorageBackend,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod fakes;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct BucketConfig {
    bucket: String,
    region: Option<String>,
    parts: Option<u64>,
    verify: bool,
    tags: Vec<String>,
    password: Option<SecretRef>,
    nested: Nested,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Nested {
    depth: u32,
}

struct Bucket;

#[async_trait]
impl Factory for Bucket {
    const TYPE: &'static str = "bucket";
    type Config = BucketConfig;
    type Adapter = dyn StorageBackend;

    fn validate(config: &BucketConfig) -> Result<()> {
        match config.bucket.as_str() {
            "" => Err(Error::invalid("bucket is not set; name one")),
            _ => Ok(()),
        }
    }

    async fn build(config: BucketConfig, context: &BuildContext) -> Result<Arc<dyn StorageBackend>> {
        if let Some(password) = &config.password {
            context.secrets.resolve(password).await?;
        }
        Ok(Arc::new(fakes::Fake(format!("bucket {}", config.bucket))))
    }
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Plain {
    path: String,
    log_file: String,
}

macro_rules! plain {
    ($name:ident, $type:literal, $adapter:ident, $available:literal) => {
        struct $name;

        #[async_trait]
        impl Factory for $name {
            const TYPE: &'static str = $type;
            type Config = Plain;
            type Adapter = dyn $adapter;

            fn validate(_: &Plain) -> Result<()> {
                Ok(())
            }

            async fn build(config: Plain, _: &BuildContext) -> Result<Arc<dyn $adapter>> {
                Ok(Arc::new(fakes::Fake(format!(
                    "{} {} {}",
                    $type, $available, config.path
                ))))
            }
        }
    };
}

plain!(Local, "local", StorageBackend, true);
plain!(File, "file", AuditLogger, true);
plain!(Rules, "default", PolicyValidator, true);
plain!(Native, "native", ContainerRuntime, true);
plain!(Podman, "podman", ContainerRuntime, true);
plain!(Docker, "docker", ContainerRuntime, true);

fn registry() -> Registry {
    Registry::new()
        .register_runtime::<Native>()
        .and_then(Registry::register_storage::<Local>)
        .and_then(Registry::register_storage::<Bucket>)
        .and_then(Registry::register_audit::<File>)
        .and_then(Registry::register_policy::<Rules>)
        .unwrap()
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().copied().collect()
}

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config> {
    load_as("isolated_agents_config.yaml", text, variables, |loader| loader)
}

fn load_as(name: &str, text: &str, variables: &[(&str, &str)], with: impl FnOnce(Loader) -> Loader) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), text).unwrap();
    let loader = Loader::new()
        .with_environment(environment(variables))
        .with_folders([folder.path().to_owned()]);
    with(loader).load(&registry())
}

fn fault(loaded: Result<Config>) -> String {
    let error = loaded.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error.report()
}

fn setting(config: &Config, key: &str) -> (Value, String) {
    let settings = config.settings();
    let found: Option<&Setting> = settings.iter().find(|setting| setting.key == key);
    let found = found.unwrap_or_else(|| panic!("{key} in {settings:#?}"));
    (found.value.clone(), found.source.clone())
}

fn storage(config: &Config, key: &str) -> Value {
    setting(config, &format!("adapters.storage_backend.config.{key}")).0
}

async fn build(config: Config) -> Result<Built> {
    let secrets = Arc::new(LocalSecrets::new(environment(&[("PASSWORD", "s3cret")])));
    config.build(&BuildContext::new("/state", "/data", secrets)).await
}

const BUCKET: &str = "adapters: {storage_backend: {type: bucket, config: {bucket: from-file, parts: 3}}}";

#[tokio::test]
async fn without_any_source_there_are_the_defaults() {
    let config = Loader::new().load(&registry()).unwrap();
    assert_eq!(config.adapter_type(Kind::ContainerRuntime), Some("native"));
    assert_eq!(
        setting(&config, "adapters.storage_backend.type"),
        (json!("local"), "default".to_owned())
    );
    assert!(config.warnings().is_empty() && config.file().is_none());
    let built = build(config).await.unwrap();
    assert_eq!(built.adapters.storage.info().name, "local true ");
}

#[test]
fn later_sources_win_and_each_value_knows_its_own() {
    let config = load(BUCKET, &[]).unwrap();
    assert_eq!(storage(&config, "bucket"), "from-file");

    let config = load(BUCKET, &[("ISOLATED_AGENTS_STORAGE_BUCKET_BUCKET", "from-env")]).unwrap();
    let (value, source) = setting(&config, "adapters.storage_backend.config.bucket");
    assert_eq!(value, "from-env");
    assert_eq!(source, "environment variable ISOLATED_AGENTS_STORAGE_BUCKET_BUCKET");
    let (value, source) = setting(&config, "adapters.storage_backend.config.parts");
    assert_eq!(value, 3);
    assert!(source.starts_with("file /"), "{source}");
    assert_eq!(setting(&config, "adapters.storage_backend.config.verify").1, "default");

    let config = load_as(
        "isolated_agents_config.yaml",
        BUCKET,
        &[("ISOLATED_AGENTS_STORAGE_BUCKET_BUCKET", "from-env")],
        |loader| loader.with_value(Kind::StorageBackend, "bucket", "from-code"),
    )
    .unwrap();
    assert_eq!(storage(&config, "bucket"), "from-code");
}

#[test]
fn a_variable_stays_text_until_the_type_asks_otherwise() {
    let config = load(
        BUCKET,
        &[
            ("ISOLATED_AGENTS_STORAGE_BUCKET_BUCKET", "0123"),
            ("ISOLATED_AGENTS_STORAGE_BUCKET_PARTS", "7"),
            ("ISOLATED_AGENTS_STORAGE_BUCKET_VERIFY", "true"),
            ("ISOLATED_AGENTS_STORAGE_BUCKET_TAGS", "a, b"),
            ("ISOLATED_AGENTS_STORAGE_BUCKET_NESTED", r#"{"depth": 2}"#),
        ],
    )
    .unwrap();
    assert_eq!(storage(&config, "bucket"), "0123");
    assert_eq!(storage(&config, "parts"), 7);
    assert_eq!(storage(&config, "verify"), true);
    assert_eq!(storage(&config, "tags"), json!(["a", "b"]));
    assert_eq!(storage(&config, "nested"), json!({"depth": 2}));
}

#[test]
fn a_value_that_does_not_fit_names_its_source_and_key() {
    let text = fault(load(BUCKET, &[("ISOLATED_AGENTS_STORAGE_BUCKET_PARTS", "many")]));
    for part in [
        "adapters.storage_backend.config.parts",
        "ISOLATED_AGENTS_STORAGE_BUCKET_PARTS",
        "many",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = fault(load(
        "adapters: {storage_backend: {type: bucket, config: {bucket: 12}}}",
        &[],
    ));
    assert!(
        text.contains("isolated_agents_config.yaml") && text.contains("config.bucket"),
        "{text}"
    );
}

#[test]
fn an_unknown_key_names_the_file_the_key_and_the_nearest() {
    for (yaml, key, nearest) in [
        ("adapterz: {}", "adapterz", "adapters"),
        (
            "adapters: {storage_backed: {}}",
            "storage_backed",
            "adapters.storage_backend",
        ),
        (
            "adapters: {storage_backend: {typ: local}}",
            "typ",
            "adapters.storage_backend.type",
        ),
        (
            "adapters: {storage_backend: {type: bucket, config: {bucket: b, regoin: x}}}",
            "adapters.storage_backend.config.regoin",
            "adapters.storage_backend.config.region",
        ),
        (
            "adapters: {storage_backend: {type: bucket, config: {bucket: b, nested: {dept: 1}}}}",
            "adapters.storage_backend.config.nested.dept",
            "adapters.storage_backend.config.nested.depth",
        ),
        ("storage: {type: local, confg: {}}", "storage.confg", "storage.config"),
        ("agents: {a: {workspce: x}}", "agents.a.workspce", "agents.a.workspace"),
        (
            "default_policy: {memory_md: 1}",
            "default_policy.memory_md",
            "memory_mb",
        ),
    ] {
        let text = fault(load(yaml, &[]));
        assert!(text.contains("isolated_agents_config.yaml"), "{text}");
        assert!(text.contains(key), "{text}");
        assert!(text.contains(&format!("did you mean {nearest}?")), "{text}");
    }
}

#[test]
fn every_fault_is_reported_at_once() {
    let text = fault(load(
        "adapters: {storage_backend: {type: bucket, config: {regoin: x, partz: 1}}, audit_logger: {type: fil}}",
        &[("ISOLATED_AGENTS_POLICY_DEFAULT_PATHS", "x")],
    ));
    for part in [
        "regoin",
        "partz",
        "\"fil\"",
        "did you mean \"file\"",
        "ISOLATED_AGENTS_POLICY_DEFAULT_PATHS",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn an_unknown_variable_of_the_chosen_type_is_an_error_and_any_other_a_warning() {
    let text = fault(load("", &[("ISOLATED_AGENTS_STORAGE_LOCAL_XYZ", "1")]));
    assert!(text.contains("ISOLATED_AGENTS_STORAGE_LOCAL_XYZ"), "{text}");
    let text = fault(load("", &[("ISOLATED_AGENTS_STORAGE_LOCAL_PAHT", "1")]));
    assert!(
        text.contains("did you mean ISOLATED_AGENTS_STORAGE_LOCAL_PATH?"),
        "{text}"
    );

    // For a registered type that is not chosen it is left alone, so that one environment serves two configurations.
    let config = load("", &[("ISOLATED_AGENTS_STORAGE_BUCKET_REGION", "x")]).unwrap();
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());

    let config = load(
        "",
        &[
            ("ISOLATED_AGENTS_STORAGE_BACKED", "local"),
            ("ISOLATED_AGENTS_LOG", "debug"),
        ],
    )
    .unwrap();
    let [warning] = config.warnings() else {
        panic!("{:?}", config.warnings())
    };
    assert!(
        warning.contains("did you mean ISOLATED_AGENTS_STORAGE_BACKEND?"),
        "{warning}"
    );
}

#[test]
fn the_older_variables_load_with_a_warning_and_the_newer_win() {
    let old = [
        ("ISOLATED_AGENTS_STORAGE_ADAPTER", "bucket"),
        ("ISOLATED_AGENTS_STORAGE_BUCKET", "old"),
        ("ISOLATED_AGENTS_AUDIT_LOG_FILE", "a.jsonl"),
        ("ISOLATED_AGENTS_CONTAINER_PATH", "/sock"),
    ];
    let config = load("", &old).unwrap();
    assert_eq!(storage(&config, "bucket"), "old");
    assert_eq!(setting(&config, "adapters.audit_logger.config.log_file").0, "a.jsonl");
    assert_eq!(setting(&config, "adapters.container_runtime.config.path").0, "/sock");
    assert_eq!(config.warnings().len(), 4, "{:?}", config.warnings());
    let all = config.warnings().join("\n");
    for new in [
        "ISOLATED_AGENTS_STORAGE_BACKEND",
        "ISOLATED_AGENTS_STORAGE_BUCKET_BUCKET",
        "ISOLATED_AGENTS_RUNTIME_NATIVE_PATH",
    ] {
        assert!(all.contains(new), "{new}: {all}");
    }

    let mut both = old.to_vec();
    both.push(("ISOLATED_AGENTS_STORAGE_BUCKET_BUCKET", "new"));
    assert_eq!(storage(&load("", &both).unwrap(), "bucket"), "new");
}

#[test]
fn the_four_shapes_load_and_the_last_three_warn() {
    let expected = |text: &str, warnings: usize| {
        let config = load(text, &[]).unwrap();
        assert_eq!(config.adapter_type(Kind::StorageBackend), Some("bucket"), "{text}");
        assert_eq!(storage(&config, "bucket"), "b", "{text}");
        assert_eq!(config.warnings().len(), warnings, "{:?}", config.warnings());
        for warning in config.warnings() {
            assert!(
                warning.contains("deprecated") && warning.contains("adapters.storage_backend"),
                "{warning}"
            );
        }
    };
    expected("adapters: {storage_backend: {type: bucket, config: {bucket: b}}}", 0);
    expected("{storage_adapter: bucket, storage_config: {bucket: b}}", 2);
    expected("storage: {type: bucket, config: {bucket: b}}", 1);

    let config = load_as(
        "isolated-agents.yaml",
        "default_policy: {memory_mb: 64}\nagents: {a: {workspace: ws, policy: {pids_limit: 3}, description: d}}\nmetadata: {x: 1}\n",
        &[],
        |loader| loader,
    )
    .unwrap();
    assert_eq!(config.default_policy(), Some(&json!({"memory_mb": 64})));
    let agent = &config.agents()["a"];
    assert!(agent.workspace.as_deref().unwrap().is_absolute() && agent.workspace.as_deref().unwrap().ends_with("ws"));
    assert_eq!(agent.policy, Some(json!({"pids_limit": 3})));
    assert_eq!(config.warnings().len(), 2, "{:?}", config.warnings());
}

#[test]
fn one_kind_in_two_shapes_is_refused() {
    let text = fault(load("{storage_adapter: local, storage: {type: bucket}}", &[]));
    assert!(text.contains("second time"), "{text}");
}

#[test]
fn toml_and_json_load_too_and_two_files_in_one_folder_do_not() {
    let toml = "[adapters.storage_backend]\ntype = \"bucket\"\nconfig = { bucket = \"b\" }\n";
    let config = load_as("isolated_agents_config.toml", toml, &[], |loader| loader).unwrap();
    assert_eq!(storage(&config, "bucket"), "b");
    let json = r#"{"adapters": {"storage_backend": {"type": "bucket", "config": {"bucket": "b"}}}}"#;
    let config = load_as("isolated_agents_config.json", json, &[], |loader| loader).unwrap();
    assert_eq!(storage(&config, "bucket"), "b");

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("isolated_agents_config.json"), json).unwrap();
    std::fs::write(folder.path().join("isolated_agents_config.toml"), toml).unwrap();
    let loaded = Loader::new().with_folders([folder.path().to_owned()]).load(&registry());
    assert!(fault(loaded).contains("two configuration files"));
}

#[test]
fn a_named_file_must_exist_and_comes_before_the_folders() {
    let error = Loader::new()
        .with_file(Some("/no/such/file.yaml".into()))
        .load(&registry())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("/no/such/file.yaml"));

    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.yaml");
    std::fs::write(
        &other,
        "adapters: {storage_backend: {type: bucket, config: {bucket: other}}}",
    )
    .unwrap();
    let config = load(BUCKET, &[("ISOLATED_AGENTS_CONFIG", other.to_str().unwrap())]).unwrap();
    assert_eq!(storage(&config, "bucket"), "other");
    assert_eq!(config.file(), Some(Path::new(&other)));
}

#[test]
fn the_first_folder_with_a_file_wins() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(second.path().join("isolated_agents_config.yaml"), BUCKET).unwrap();
    let folders = [first.path().to_owned(), second.path().to_owned()];
    let config = Loader::new().with_folders(folders.clone()).load(&registry()).unwrap();
    assert_eq!(storage(&config, "bucket"), "from-file");
    std::fs::write(first.path().join("isolated_agents_config.yaml"), "").unwrap();
    let config = Loader::new().with_folders(folders).load(&registry()).unwrap();
    assert_eq!(config.adapter_type(Kind::StorageBackend), Some("local"));
}

#[test]
fn a_files_settings_do_not_leak_into_a_type_chosen_later() {
    let config = load(BUCKET, &[("ISOLATED_AGENTS_STORAGE_BACKEND", "local")]).unwrap();
    assert_eq!(config.adapter_type(Kind::StorageBackend), Some("local"));
    let [note] = config.notes() else {
        panic!("{:?}", config.notes())
    };
    assert!(note.contains("bucket") && note.contains("not used"), "{note}");
}

#[test]
fn an_unknown_type_lists_what_there_is() {
    let text = fault(load("", &[("ISOLATED_AGENTS_STORAGE_BACKEND", "s3")]));
    for part in [
        "\"s3\"",
        "ISOLATED_AGENTS_STORAGE_BACKEND",
        "not built in",
        "local, bucket",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = fault(load("adapters: {storage_backend: {type: memory}}", &[]));
    assert!(text.contains("storage-memory"), "{text}");
}

#[test]
fn a_type_cannot_be_registered_twice() {
    let error = registry().register_storage::<Local>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("\"local\""), "{error}");
}

#[test]
fn the_factorys_own_check_is_part_of_loading() {
    let text = fault(load("adapters: {storage_backend: {type: bucket}}", &[]));
    assert!(
        text.contains("adapters.storage_backend.config") && text.contains("bucket is not set"),
        "{text}"
    );
}

#[tokio::test]
async fn secrets_are_references_and_resolved_when_built() {
    let with = |secret: &str| {
        format!("adapters: {{storage_backend: {{type: bucket, config: {{bucket: b, password: {secret}}}}}}}")
    };
    let text = fault(load(&with("hunter2"), &[]));
    assert!(text.contains("password") && !text.contains("hunter2"), "{text}");

    let config = load(&with("\"env:PASSWORD\""), &[]).unwrap();
    assert_eq!(storage(&config, "password"), "env:PASSWORD");
    build(config).await.unwrap();

    let error = build(load(&with("\"env:MISSING\""), &[]).unwrap()).await.unwrap_err();
    assert!(
        error.to_string().contains("MISSING") && error.to_string().contains("bucket"),
        "{error}"
    );
}

#[test]
fn what_must_be_on_record_is_set_in_the_file_and_over_it_in_code() {
    let default = Loader::new().load(&registry()).unwrap();
    assert_eq!(default.audit_settings(), &AuditSettings::new());
    assert!(!default.settings().iter().any(|setting| setting.key == "audit_trail"));

    let text = "audit_trail: {classes: {exec: best_effort}, commands: hash, key: 'env:AUDIT_KEY'}";
    let config = load(text, &[]).unwrap();
    let expected = AuditSettings::new()
        .with_class(AuditClass::Exec, Requirement::BestEffort)
        .with_commands(CommandRecord::Hash)
        .with_key(Some("env:AUDIT_KEY".parse().unwrap()));
    assert_eq!(config.audit_settings(), &expected);
    let (value, source) = setting(&config, "audit_trail");
    assert_eq!(value["classes"], json!({"exec": "best_effort"}));
    assert!(source.starts_with("file "), "{source}");

    let in_code = load_as("isolated_agents_config.yaml", text, &[], |loader| {
        loader.with_audit_settings(AuditSettings::new().with_environment(EnvironmentRecord::Omit))
    })
    .unwrap();
    assert_eq!(in_code.audit_settings().environment, EnvironmentRecord::Omit);
    assert_eq!(in_code.audit_settings().commands, CommandRecord::Full);
    assert_eq!(setting(&in_code, "audit_trail").1, "code");

    for (text, word) in [
        ("audit_trail: {classes: {exce: required}}", "did you mean \"exec\"?"),
        ("audit_trail: {classes: {exec: never}}", "best_effort"),
        ("audit_trail: {comands: full}", "comands"),
        ("audit_trail: {key: hunter2}", "reference"),
        ("audit_trail: 7", "must be a map"),
        ("audit_trial: {}", "did you mean audit_trail?"),
    ] {
        let fault = fault(load(text, &[]));
        assert!(fault.contains(word) && !fault.contains("hunter2"), "{fault}");
    }
}

#[tokio::test]
async fn a_ready_adapter_wins_over_everything() {
    let ready: Arc<dyn StorageBackend> = Arc::new(fakes::Fake("ready".to_owned()));
    let config = load_as(
        "isolated_agents_config.yaml",
        BUCKET,
        &[("ISOLATED_AGENTS_STORAGE_BACKEND", "nonsense")],
        |loader| loader.with_storage(ready),
    )
    .unwrap();
    assert_eq!(build(config).await.unwrap().adapters.storage.info().name, "ready");
}

#[tokio::test]
async fn a_runtime_that_nobody_named_is_the_first_available() {
    // `Fake` says that it is available when its name holds "true".
    let both = registry().register_runtime::<Podman>().unwrap();
    let built = build(Loader::new().load(&both).unwrap()).await.unwrap();
    assert_eq!(built.adapters.runtime.info().name, "podman true ");
    assert!(
        built.notes.iter().any(|note| note.contains("podman")),
        "{:?}",
        built.notes
    );

    plain!(Absent, "podman", ContainerRuntime, false);
    let both = registry().register_runtime::<Absent>().unwrap();
    let built = build(Loader::new().load(&both).unwrap()).await.unwrap();
    assert_eq!(built.adapters.runtime.info().name, "native true ");
    assert!(
        built.notes.iter().any(|note| note.contains("native")),
        "{:?}",
        built.notes
    );

    // One that is not a default is taken only when it is the only one.
    let docker = Registry::new().register_runtime::<Docker>().unwrap();
    let text = Loader::new().load(&docker).unwrap_err().to_string();
    assert!(!text.contains("container_runtime"), "{text}");
}

#[test]
fn settings_for_a_runtime_that_nobody_chose_are_refused_when_it_is_unclear_whose_they_are() {
    let both = registry().register_runtime::<Podman>().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.yaml");
    std::fs::write(&path, "adapters: {container_runtime: {config: {path: /x}}}").unwrap();
    let text = fault(Loader::new().with_file(Some(path)).load(&both));
    assert!(text.contains("podman or native"), "{text}");
}
