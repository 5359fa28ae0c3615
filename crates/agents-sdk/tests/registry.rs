//! The facade brings its adapters together.

use agents_sdk::{
    config::{Kind, Registry},
    configure_adapters,
    core::ErrorKind,
    default_registry,
};

#[test]
fn every_feature_brings_its_adapter() {
    let registry = default_registry().unwrap();
    let present = |all: &[(&'static str, bool)]| -> Vec<&'static str> {
        all.iter().filter(|kind| kind.1).map(|kind| kind.0).collect()
    };
    let runtimes = [
        ("native", cfg!(feature = "runtime-native")),
        ("docker", cfg!(feature = "runtime-docker")),
        ("podman", cfg!(feature = "runtime-podman")),
    ];
    assert_eq!(registry.types(Kind::ContainerRuntime), present(&runtimes));
    let storages = [
        ("local", cfg!(feature = "storage-local")),
        ("s3", cfg!(feature = "storage-s3")),
        ("azure", cfg!(feature = "storage-azure")),
        ("gcs", cfg!(feature = "storage-gcs")),
        ("memory", cfg!(feature = "storage-memory")),
    ];
    assert_eq!(registry.types(Kind::StorageBackend), present(&storages));
    let audits = [
        ("file", cfg!(feature = "audit-file")),
        ("database", cfg!(feature = "audit-database")),
        ("elasticsearch", cfg!(feature = "audit-elasticsearch")),
        ("datadog", cfg!(feature = "audit-datadog")),
        ("cloudwatch", cfg!(feature = "audit-cloudwatch")),
        ("otlp", cfg!(feature = "audit-otlp")),
        ("composite", cfg!(feature = "audit-composite")),
    ];
    assert_eq!(registry.types(Kind::AuditLogger), present(&audits));
    let policies: &[&str] = if cfg!(feature = "policy-default") {
        &["default"]
    } else {
        &[]
    };
    assert_eq!(registry.types(Kind::PolicyValidator), policies);
}

#[test]
fn without_adapters_the_error_says_so() {
    let error = configure_adapters()
        .with_registry(Registry::new())
        .with_environment([("HOME", "/h")].into_iter().collect())
        .load()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    for kind in Kind::ALL {
        assert!(
            error.message().contains(&format!("adapters.{kind}.type is not set")),
            "{error}"
        );
    }
}

#[cfg(all(
    feature = "runtime-native",
    feature = "storage-local",
    feature = "storage-memory",
    feature = "audit-file",
    feature = "policy-default"
))]
mod with_everything {
    use super::*;

    fn environment(home: &std::path::Path) -> agents_sdk::config::Environment {
        [("HOME", home)].into_iter().collect()
    }

