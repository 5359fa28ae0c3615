//! Loading a configuration from its four sources: defaults, file, environment, code; later ones win.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use agents_core::{
    AuditLogger, AuditSettings, ContainerRuntime, Error, PolicyValidator, Result, StorageBackend, nearest,
};
use figment::{
    Figment, Metadata, Profile, Provider,
    error::{Actual, Kind as Fault},
    value::Dict,
};
use serde_json::{Map, Value};

use crate::{
    Config, Environment, Kind, Registry,
    config::{Candidate, Choice},
    env::OTHERS,
    file::{self, FileConfig},
    registry::Slot,
};

/// Gathers the sources of a configuration. [`Loader::new`] has none, so that nothing is read unless it is asked for.
#[derive(Debug, Default)]
pub struct Loader {
    file: Option<PathBuf>,
    folders: Vec<PathBuf>,
    environment: Environment,
    types: BTreeMap<Kind, String>,
    values: Vec<(Kind, String, Value)>,
    runtime: Option<Arc<dyn ContainerRuntime>>,
    storage: Option<Arc<dyn StorageBackend>>,
    audit: Option<Arc<dyn AuditLogger>>,
    audit_settings: Option<AuditSettings>,
    policy: Option<Arc<dyn PolicyValidator>>,
}

impl Loader {
    /// Only the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the environment, with `ISOLATED_AGENTS_CONFIG` naming the file unless [`with_file`](Self::with_file) does.
    #[must_use]
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Reads this file.
    #[must_use]
    pub fn with_file(mut self, file: Option<PathBuf>) -> Self {
        self.file = file;
        self
    }

    /// Looks for `isolated_agents_config.yaml` (`.toml`, `.json`, or the older `isolated-agents.yaml`) in these folders, in
    /// their order, when no file is named.
    #[must_use]
    pub fn with_folders(mut self, folders: impl IntoIterator<Item = PathBuf>) -> Self {
        self.folders.extend(folders);
        self
    }

    /// Chooses the type of a kind, over file and environment.
    #[must_use]
    pub fn with_type(mut self, kind: Kind, adapter_type: impl Into<String>) -> Self {
        self.types.insert(kind, adapter_type.into());
        self
    }

    /// Sets one key of the chosen type's configuration, over file and environment.
    #[must_use]
    pub fn with_value(mut self, kind: Kind, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.values.push((kind, key.into(), value.into()));
        self
    }

