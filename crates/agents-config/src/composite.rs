//! Several audit loggers as one: a configuration within a configuration.

use std::sync::Arc;

use agents_core::{AuditLogger, BuildContext, Error, Result};
use async_trait::async_trait;
use figment::{Figment, error::Kind as Fault};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    Registry,
    loader::{Source, source_of},
    registry::{Prepared, unknown_audit},
};

/// The type of several audit loggers at once.
pub(crate) const TYPE: &str = "composite";

/// One of several audit loggers, ready.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuditPart {
    /// The logger.
    pub logger: Arc<dyn AuditLogger>,
    /// Whether it must have an event before that is acknowledged.
    pub required: bool,
}

/// Brings audit loggers together.
pub type CombineAudit = fn(Vec<AuditPart>) -> Result<Arc<dyn AuditLogger>>;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CompositeConfig {
    sinks: Vec<SinkConfig>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SinkConfig {
    #[serde(rename = "type")]
    adapter_type: String,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default = "required_by_default")]
    required: bool,
}

fn required_by_default() -> bool {
    true
}

/// The configuration of a composite that was read, with those of its sinks.
struct Composite {
    sinks: Vec<Part>,
    combine: CombineAudit,
}

struct Part {
    adapter_type: &'static str,
    required: bool,
    prepared: Box<dyn Prepared<dyn AuditLogger>>,
}

/// Reads the configuration of a composite, and of each of its sinks by the factory of its type.
pub(crate) fn prepare(
    registry: &Registry,
    figment: &Figment,
    combine: CombineAudit,
) -> Result<Box<dyn Prepared<dyn AuditLogger>>, Box<figment::Error>> {
    let config = figment.extract_lossy::<CompositeConfig>().map_err(Box::new)?;
    let source = source_of(figment, "sinks");
    let mut sinks = Vec::with_capacity(config.sinks.len());
    for (place, sink) in config.sinks.into_iter().enumerate() {
        let within = |key: &str, mut error: figment::Error| {
            let mut path = vec!["sinks".to_owned(), place.to_string(), key.to_owned()];
            path.append(&mut error.path);
            error.path = path;
            Box::new(error)
        };
        let entry = registry
            .find::<dyn AuditLogger>(&sink.adapter_type, &source)
            .map_err(|_| {
                let text = unknown_audit(registry, &sink.adapter_type);
                within("type", figment::Error::from(Fault::Message(text)))
            })?;
        let fields = (entry.fields)();
        if let Some(key) = sink.config.keys().find(|key| !fields.contains(&key.as_str())) {
            let error = figment::Error::from(Fault::UnknownField(key.clone(), fields));
            return Err(within("config", error.with_path(key)));
        }
        let own = Figment::from(Source::new(&source, sink.config));
        let prepared = (entry.prepare)(registry, &own).map_err(|error| within("config", *error))?;
        sinks.push(Part {
            adapter_type: entry.name,
            required: sink.required,
            prepared,
        });
    }
    Ok(Box::new(Composite { sinks, combine }))
}

#[async_trait]
impl Prepared<dyn AuditLogger> for Composite {
    fn validate(&self) -> Result<()> {
        if !self.sinks.iter().any(|sink| sink.required) {
            return Err(Error::invalid(
                "sinks has none that is required, so that nothing would be on record for sure; list at least one",
            ));
        }
        for (place, sink) in self.sinks.iter().enumerate() {
            let within = |error: Error| {
                Error::invalid(format!(
                    "sinks.{place} of type {:?}: {}",
                    sink.adapter_type,
                    error.message()
                ))
            };
            sink.prepared.validate().map_err(within)?;
        }
        Ok(())
    }

    fn effective(&self) -> Value {
        let sinks = self.sinks.iter().map(
            |sink| json!({"type": sink.adapter_type, "required": sink.required, "config": sink.prepared.effective()}),
        );
        json!({"sinks": sinks.collect::<Vec<_>>()})
    }

    async fn build(self: Box<Self>, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        let mut parts = Vec::with_capacity(self.sinks.len());
        for sink in self.sinks {
            let logger = sink.prepared.build(context).await;
            parts.push(AuditPart {
                logger: logger.map_err(|error| error.with_context("sink", sink.adapter_type))?,
                required: sink.required,
            });
        }
        (self.combine)(parts)
    }
}
