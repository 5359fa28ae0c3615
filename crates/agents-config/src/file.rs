//! The configuration file: its four shapes, brought into one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use agents_core::{AuditSettings, Error, ErrorKind, Policy, Result, nearest};
use serde_json::{Map, Value};

use crate::{AgentEntry, Kind, document::read_document};

/// The names that are looked for in each folder; one folder may have only one of them.
const NAMES: [&str; 4] = [
    "isolated_agents_config.yaml",
    "isolated_agents_config.toml",
    "isolated_agents_config.json",
    "isolated-agents.yaml",
];

/// What a file says, in the one shape.
#[derive(Debug, Default)]
pub(crate) struct FileConfig {
    pub(crate) path: PathBuf,
    pub(crate) kinds: BTreeMap<Kind, Section>,
    pub(crate) audit_trail: Option<AuditSettings>,
    pub(crate) default_policy: Option<Value>,
    pub(crate) agents: BTreeMap<String, AgentEntry>,
    pub(crate) warnings: Vec<String>,
}

/// What a file says of one kind.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) adapter_type: Option<String>,
    pub(crate) config: Map<String, Value>,
    /// The key that the configuration was written under, for messages.
    pub(crate) key: String,
}

/// The file in the first folder that has one.
pub(crate) fn find(folders: &[PathBuf]) -> Result<Option<PathBuf>> {
    for folder in folders {
        let mut found = NAMES.iter().map(|name| folder.join(name)).filter(|path| path.is_file());
        if let Some(path) = found.next() {
            return match found.next() {
                None => Ok(Some(path)),
                Some(second) => Err(Error::invalid(format!(
                    "there are two configuration files, {} and {}; remove one or choose with --config",
                    path.display(),
                    second.display()
                ))),
            };
        }
    }
    Ok(None)
}

pub(crate) fn read(path: &Path) -> Result<FileConfig> {
    let document = read_document(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::not_found(format!("the configuration file {} does not exist", path.display())),
        _ => error,
    })?;
    let mut reader = Reader {
        config: FileConfig {
            path: path.to_owned(),
            ..FileConfig::default()
        },
        faults: Vec::new(),
    };
    match document {
        Value::Object(fields) => reader.top(fields),
        // An empty file.
        Value::Null => {}
        _ => reader.faults.push("a configuration is a map of keys".to_owned()),
    }
    if reader.faults.is_empty() {
        return Ok(reader.config);
    }
    Err(Error::invalid(format!(
        "the configuration file {}: {}",
        path.display(),
        reader.faults.join("; ")
    )))
}

struct Reader {
    config: FileConfig,
    faults: Vec<String>,
}

impl Reader {
    fn top(&mut self, fields: Map<String, Value>) {
        for (key, value) in fields {
            match key.as_str() {
                "adapters" => self.adapters(value),
                "audit_trail" => self.audit_trail(value),
                "default_policy" => {
                    self.deprecated(
                        "default_policy",
                        "put the policy in a file of its own and pass it with --policy",
                    );
                    self.policy("default_policy", &value);
                    self.config.default_policy = Some(value).filter(|value| !value.is_null());
                }
                "agents" => {
                    self.deprecated("agents", "pass --workspace and --policy to `agents run`");
                    self.agents(value);
                }
                // Free words for people.
                "metadata" => {}
                _ => self.older_shape(&key, value),
            }
        }
    }

    fn adapters(&mut self, value: Value) {
        for (key, value) in self.map("adapters", value) {
            match Kind::ALL.into_iter().find(|kind| kind.key() == key) {
                Some(kind) => self.kind(kind, &format!("adapters.{key}"), value),
                None => self.unknown("adapters.", &key, &Kind::ALL.map(Kind::key)),
            }
        }
    }

    fn audit_trail(&mut self, value: Value) {
        let value = Value::Object(self.map("audit_trail", value));
        match serde_json::from_value(value) {
            Ok(settings) => self.config.audit_trail = Some(settings),
            Err(error) => self.faults.push(format!("audit_trail: {error}")),
        }
    }

