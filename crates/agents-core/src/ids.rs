//! Identifiers: sessions, agents, containers and artifact names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Validates a caller's text: letters, digits, `-`, `_` and `.`, first a letter or a digit.
            ///
            /// # Errors
            ///
            /// [`ErrorKind::ConfigInvalid`](crate::ErrorKind::ConfigInvalid) naming the rule that is broken.
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                check_id($what, &text, $max)?;
                Ok(Self(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// One run of an agent, or one long-lived session. At most 64 bytes; also the name of its container.
    SessionId,
    "session id",
    64
);
id!(
    /// The agent that a session runs. At most 128 bytes.
    AgentId,
    "agent id",
    128
);
id!(
    /// The runtime's own identifier of a container. At most 128 bytes.
    ContainerId,
    "container id",
    128
);

impl SessionId {
    /// A new identifier: a UUIDv7 (RFC 9562), so that identifiers sort by time of creation.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }
}

fn check_id(what: &str, text: &str, max: usize) -> Result<()> {
    if text.is_empty() || text.len() > max {
        return Err(Error::invalid(format!(
            "{what} must have 1 to {max} characters, and {text:?} has {}",
            text.len()
        )));
    }
    let well_formed = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !well_formed {
        return Err(Error::invalid(format!(
            "{what} {text:?} may hold only letters, digits, '-', '_' and '.', and starts with a letter or a digit"
        )));
    }
    Ok(())
}

/// The name of an artifact: a relative path of `/`-separated UTF-8 components.
///
/// Refused before any I/O: an empty name or component, `.` and `..`, an absolute path, a backslash, NUL and other
/// control characters, a component over 255 bytes (`NAME_MAX`) and a name over 900 bytes, which leaves room for a prefix
/// and a session in the 1024 bytes of an S3 key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactName(String);

impl ArtifactName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 900;

    /// Validates a name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ConfigInvalid`](crate::ErrorKind::ConfigInvalid) that quotes the name and says what is wrong with it.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        match Self::fault(&name) {
            None => Ok(Self(name)),
            Some(fault) => Err(Error::invalid(format!("artifact name {name:?} {fault}"))),
        }
    }

    /// What is wrong with a name, if anything.
    pub fn fault(name: &str) -> Option<&'static str> {
        if name.is_empty() {
            return Some("is empty");
        }
        if name.len() > Self::MAX_LEN {
            return Some("is longer than 900 bytes");
        }
        if name.starts_with('/') {
            return Some("is absolute");
        }
        if name.contains('\\') {
            return Some("holds a backslash");
        }
        if name.chars().any(char::is_control) {
            return Some("holds a control character");
        }
        for component in name.split('/') {
            match component {
                "" => return Some("has an empty component"),
                "." | ".." => return Some("has a component '.' or '..'"),
                _ if component.len() > 255 => return Some("has a component longer than 255 bytes"),
                _ => {}
            }
        }
        None
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl AsRef<str> for ArtifactName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for ArtifactName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl Serialize for ArtifactName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ArtifactName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_escape_are_refused() {
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a//b",
            "a/",
            ".",
            "a\0b",
            "a\nb",
            "a\\b",
            "./a",
        ] {
            assert!(ArtifactName::new(bad).is_err(), "{bad:?}");
        }
        assert!(ArtifactName::new("x".repeat(256)).is_err());
        for good in ["a", "a/b.txt", "späße/ü", "...", "a b", "-x"] {
            assert!(ArtifactName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn ids_are_safe_as_file_names_and_never_options() {
        for bad in ["", "-x", ".x", "a/b", "a b", "a\n", "ü"] {
            assert!(SessionId::new(bad).is_err(), "{bad:?}");
        }
        assert!(SessionId::new(SessionId::generate().as_str()).is_ok());
    }
}