    #[tokio::test]
    async fn code_chooses_over_the_file_and_the_state_folder_is_made() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("c.yaml");
        std::fs::write(
            &file,
            "adapters: {storage_backend: {type: local, config: {base_path: /nowhere}}}",
        )
        .unwrap();
        let engine = configure_adapters()
            .with_environment(environment(home.path()))
            .with_file(Some(file))
            .with_storage_backend("memory")
            .build()
            .await
            .unwrap();
        assert_eq!(engine.adapters().storage.info().adapter_type, "memory");
        assert_eq!(engine.adapters().runtime.info().adapter_type, "native");
        assert!(home.path().join(".local/state/isolated-agents").is_dir());
    }

    #[tokio::test]
    async fn secrets_of_a_policy_are_resolved_and_a_missing_one_is_named() {
        let secrets = agents_sdk::config::LocalSecrets::new([("TOKEN", "s3cret")].into_iter().collect());
        let policy = |text: &str| agents_sdk::core::Policy::from_json(text).unwrap();
        let good = policy(r#"{"tmpfs_secrets": {"token": "env:TOKEN"}}"#);
        let resolved = agents_sdk::resolve_secrets(&good, &secrets).await.unwrap();
        assert_eq!(resolved[0].name, "token");
        assert_eq!(resolved[0].value.expose(), b"s3cret");
        let bad = policy(r#"{"tmpfs_secrets": {"token": "env:NOPE"}}"#);
        let error = agents_sdk::resolve_secrets(&bad, &secrets).await.unwrap_err();
        assert!(error.message().contains("NOPE"), "{error}");
    }

    #[cfg(all(feature = "audit-database", feature = "audit-elasticsearch"))]
    #[test]
    fn a_spool_stands_in_front_of_what_is_reached_over_a_network() {
        use agents_sdk::config::{Kind, Setting};
        let home = tempfile::tempdir().unwrap();
        let spool =
            |adapter: &str, key: &str, value: &str, variables: &[(&str, &str)]| -> agents_sdk::core::Result<_> {
                let variables = variables.iter().copied().chain([("HOME", "/h")]);
                let loaded = configure_adapters()
                    .with_environment(variables.collect())
                    .with_state_dir(Some(home.path().to_owned()))
                    .with_audit_logger(adapter)
                    .with_value(Kind::AuditLogger, key, value)
                    .load()?;
                let of_spool = |setting: &Setting| setting.key == "adapters.audit_logger.config.spool";
                let setting = loaded.config.settings().into_iter().find(of_spool);
                Ok(setting.map(|setting| setting.value))
            };
        let on = spool("elasticsearch", "endpoint", "https://search.example", &[])
            .unwrap()
            .unwrap();
        assert_eq!((&on["max_mb"], &on["shutdown_seconds"]), (&256.into(), &5.into()));
        assert!(spool("database", "url", "env:URL", &[]).unwrap().unwrap().is_object());
        assert_eq!(spool("database", "path", "/a.db", &[]).unwrap().unwrap(), false);
        assert_eq!(spool("file", "log_path", "/a", &[]).unwrap(), None);
        let variable = "ISOLATED_AGENTS_AUDIT_ELASTICSEARCH_SPOOL";
        let of = |text| {
            spool(
                "elasticsearch",
                "endpoint",
                "https://search.example",
                &[(variable, text)],
            )
        };
        assert_eq!(of("false").unwrap().unwrap(), false);
        assert_eq!(of(r#"{"max_mb": 3}"#).unwrap().unwrap()["max_mb"], 3);
        let error = of(r#"{"max": 3}"#).unwrap_err();
        assert!(
            error.message().contains("max_mb") && error.message().contains(variable),
            "{error}"
        );
        assert!(
            of(r#"{"max_mb": 0}"#)
                .unwrap_err()
                .message()
                .contains("spool.max_mb is 0")
        );
        assert!(of("maybe").is_err());
    }

    #[test]
    fn the_adapters_example_files_load() {
        let examples = [
            include_str!("../../agents-audit-file/example.yaml"),
            #[cfg(feature = "audit-database")]
            include_str!("../../agents-audit-sql/example.yaml"),
            #[cfg(feature = "audit-elasticsearch")]
            include_str!("../../agents-audit-elasticsearch/example.yaml"),
            #[cfg(feature = "audit-datadog")]
            include_str!("../../agents-audit-datadog/example.yaml"),
            #[cfg(feature = "audit-cloudwatch")]
            include_str!("../../agents-audit-cloudwatch/example.yaml"),
            #[cfg(all(
                feature = "audit-composite",
                feature = "audit-cloudwatch",
                feature = "audit-datadog",
                feature = "audit-elasticsearch"
            ))]
            include_str!("../../agents-layers/example.yaml"),
            include_str!("../../agents-policy-default/example.yaml"),
        ];
        let home = tempfile::tempdir().unwrap();
        for example in examples {
            let file = home.path().join("c.yaml");
            std::fs::write(&file, example).unwrap();
            let loaded = configure_adapters()
                .with_environment(environment(home.path()))
                .with_file(Some(file))
                .load()
                .unwrap();
            assert!(loaded.config.warnings().is_empty());
        }
    }
}