    /// `type` and `config` below one key: of the current shape, and of the third.
    fn kind(&mut self, kind: Kind, path: &str, value: Value) {
        for (key, value) in self.map(path, value) {
            let path = format!("{path}.{key}");
            match key.as_str() {
                "type" => self.adapter_type(kind, &path, value),
                "config" => self.adapter_config(kind, &path, value),
                _ => self.unknown(path.strip_suffix(&key).unwrap_or_default(), &key, &["type", "config"]),
            }
        }
    }

    /// `storage_adapter` and `storage_config`, or `storage.type` and `storage.config`.
    fn older_shape(&mut self, key: &str, value: Value) {
        for kind in Kind::ALL {
            let word = kind.old_word();
            let instead = |end| format!("write adapters.{kind}.{end}");
            if key == word {
                self.deprecated(key, &instead("{type,config}"));
                return self.kind(kind, key, value);
            }
            match key.strip_prefix(word) {
                Some("_adapter") => {
                    self.deprecated(key, &instead("type"));
                    return self.adapter_type(kind, key, value);
                }
                Some("_config") => {
                    self.deprecated(key, &instead("config"));
                    return self.adapter_config(kind, key, value);
                }
                _ => {}
            }
        }
        let known = ["adapters", "audit_trail", "default_policy", "agents", "metadata"];
        self.unknown("", key, &known);
    }

    fn adapter_type(&mut self, kind: Kind, path: &str, value: Value) {
        let section = self.config.kinds.entry(kind).or_default();
        match value {
            Value::String(name) if section.adapter_type.is_none() => section.adapter_type = Some(name),
            Value::String(_) => self
                .faults
                .push(format!("{path} chooses a {kind} a second time; remove one")),
            Value::Null => {}
            _ => self.faults.push(format!("{path} must be the name of a type")),
        }
    }

    fn adapter_config(&mut self, kind: Kind, path: &str, value: Value) {
        let config = self.map(path, value);
        let section = self.config.kinds.entry(kind).or_default();
        if section.key.is_empty() {
            section.config = config;
            section.key = path.to_owned();
        } else {
            let fault = format!(
                "{path} configures the {kind} a second time, after {}; remove one",
                section.key
            );
            self.faults.push(fault);
        }
    }

    fn agents(&mut self, value: Value) {
        for (name, value) in self.map("agents", value) {
            let mut entry = AgentEntry::default();
            let path = format!("agents.{name}");
            if let Err(error) = agents_core::AgentId::new(name.as_str()) {
                self.faults.push(format!("{path}: {}", error.message()));
            }
            for (key, value) in self.map(&path, value) {
                let path = format!("{path}.{key}");
                match key.as_str() {
                    "workspace" => match value {
                        Value::String(folder) => {
                            let base = self.config.path.parent().unwrap_or(Path::new(""));
                            entry.workspace = Some(base.join(folder));
                        }
                        Value::Null => {}
                        _ => self.faults.push(format!("{path} must be a folder")),
                    },
                    "policy" => {
                        self.policy(&path, &value);
                        entry.policy = Some(value).filter(|value| !value.is_null());
                    }
                    "description" => entry.description = value.as_str().map(str::to_owned),
                    _ => {
                        let known = ["workspace", "policy", "description"];
                        self.unknown(path.strip_suffix(&key).unwrap_or_default(), &key, &known);
                    }
                }
            }
            self.config.agents.insert(name, entry);
        }
    }

    fn policy(&mut self, path: &str, value: &Value) {
        if let Err(errors) = Policy::from_value(value.clone()) {
            self.faults
                .extend(errors.findings().iter().map(|finding| format!("{path}.{finding}")));
        }
    }

    fn map(&mut self, path: &str, value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            _ => {
                self.faults.push(format!("{path} must be a map of keys"));
                Map::new()
            }
        }
    }

    fn unknown(&mut self, prefix: &str, key: &str, known: &[&str]) {
        let hint = match nearest(key, known.iter().copied()) {
            Some(name) => format!("did you mean {prefix}{name}?"),
            None => format!("the keys here are {}", known.join(", ")),
        };
        self.faults.push(format!("the key {prefix}{key} is unknown; {hint}"));
    }

    fn deprecated(&mut self, key: &str, instead: &str) {
        let path = self.config.path.display();
        self.config
            .warnings
            .push(format!("{path}: the key {key} is deprecated; {instead}"));
    }
}
