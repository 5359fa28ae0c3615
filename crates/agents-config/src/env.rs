//! The environment as a value, so that whoever loads a configuration decides what it sees.

use std::{collections::BTreeMap, ffi::OsString};

use agents_core::{Error, Result};

/// What every variable of ours begins with.
pub(crate) const PREFIX: &str = "ISOLATED_AGENTS_";

/// Variables of ours that do not configure an adapter: read by this crate, by the command line, or set inside a container.
pub(crate) const OTHERS: [&str; 6] = [
    "ISOLATED_AGENTS_CONFIG",
    "ISOLATED_AGENTS_STATE_DIR",
    "ISOLATED_AGENTS_DATA_DIR",
    "ISOLATED_AGENTS_LOG",
    "ISOLATED_AGENTS_SESSION_ID",
    "ISOLATED_AGENTS_AGENT_ID",
];

/// A set of environment variables.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// The variables of this process. Those whose names are not UTF-8 are left out, since nothing here asks for them.
    pub fn from_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name)
    }

    /// The value of a variable that is set and not empty, as text.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` when it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                None => Err(Error::invalid(format!("the variable {name} is not UTF-8 text"))),
                Some("") => Ok(None),
                Some(text) => Ok(Some(text)),
            },
        }
    }

    /// The variables of ours.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &str> {
        self.0
            .range(PREFIX.to_owned()..)
            .map(|(name, _)| name.as_str())
            .take_while(|name| name.starts_with(PREFIX))
    }
}

impl<K: Into<String>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

impl std::fmt::Debug for Environment {
    // Values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
