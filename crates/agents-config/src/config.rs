//! A configuration that was loaded and checked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use agents_core::{
    Adapters, AuditLogger, AuditSettings, BuildContext, ContainerRuntime, Error, PolicyValidator, Result,
    StorageBackend,
};
use figment::Figment;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Kind,
    loader::source_of,
    registry::{Prepared, Slot},
};

/// A configuration whose every key is known and whose every value fits. Made by [`Loader::load`](crate::Loader::load).
pub struct Config {
    pub(crate) warnings: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) default_policy: Option<Value>,
    pub(crate) agents: BTreeMap<String, AgentEntry>,
    pub(crate) audit_settings: AuditSettings,
    pub(crate) audit_in_code: bool,
    pub(crate) runtime: Choice<dyn ContainerRuntime>,
    pub(crate) storage: Choice<dyn StorageBackend>,
    pub(crate) audit: Choice<dyn AuditLogger>,
    pub(crate) policy: Choice<dyn PolicyValidator>,
}

/// What stands for one kind.
pub(crate) enum Choice<A: ?Sized> {
    /// The program passed it in.
    Ready(Arc<A>),
    /// The first that is available; almost always there is only one.
    Candidates(Vec<Candidate<A>>),
}

pub(crate) struct Candidate<A: ?Sized> {
    pub(crate) adapter_type: &'static str,
    pub(crate) type_source: String,
    pub(crate) figment: Figment,
    pub(crate) prepared: Box<dyn Prepared<A>>,
}

/// An agent of the older agents file.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AgentEntry {
    /// Its workspace; a relative one is relative to the file's folder.
    pub workspace: Option<PathBuf>,
    /// Its policy's fields, over those of the default policy.
    pub policy: Option<Value>,
    /// Words for people.
    pub description: Option<String>,
}

/// One value that is in force, and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Setting {
    /// The key, for example `adapters.storage_backend.type`.
    pub key: String,
    /// The value.
    pub value: Value,
    /// `default`, `code`, or the file or the variable.
    pub source: String,
}

/// The adapters, and what a person may want to know about how they were chosen.
#[derive(Debug)]
#[non_exhaustive]
pub struct Built {
    /// The adapters.
    pub adapters: Adapters,
    /// Choices that were made.
    pub notes: Vec<String>,
}

impl Config {
    /// Deprecated names and variables without a meaning, each with what to write instead.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Choices that were made while loading.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The file that was read.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The fields of `default_policy`. They are well-formed.
    pub fn default_policy(&self) -> Option<&Value> {
        self.default_policy.as_ref()
    }

    /// What must be on record before it is done: the file's `audit_trail`, or what the program has set.
    pub fn audit_settings(&self) -> &AuditSettings {
        &self.audit_settings
    }

    /// The agents of the older agents file. Their policies are well-formed.
    pub fn agents(&self) -> &BTreeMap<String, AgentEntry> {
        &self.agents
    }

    /// The type of a kind; `None` when the program passed an adapter in.
    ///
    /// For a runtime that nobody named this is the last resort; [`build`](Self::build) may find a better one.
    pub fn adapter_type(&self, kind: Kind) -> Option<&'static str> {
        match kind {
            Kind::ContainerRuntime => self.runtime.adapter_type(),
            Kind::StorageBackend => self.storage.adapter_type(),
            Kind::AuditLogger => self.audit.adapter_type(),
            Kind::PolicyValidator => self.policy.adapter_type(),
        }
    }

    /// Every value in force. Secrets are references here, so this is safe to print.
    pub fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        self.runtime.settings(&mut settings);
        self.storage.settings(&mut settings);
        self.audit.settings(&mut settings);
        self.policy.settings(&mut settings);
        let file = self.file.as_deref().unwrap_or(Path::new("")).display();
        if self.audit_settings != AuditSettings::default() {
            settings.push(Setting {
                key: "audit_trail".to_owned(),
                value: serde_json::json!(self.audit_settings),
                source: match self.audit_in_code {
                    true => "code".to_owned(),
                    false => format!("file {file}"),
                },
            });
        }
        if let Some(policy) = &self.default_policy {
            settings.push(Setting {
                key: "default_policy".to_owned(),
                value: policy.clone(),
                source: format!("file {file}"),
            });
        }
        settings
    }

    /// Builds the four adapters.
    ///
    /// # Errors
    ///
    /// What building each needs: a secret that cannot be resolved, or a client that cannot be made.
    pub async fn build(self, context: &BuildContext) -> Result<Built> {
        let mut notes = self.notes;
        let adapters = Adapters {
            policy: self.policy.only(context).await?,
            storage: self.storage.only(context).await?,
            audit: self.audit.only(context).await?,
            runtime: match self.runtime {
                Choice::Candidates(candidates) if candidates.len() > 1 => {
                    first_available(candidates, context, &mut notes).await?
                }
                choice => choice.only(context).await?,
            },
        };
        Ok(Built { adapters, notes })
    }
}

impl<A: Slot + ?Sized> Choice<A> {
    fn adapter_type(&self) -> Option<&'static str> {
        match self {
            Self::Ready(_) => None,
            Self::Candidates(candidates) => candidates.last().map(|candidate| candidate.adapter_type),
        }
    }

    fn settings(&self, settings: &mut Vec<Setting>) {
        let Self::Candidates(candidates) = self else {
            return;
        };
        for candidate in candidates {
            settings.push(Setting {
                key: format!("adapters.{}.type", A::KIND),
                value: candidate.adapter_type.into(),
                source: candidate.type_source.clone(),
            });
            if let Value::Object(values) = candidate.prepared.effective() {
                settings.extend(values.into_iter().map(|(key, value)| Setting {
                    source: source_of(&candidate.figment, &key),
                    key: format!("adapters.{}.config.{key}", A::KIND),
                    value,
                }));
            }
        }
    }

    async fn only(self, context: &BuildContext) -> Result<Arc<A>> {
        match self {
            Self::Ready(adapter) => Ok(adapter),
            Self::Candidates(candidates) => match candidates.into_iter().next_back() {
                Some(candidate) => candidate.build(context).await,
                None => Err(Error::invalid(format!("there is no {}", A::KIND))),
            },
        }
    }
}

impl<A: Slot + ?Sized> Candidate<A> {
    async fn build(self, context: &BuildContext) -> Result<Arc<A>> {
        let adapter_type = self.adapter_type;
        self.prepared
            .build(context)
            .await
            .map_err(|error| error.with_context(A::KIND.key(), adapter_type))
    }
}

/// The first runtime that can be used here; the last one is not asked.
async fn first_available(
    candidates: Vec<Candidate<dyn ContainerRuntime>>,
    context: &BuildContext,
    notes: &mut Vec<String>,
) -> Result<Arc<dyn ContainerRuntime>> {
    let mut candidates = candidates.into_iter().peekable();
    while let Some(candidate) = candidates.next() {
        let name = candidate.adapter_type;
        if candidates.peek().is_none() {
            notes.push(format!("no runtime was named, so {name:?} is used"));
            return candidate.build(context).await;
        }
        if let Ok(runtime) = candidate.build(context).await
            && runtime.check_availability().await.is_ok_and(|found| found.available)
        {
            notes.push(format!(
                "no runtime was named, and {name:?} is available here, so it is used"
            ));
            return Ok(runtime);
        }
    }
    Err(Error::invalid("there is no container_runtime"))
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("file", &self.file)
            .field("settings", &self.settings())
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}
