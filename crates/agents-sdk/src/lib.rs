#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod configure;
#[cfg(feature = "spool")]
mod spooled;

pub use agents_config as config;
pub use agents_core as core;
pub use agents_session as session;

#[cfg(feature = "audit-cloudwatch")]
pub use agents_audit_cloudwatch as audit_cloudwatch;
#[cfg(feature = "audit-datadog")]
pub use agents_audit_datadog as audit_datadog;
#[cfg(feature = "audit-elasticsearch")]
pub use agents_audit_elasticsearch as audit_elasticsearch;
#[cfg(feature = "audit-export")]
pub use agents_audit_export as audit_export;
#[cfg(feature = "audit-file")]
pub use agents_audit_file as audit_file;
#[cfg(feature = "audit-otlp")]
pub use agents_audit_otlp as audit_otlp;
#[cfg(feature = "audit-database")]
pub use agents_audit_sql as audit_sql;
#[cfg(feature = "audit-file")]
pub use agents_journal as journal;
#[cfg(any(feature = "audit-composite", feature = "spool"))]
pub use agents_layers as layers;
#[cfg(feature = "policy-default")]
pub use agents_policy_default as policy_default;
#[cfg(feature = "runtime-docker")]
pub use agents_runtime_docker as runtime_docker;
#[cfg(feature = "runtime-native")]
pub use agents_runtime_native as runtime_native;
#[cfg(feature = "runtime-podman")]
pub use agents_runtime_podman as runtime_podman;
#[cfg(any(
    feature = "storage-local",
    feature = "storage-s3",
    feature = "storage-azure",
    feature = "storage-gcs",
    feature = "storage-memory"
))]
pub use agents_storage_objectstore as storage_objectstore;

pub use configure::{AdapterChoice, Configure, Loaded, configure_adapters};

use agents_config::Registry;
use agents_core::{ErrorKind, Policy, Result, Secret, SecretResolver};
use agents_session::{Agent, AgentResult, Engine, SessionRequest};

/// What almost every program needs.
pub mod prelude {
    pub use agents_config::Kind;
    pub use agents_core::{
        AgentId, Error, ErrorKind, Exit, NetworkPolicy, Policy, PolicySpec, Process, Result, SecretRef, SessionId,
    };
    pub use agents_session::{Agent, AgentResult, Engine, Input, RunStatus, Session, SessionRequest};

    pub use crate::{configure_adapters, default_registry, run_agent};
}

/// Must be the first call in `main`.
///
/// The embedded runtime starts the running program again as the helper that builds a sandbox; in that process this call
/// does the helper's work and never returns. In any other process it does nothing.
pub fn init() {
    #[cfg(feature = "runtime-native")]
    agents_runtime_native::init();
}

/// Starts the helper of the first container of the embedded runtime ahead, which saves that container a few milliseconds.
///
/// For programs that are about to run an agent: call it after [`init`] and before any thread is started; with threads it
/// does nothing.
pub fn prefork() {
    #[cfg(feature = "runtime-native")]
    agents_runtime_native::prefork();
}

