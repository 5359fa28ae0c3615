//! Which adapters there are.

use std::{fmt, sync::Arc};

use agents_core::{
    AdapterKind, AuditLogger, BuildContext, ContainerRuntime, Error, ErrorKind, Factory, PolicyValidator, Result,
    StorageBackend, nearest,
};
use async_trait::async_trait;
use figment::Figment;
use serde::{Deserialize, Deserializer, de, forward_to_deserialize_any};
use serde_json::Value;

use crate::{
    CombineAudit, Kind,
    composite::{self, CompositeConfig},
};

/// The adapters that a configuration may name. A plain value: nothing is registered behind a program's back.
#[derive(Default)]
pub struct Registry {
    runtimes: Vec<Entry<dyn ContainerRuntime>>,
    storages: Vec<Entry<dyn StorageBackend>>,
    audits: Vec<Entry<dyn AuditLogger>>,
    policies: Vec<Entry<dyn PolicyValidator>>,
}

impl Registry {
    /// No adapter at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a runtime.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` for a type that is registered, `ConfigInvalid` for one that is not `[a-z][a-z0-9]*`.
    pub fn register_runtime<F: Factory<Adapter = dyn ContainerRuntime>>(self) -> Result<Self> {
        self.register::<F, _>()
    }

    /// Adds a storage backend.
    ///
    /// # Errors
    ///
    /// As [`register_runtime`](Self::register_runtime).
    pub fn register_storage<F: Factory<Adapter = dyn StorageBackend>>(self) -> Result<Self> {
        self.register::<F, _>()
    }

    /// Adds an audit logger.
    ///
    /// # Errors
    ///
    /// As [`register_runtime`](Self::register_runtime).
    pub fn register_audit<F: Factory<Adapter = dyn AuditLogger>>(self) -> Result<Self> {
        self.register::<F, _>()
    }

    /// Adds a policy validator.
    ///
    /// # Errors
    ///
    /// As [`register_runtime`](Self::register_runtime).
    pub fn register_policy<F: Factory<Adapter = dyn PolicyValidator>>(self) -> Result<Self> {
        self.register::<F, _>()
    }

    /// Adds the audit logger `composite`: several at once, of the types that are registered when a configuration is loaded.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when it is registered.
    pub fn register_audit_composite(self, combine: CombineAudit) -> Result<Self> {
        self.add(Entry {
            name: composite::TYPE,
            fields: fields_of::<CompositeConfig>,
            prepare: Box::new(move |registry, figment| composite::prepare(registry, figment, combine)),
        })
    }

    fn register<F: Factory<Adapter = A>, A: Slot + ?Sized>(self) -> Result<Self> {
        let name = F::TYPE;
        let well_formed = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !well_formed {
            return Err(Error::invalid(format!(
                "the adapter type {name:?} must be lower-case letters and digits, a letter first"
            )));
        }
        self.add(Entry {
            name,
            fields: fields_of::<F::Config>,
            prepare: Box::new(|_, figment| {
                let config = figment.extract_lossy::<F::Config>().map_err(Box::new)?;
                Ok(Box::new(Typed::<F>(config)))
            }),
        })
    }

    fn add<A: Slot + ?Sized>(mut self, entry: Entry<A>) -> Result<Self> {
        let (name, entries) = (entry.name, A::entries_mut(&mut self));
        if entries.iter().any(|entry| entry.name == name) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("the {} {name:?} is registered already", A::KIND),
            ));
        }
        entries.push(entry);
        Ok(self)
    }

    /// The types of a kind, in the order of their registration.
    pub fn types(&self, kind: Kind) -> Vec<&'static str> {
        fn names<A: ?Sized>(entries: &[Entry<A>]) -> Vec<&'static str> {
            entries.iter().map(|entry| entry.name).collect()
        }
        match kind {
            Kind::ContainerRuntime => names(&self.runtimes),
            Kind::StorageBackend => names(&self.storages),
            Kind::AuditLogger => names(&self.audits),
            Kind::PolicyValidator => names(&self.policies),
        }
    }

    pub(crate) fn find<A: Slot + ?Sized>(&self, name: &str, source: &str) -> Result<&Entry<A>> {
        let entries = A::entries(self);
        entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| unknown(A::KIND, name, source, entries.iter().map(|entry| entry.name).collect()))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(Kind::ALL.map(|kind| (kind.key(), self.types(kind))))
            .finish()
    }
}

