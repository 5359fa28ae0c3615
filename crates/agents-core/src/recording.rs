//! What must be on record before it is done, and how much of it is shown there: the settings of the audit layer.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result, SecretRef};

/// What kind of change an operation makes. An operation may belong to several: creating a container with secrets and an
/// egress list is of `provision`, `secret` and `egress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuditClass {
    /// Creating containers and building images.
    Provision,
    /// Starting processes, and signals to them.
    Exec,
    /// Copying into and out of containers.
    Copy,
    /// Killing processes and removing containers.
    Destroy,
    /// Storing artifacts, and URLs that give a right to one.
    Store,
    /// Deleting artifacts.
    Delete,
    /// Delivering secrets.
    Secret,
    /// Opening the network.
    Egress,
    /// Deciding a policy.
    Policy,
}

impl AuditClass {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::Provision,
        Self::Exec,
        Self::Copy,
        Self::Destroy,
        Self::Store,
        Self::Delete,
        Self::Secret,
        Self::Egress,
        Self::Policy,
    ];

    /// The name, as in a configuration and a record.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Exec => "exec",
            Self::Copy => "copy",
            Self::Destroy => "destroy",
            Self::Store => "store",
            Self::Delete => "delete",
            Self::Secret => "secret",
            Self::Egress => "egress",
            Self::Policy => "policy",
        }
    }
}

impl fmt::Display for AuditClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for AuditClass {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = || Self::ALL.into_iter().map(Self::as_str);
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| {
                let hint = match crate::nearest(text, known()) {
                    Some(name) => format!("did you mean {name:?}?"),
                    None => format!("use {}", known().collect::<Vec<_>>().join(", ")),
                };
                Error::invalid(format!("the class {text:?} is unknown; {hint}"))
            })
    }
}

impl Serialize for AuditClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AuditClass {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What happens to an operation that cannot be put on record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    /// It is not done. What only makes safe, killing and removing, is done all the same, and the session fails for it.
    #[default]
    Required,
    /// It is done, and the records that are lost are counted.
    BestEffort,
}

/// How a command line is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandRecord {
    /// Its words, with an HMAC in the place of each secret.
    #[default]
    Full,
    /// One HMAC of it, which tells equal ones.
    Hash,
    /// Not at all.
    Omit,
}

/// How an environment is recorded. Values are never shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentRecord {
    /// The names of its variables.
    #[default]
    Names,
    /// The names, each with an HMAC of the value.
    Hash,
    /// Not at all.
    Omit,
}

/// The settings of the audit layer.
///
/// ```
/// use agents_core::{AuditClass, AuditSettings, Requirement};
///
/// let settings: AuditSettings = serde_json::from_value(serde_json::json!({
///     "classes": {"exec": "best_effort"},
///     "commands": "hash",
///     "key": "env:AUDIT_KEY",
/// })).unwrap();
/// assert_eq!(settings.requirement(AuditClass::Exec), Requirement::BestEffort);
/// assert_eq!(settings.requirement(AuditClass::Store), Requirement::Required);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AuditSettings {
    /// What happens when an operation of a class cannot be put on record. Default: `required`, for every class.
    pub classes: BTreeMap<AuditClass, Requirement>,
    /// How command lines are recorded. Default: `full`.
    pub commands: CommandRecord,
    /// How environments are recorded. Default: `names`.
    pub environment: EnvironmentRecord,
    /// The key of the HMACs that stand in the place of secrets, at least 16 bytes. Default: one that is made in the state
    /// folder.
    pub key: Option<SecretRef>,
}

impl AuditSettings {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what happens to a class.
    #[must_use]
    pub fn with_class(mut self, class: AuditClass, requirement: Requirement) -> Self {
        self.classes.insert(class, requirement);
        self
    }

    /// Sets how command lines are recorded.
    #[must_use]
    pub fn with_commands(mut self, commands: CommandRecord) -> Self {
        self.commands = commands;
        self
    }

    /// Sets how environments are recorded.
    #[must_use]
    pub fn with_environment(mut self, environment: EnvironmentRecord) -> Self {
        self.environment = environment;
        self
    }

    /// Sets where the key of the HMACs is.
    #[must_use]
    pub fn with_key(mut self, key: Option<SecretRef>) -> Self {
        self.key = key;
        self
    }

    /// What happens when an operation of this class cannot be put on record.
    pub fn requirement(&self, class: AuditClass) -> Requirement {
        self.classes.get(&class).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_class_or_setting_is_told() {
        let read = |text: &str| serde_json::from_str::<AuditSettings>(text).unwrap_err().to_string();
        let error = read(r#"{"classes": {"exce": "best_effort"}}"#);
        assert!(
            error.contains("\"exce\" is unknown") && error.contains("\"exec\""),
            "{error}"
        );
        let error = read(r#"{"classes": {"mail": "required"}}"#);
        assert!(error.contains("use provision, exec"), "{error}");
        assert!(read(r#"{"classes": {"exec": "never"}}"#).contains("best_effort"));
        assert!(read(r#"{"comands": "full"}"#).contains("comands"));
        assert!(!read(r#"{"key": "hunter2"}"#).contains("hunter2"));
    }
}