/// Every adapter whose feature is on.
///
/// # Errors
///
/// None with the adapters of this crate: each has a type of its own.
pub fn default_registry() -> Result<Registry> {
    let registry = Registry::new();
    #[cfg(feature = "runtime-native")]
    let registry = registry.register_runtime::<agents_runtime_native::NativeFactory>()?;
    #[cfg(feature = "runtime-docker")]
    let registry = registry.register_runtime::<agents_runtime_docker::DockerFactory>()?;
    #[cfg(feature = "runtime-podman")]
    let registry = registry.register_runtime::<agents_runtime_podman::PodmanFactory>()?;
    #[cfg(feature = "storage-local")]
    let registry = registry.register_storage::<agents_storage_objectstore::LocalFactory>()?;
    #[cfg(feature = "storage-s3")]
    let registry = registry.register_storage::<agents_storage_objectstore::S3Factory>()?;
    #[cfg(feature = "storage-azure")]
    let registry = registry.register_storage::<agents_storage_objectstore::AzureFactory>()?;
    #[cfg(feature = "storage-gcs")]
    let registry = registry.register_storage::<agents_storage_objectstore::GcsFactory>()?;
    #[cfg(feature = "storage-memory")]
    let registry = registry.register_storage::<agents_storage_objectstore::MemoryFactory>()?;
    #[cfg(feature = "audit-file")]
    let registry = registry.register_audit::<agents_audit_file::FileAuditFactory>()?;
    #[cfg(feature = "audit-database")]
    let registry = registry.register_audit::<spooled::Database>()?;
    #[cfg(feature = "audit-elasticsearch")]
    let registry = registry.register_audit::<spooled::Elasticsearch>()?;
    #[cfg(feature = "audit-datadog")]
    let registry = registry.register_audit::<spooled::Datadog>()?;
    #[cfg(feature = "audit-cloudwatch")]
    let registry = registry.register_audit::<spooled::CloudWatch>()?;
    #[cfg(feature = "audit-otlp")]
    let registry = registry.register_audit::<spooled::Otlp>()?;
    #[cfg(feature = "audit-composite")]
    let registry = registry.register_audit_composite(combine)?;
    #[cfg(feature = "policy-default")]
    let registry = registry.register_policy::<agents_policy_default::DefaultPolicyFactory>()?;
    Ok(registry)
}

/// Brings the sinks of `type: composite` together.
#[cfg(feature = "audit-composite")]
fn combine(parts: Vec<agents_config::AuditPart>) -> Result<std::sync::Arc<dyn agents_core::AuditLogger>> {
    use agents_layers::composite::{Composite, Part};
    let part = |part: agents_config::AuditPart| match part.required {
        true => Part::required(part.logger),
        false => Part::best_effort(part.logger),
    };
    Ok(std::sync::Arc::new(Composite::new(
        parts.into_iter().map(part).collect(),
    )?))
}

/// Runs an agent with the adapters that file and environment choose. The secrets of the policy's `tmpfs_secrets` are
/// resolved and handed over.
///
/// A program that runs many agents builds an [`Engine`] once with [`configure_adapters`].
///
/// # Errors
///
/// When the configuration is not valid, a secret cannot be resolved, or the session could not begin. Everything else,
/// a refusal by the policy included, is in the result.
pub async fn run_agent(agent: Agent, policy: Policy) -> Result<AgentResult> {
    let loaded = configure_adapters().load()?;
    loaded.trace_warnings();
    let agent = agent.with_secrets(resolve_secrets(&policy, loaded.secrets.as_ref()).await?);
    let engine = loaded.build().await?;
    let result = engine.run(SessionRequest::new(agent, policy)).await;
    close(&engine).await;
    result
}

/// Shuts the audit trail of an engine down, which delivers what waits in a spool, if its sink is there. Call it when an engine
/// is done with; what is not delivered is not lost, but waits for the next process.
pub async fn close(engine: &Engine) {
    if let Err(error) = engine.adapters().audit.shutdown().await
        && error.kind() != ErrorKind::Conflict
    {
        tracing::warn!(error = %error.report(), "the audit trail was not shut down");
    }
}

/// Resolves the references of a policy's `tmpfs_secrets`.
///
/// # Errors
///
/// What the resolver says of the first that cannot be resolved.
pub async fn resolve_secrets(policy: &Policy, resolver: &dyn SecretResolver) -> Result<Vec<Secret>> {
    let mut secrets = Vec::with_capacity(policy.tmpfs_secrets.len());
    for (name, reference) in &policy.tmpfs_secrets {
        secrets.push(Secret {
            name: name.clone(),
            value: resolver.resolve(reference).await?,
        });
    }
    Ok(secrets)
}
