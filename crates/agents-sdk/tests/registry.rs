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

    #[test]
    fn the_adapters_example_files_load() {
        let examples = [
            include_str!("../../agents-audit-file/example.yaml"),
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