/// The features of the facade that bring an adapter in.
const FEATURES: [(Kind, &str, &str); 16] = [
    (Kind::ContainerRuntime, "native", "runtime-native"),
    (Kind::ContainerRuntime, "docker", "runtime-docker"),
    (Kind::ContainerRuntime, "podman", "runtime-podman"),
    (Kind::StorageBackend, "local", "storage-local"),
    (Kind::StorageBackend, "s3", "storage-s3"),
    (Kind::StorageBackend, "azure", "storage-azure"),
    (Kind::StorageBackend, "gcs", "storage-gcs"),
    (Kind::StorageBackend, "memory", "storage-memory"),
    (Kind::AuditLogger, "file", "audit-file"),
    (Kind::AuditLogger, "database", "audit-database"),
    (Kind::AuditLogger, "elasticsearch", "audit-elasticsearch"),
    (Kind::AuditLogger, "datadog", "audit-datadog"),
    (Kind::AuditLogger, "cloudwatch", "audit-cloudwatch"),
    (Kind::AuditLogger, "otlp", "audit-otlp"),
    (Kind::AuditLogger, composite::TYPE, "audit-composite"),
    (Kind::PolicyValidator, "default", "policy-default"),
];

fn unknown(kind: Kind, name: &str, source: &str, available: Vec<&str>) -> Error {
    let mut message = format!("adapters.{kind}.type {name:?} ({source})");
    message.push_str(&not_built_in(kind, name, &available));
    Error::invalid(message)
}

/// Why there is no such audit logger, for one that is within another.
pub(crate) fn unknown_audit(registry: &Registry, name: &str) -> String {
    let available = registry.types(Kind::AuditLogger);
    format!("{name:?}{}", not_built_in(Kind::AuditLogger, name, &available))
}

fn not_built_in(kind: Kind, name: &str, available: &[&str]) -> String {
    let mut message = " is not built in".to_owned();
    if let Some((_, _, feature)) = FEATURES.iter().find(|known| known.0 == kind && known.1 == name) {
        message.push_str(&format!("; enable the feature {feature:?} of agents-sdk"));
    } else if let Some(name) = nearest(name, available.iter().copied()) {
        message.push_str(&format!("; did you mean {name:?}?"));
    }
    match available.is_empty() {
        true => message.push_str("; none is registered"),
        false => message.push_str(&format!("; available: {}", available.join(", "))),
    }
    message
}

/// A factory, with its types erased.
pub(crate) struct Entry<A: ?Sized> {
    pub(crate) name: &'static str,
    /// The keys of its configuration.
    pub(crate) fields: fn() -> &'static [&'static str],
    /// Reads its configuration.
    pub(crate) prepare: Prepare<A>,
}

type Prepare<A> = Box<dyn Fn(&Registry, &Figment) -> Result<Box<dyn Prepared<A>>, Box<figment::Error>> + Send + Sync>;

/// A configuration that was read, of a type that is no longer known.
#[async_trait]
pub(crate) trait Prepared<A: ?Sized>: Send + Sync {
    fn validate(&self) -> Result<()>;
    fn effective(&self) -> Value;
    async fn build(self: Box<Self>, context: &BuildContext) -> Result<Arc<A>>;
}

struct Typed<F: Factory>(F::Config);

#[async_trait]
impl<F: Factory> Prepared<F::Adapter> for Typed<F> {
    fn validate(&self) -> Result<()> {
        F::validate(&self.0)
    }

    fn effective(&self) -> Value {
        serde_json::to_value(&self.0).unwrap_or_default()
    }

    async fn build(self: Box<Self>, context: &BuildContext) -> Result<Arc<F::Adapter>> {
        F::build(self.0, context).await
    }
}

/// Where the entries of a kind are.
pub(crate) trait Slot: AdapterKind {
    const KIND: Kind;
    fn entries(registry: &Registry) -> &Vec<Entry<Self>>;
    fn entries_mut(registry: &mut Registry) -> &mut Vec<Entry<Self>>;
}

macro_rules! slots {
    ($($adapter:ident, $kind:ident, $field:ident;)*) => {
        $(impl Slot for dyn $adapter {
            const KIND: Kind = Kind::$kind;
            fn entries(registry: &Registry) -> &Vec<Entry<Self>> {
                &registry.$field
            }
            fn entries_mut(registry: &mut Registry) -> &mut Vec<Entry<Self>> {
                &mut registry.$field
            }
        })*
    };
}

slots! {
    ContainerRuntime, ContainerRuntime, runtimes;
    StorageBackend, StorageBackend, storages;
    AuditLogger, AuditLogger, audits;
    PolicyValidator, PolicyValidator, policies;
}

/// The keys that a configuration struct takes, learnt from what its `Deserialize` asks a deserializer for.
fn fields_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    match T::deserialize(Probe) {
        Ok(_) => &[],
        Err(asked) => asked.0,
    }
}

struct Probe;

#[derive(Debug)]
struct Asked(&'static [&'static str]);

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("asked")
    }
}

impl std::error::Error for Asked {}

impl de::Error for Asked {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Probe {
    type Error = Asked;

    fn deserialize_any<V: de::Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        Err(Asked(&[]))
    }

    fn deserialize_struct<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Asked> {
        Err(Asked(fields))
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Asked> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq
        tuple tuple_struct map enum identifier ignored_any
    }
}