    /// Uses this runtime, whatever file and environment say.
    #[must_use]
    pub fn with_runtime(mut self, runtime: Arc<dyn ContainerRuntime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Uses this storage backend, whatever file and environment say.
    #[must_use]
    pub fn with_storage(mut self, storage: Arc<dyn StorageBackend>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Uses this audit logger, whatever file and environment say.
    #[must_use]
    pub fn with_audit(mut self, audit: Arc<dyn AuditLogger>) -> Self {
        self.audit = Some(audit);
        self
    }

    /// Sets what must be on record before it is done, whatever the file's `audit_trail` says.
    #[must_use]
    pub fn with_audit_settings(mut self, settings: AuditSettings) -> Self {
        self.audit_settings = Some(settings);
        self
    }

    /// Uses this policy validator, whatever file and environment say.
    #[must_use]
    pub fn with_policy(mut self, policy: Arc<dyn PolicyValidator>) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Reads and checks everything. No adapter is built, and nothing but the file is touched.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` with every fault that was found, each with its file or variable and its key; `NotFound` for a named
    /// file that does not exist.
    pub fn load(mut self, registry: &Registry) -> Result<Config> {
        let named = match self.file.take() {
            Some(path) => Some(path),
            None => self.environment.text("ISOLATED_AGENTS_CONFIG")?.map(PathBuf::from),
        };
        let path = match named {
            Some(path) => Some(path),
            None => file::find(&self.folders)?,
        };
        let mut file = path.as_deref().map(file::read).transpose()?.unwrap_or_default();
        let mut merge = Merge {
            registry,
            environment: &self.environment,
            types: &self.types,
            values: &self.values,
            recognised: OTHERS.iter().map(|name| (*name).to_owned()).collect(),
            faults: Vec::new(),
            warnings: std::mem::take(&mut file.warnings),
            notes: Vec::new(),
        };
        let runtime = merge.kind(&mut file, self.runtime);
        let storage = merge.kind(&mut file, self.storage);
        let audit = merge.kind(&mut file, self.audit);
        let policy = merge.kind(&mut file, self.policy);
        merge.unknown_variables();
        if !merge.faults.is_empty() {
            return Err(Error::invalid(format!(
                "the configuration is not valid: {}",
                merge.faults.join("; ")
            )));
        }
        Ok(Config {
            warnings: merge.warnings,
            notes: merge.notes,
            file: path,
            default_policy: file.default_policy,
            agents: file.agents,
            audit_in_code: self.audit_settings.is_some(),
            audit_settings: self.audit_settings.or(file.audit_trail).unwrap_or_default(),
            runtime,
            storage,
            audit,
            policy,
        })
    }
}

/// The state of one load.
struct Merge<'a> {
    registry: &'a Registry,
    environment: &'a Environment,
    types: &'a BTreeMap<Kind, String>,
    values: &'a [(Kind, String, Value)],
    recognised: BTreeSet<String>,
    faults: Vec<String>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Merge<'_> {
    fn kind<A: Slot + ?Sized>(&mut self, file: &mut FileConfig, ready: Option<Arc<A>>) -> Choice<A> {
        let kind = A::KIND;
        self.recognise(kind);
        if let Some(adapter) = ready {
            return Choice::Ready(adapter);
        }
        let section = file.kinds.remove(&kind).unwrap_or_default();
        let file_name = format!("file {}", file.path.display());
        let from_file = section.adapter_type.clone().map(|name| (name, file_name.clone()));
        let chosen = self.types.get(&kind).map(|name| (name.clone(), "code".to_owned()));
        let chosen = match chosen {
            Some(chosen) => Some(chosen),
            None => self.type_from_environment(kind).or_else(|| from_file.clone()),
        };
        let candidates = match chosen {
            Some(chosen) => vec![chosen],
            None => self.defaults(kind, !section.config.is_empty()),
        };
        // A file's configuration belongs to the type that the file chooses, not to another that was chosen later.
        let owner = from_file.map_or_else(|| candidates.last().map(|last| last.0.clone()), |(name, _)| Some(name));
        if let Some(owner) = &owner
            && !section.config.is_empty()
            && candidates.iter().all(|(name, _)| name != owner)
        {
            self.notes.push(format!(
                "{} in {file_name} is for {owner:?} and is not used",
                section.key
            ));
        }
        let mut prepared = Vec::new();
        for (name, source) in candidates {
            let figment = match owner.as_deref() == Some(name.as_str()) {
                true => Figment::from(Source::new(&file_name, section.config.clone())),
                false => Figment::new(),
            };
            let known_as = match section.key.is_empty() {
                true => format!("adapters.{kind}.config"),
                false => section.key.clone(),
            };
            match self.candidate(&name, &source, figment, &known_as) {
                Some(candidate) => prepared.push(candidate),
                None => return Choice::Candidates(Vec::new()),
            }
        }
        Choice::Candidates(prepared)
    }

    /// Variables that have a meaning for this kind, whichever type is chosen in the end.
    fn recognise(&mut self, kind: Kind) {
        self.recognised.insert(kind.variable().to_owned());
        self.recognised.insert(kind.old_variable().to_owned());
        for name in self.registry.types(kind) {
            let prefix = format!("{}{}_", kind.prefix(), name.to_ascii_uppercase());
            let of_type = self.environment.ours().filter(|variable| variable.starts_with(&prefix));
            self.recognised.extend(of_type.map(str::to_owned));
        }
    }

    fn type_from_environment(&mut self, kind: Kind) -> Option<(String, String)> {
        for variable in [kind.variable(), kind.old_variable()] {
            match self.environment.text(variable) {
                Ok(None) => {}
                Ok(Some(name)) => {
                    if variable == kind.old_variable() {
                        let new = kind.variable();
                        self.warnings
                            .push(format!("the variable {variable} is deprecated; set {new}"));
                    }
                    return Some((name.to_owned(), format!("environment variable {variable}")));
                }
                Err(error) => self.faults.push(error.message().to_owned()),
            }
        }
        None
    }

    /// The types to try when none is named.
    fn defaults(&mut self, kind: Kind, configured: bool) -> Vec<(String, String)> {
        let available = self.registry.types(kind);
        let mut defaults: Vec<_> = kind.defaults().iter().filter(|name| available.contains(name)).collect();
        if defaults.is_empty()
            && let [only] = available.as_slice()
        {
            defaults.push(only);
        }
        if defaults.is_empty() {
            let available = match available.is_empty() {
                true => "none is registered".to_owned(),
                false => format!("available: {}", available.join(", ")),
            };
            self.faults
                .push(format!("adapters.{kind}.type is not set; {available}"));
        }
        if configured && defaults.len() > 1 {
            let names: Vec<_> = defaults.iter().map(|name| **name).collect();
            self.faults.push(format!(
                "adapters.{kind}.config needs adapters.{kind}.type beside it: {}",
                names.join(" or ")
            ));
        }
        defaults
            .into_iter()
            .map(|name| ((*name).to_owned(), "default".to_owned()))
            .collect()
    }

    fn candidate<A: Slot + ?Sized>(
        &mut self,
        name: &str,
        source: &str,
        mut figment: Figment,
        known_as: &str,
    ) -> Option<Candidate<A>> {
        let kind = A::KIND;
        let entry = match self.registry.find::<A>(name, source) {
            Ok(entry) => entry,
            Err(error) => {
                self.faults.push(error.message().to_owned());
                return None;
            }
        };
        let faults_before = self.faults.len();
        let fields = (entry.fields)();
        let mut texts = BTreeMap::new();
        for (key, variable) in self.variables(kind, name, fields) {
            match self.environment.get(&variable).map(|value| value.to_str()) {
                Some(Some(value)) => {
                    figment = figment.merge(Source::one(&format!("environment variable {variable}"), &key, value));
                    texts.insert(key, (variable, value.to_owned()));
                }
                Some(None) => self.faults.push(format!("the variable {variable} is not UTF-8 text")),
                None => {}
            }
        }
        for (_, key, value) in self.values.iter().filter(|value| value.0 == kind) {
            texts.remove(key);
            figment = figment.merge(Source::one("code", key, value.clone()));
        }
        self.unknown_keys(name, &figment, fields, known_as);
        if self.faults.len() > faults_before {
            return None;
        }
        let prepared = loop {
            let error = match (entry.prepare)(self.registry, &figment) {
                Ok(prepared) => break prepared,
                Err(error) => error,
            };
            // A variable can hold only text, so a list is written with commas or as JSON.
            let list = match (&error.kind, error.path.as_slice()) {
                (Fault::InvalidType(Actual::Str(_), expected), [key]) if is_structure(expected) => texts
                    .remove(key)
                    .and_then(|(variable, text)| Some((variable, key, structure(&text)?))),
                _ => None,
            };
            match list {
                Some((variable, key, value)) => {
                    figment = figment.merge(Source::one(&format!("environment variable {variable}"), key, value));
                }
                None => {
                    self.faults
                        .extend(error.into_iter().map(|error| explain(error, &figment, known_as)));
                    return None;
                }
            }
        };
        if let Err(error) = prepared.validate() {
            self.faults.push(format!("{known_as} of {name:?}: {error}"));
            return None;
        }
        Some(Candidate {
            adapter_type: entry.name,
            type_source: source.to_owned(),
            figment,
            prepared,
        })
    }

    /// The variables that set a key of this type, newer names last so that they win.
    fn variables(&mut self, kind: Kind, name: &str, fields: &[&str]) -> Vec<(String, String)> {
        let new_prefix = format!("{}{}_", kind.prefix(), name.to_ascii_uppercase());
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for variable in self.environment.ours() {
            if let Some(rest) = variable.strip_prefix(&new_prefix) {
                let key = rest.to_ascii_lowercase();
                if fields.contains(&key.as_str()) {
                    new.push((key, variable.to_owned()));
                } else {
                    let hint = hint(&key, fields, |key| format!("{new_prefix}{}", key.to_ascii_uppercase()));
                    self.faults
                        .push(format!("the variable {variable} sets no key of {name:?}; {hint}"));
                }
                continue;
            }
            let Some(rest) = variable.strip_prefix(kind.old_prefix()) else {
                continue;
            };
            let key = rest.to_ascii_lowercase();
            if !self.recognised.contains(variable) && fields.contains(&key.as_str()) {
                self.warnings
                    .push(format!("the variable {variable} is deprecated; set {new_prefix}{rest}"));
                old.push((key, variable.to_owned()));
            }
        }
        self.recognised.extend(old.iter().map(|(_, variable)| variable.clone()));
        old.append(&mut new);
        old
    }

    fn unknown_keys(&mut self, name: &str, figment: &Figment, fields: &[&str], known_as: &str) {
        let Ok(merged) = figment.extract::<Dict>() else {
            return;
        };
        if fields.is_empty() {
            return;
        }
        for key in merged.keys().filter(|key| !fields.contains(&key.as_str())) {
            let source = source_of(figment, key);
            let hint = hint(key, fields, |key| format!("{known_as}.{key}"));
            self.faults.push(format!(
                "the key {known_as}.{key} of {name:?} ({source}) is unknown; {hint}"
            ));
        }
    }

    fn unknown_variables(&mut self) {
        let known: Vec<String> = self.recognised.iter().cloned().collect();
        for variable in self.environment.ours().filter(|name| !self.recognised.contains(*name)) {
            let hint = nearest(variable, known.iter().map(String::as_str))
                .map(|name| format!("; did you mean {name}?"))
                .unwrap_or_default();
            self.warnings
                .push(format!("the variable {variable} has no meaning here{hint}"));
        }
    }
}

fn hint(key: &str, fields: &[&str], show: impl Fn(&str) -> String) -> String {
    match nearest(key, fields.iter().copied()) {
        Some(name) => format!("did you mean {}?", show(name)),
        None if fields.is_empty() => "this type has no keys".to_owned(),
        None => format!("its keys are {}", fields.join(", ")),
    }
}

/// Whether serde asks for a list or a map: its derived visitors say so in these words.
fn is_structure(expected: &str) -> bool {
    ["sequence", "map", "struct"].iter().any(|word| expected.contains(word))
}

/// A list or a map that was written as text; `None` when it is neither.
fn structure(text: &str) -> Option<Value> {
    if text.starts_with(['[', '{']) {
        return serde_json::from_str(text).ok();
    }
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Some(items.map(Value::from).collect())
}

fn explain(error: figment::Error, figment: &Figment, known_as: &str) -> String {
    let key = error.path.join(".");
    let path = match key.is_empty() {
        true => known_as.to_owned(),
        false => format!("{known_as}.{key}"),
    };
    match &error.kind {
        // Here the path ends with the unknown key.
        Fault::UnknownField(_, known) => {
            let (parent, name) = path.rsplit_once('.').unwrap_or(("", &path));
            let source = source_of(figment, &key);
            let hint = hint(name, known, |known| format!("{parent}.{known}"));
            format!("the key {path} ({source}) is unknown; {hint}")
        }
        Fault::MissingField(name) => format!("{path}.{name} is not set"),
        fault => {
            let source = error
                .metadata
                .as_ref()
                .map_or_else(|| source_of(figment, &key), |source| source.name.to_string());
            format!("{path} ({source}): {fault}")
        }
    }
}

/// Where a value comes from.
pub(crate) fn source_of(figment: &Figment, key: &str) -> String {
    figment
        .find_metadata(key)
        .map_or_else(|| "default".to_owned(), |source| source.name.to_string())
}

/// A named set of values.
pub(crate) struct Source {
    name: String,
    values: Map<String, Value>,
}

impl Source {
    pub(crate) fn new(name: &str, values: Map<String, Value>) -> Self {
        Self {
            name: name.to_owned(),
            values,
        }
    }

    fn one(name: &str, key: &str, value: impl Into<Value>) -> Self {
        Self::new(name, Map::from_iter([(key.to_owned(), value.into())]))
    }
}

impl Provider for Source {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::error::Result<figment::value::Map<Profile, Dict>> {
        let mut values = Dict::new();
        for (key, value) in &self.values {
            values.insert(key.clone(), figment::value::Value::serialize(value)?);
        }
        Ok(Profile::Default.collect(values))
    }
}
