//! What an adapter is, and whether it can work here.

use serde::{Deserialize, Serialize};

/// The immutable identity of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// The type, as in a configuration, for example `native` or `s3`.
    pub adapter_type: String,
    /// The name of this instance, for example a bucket or a socket; the type when there is nothing to tell.
    pub name: String,
    /// The version of the adapter's crate.
    pub version: String,
}

impl AdapterInfo {
    /// An identity whose name is its type.
    pub fn new(adapter_type: impl Into<String>, version: impl Into<String>) -> Self {
        let adapter_type = adapter_type.into();
        Self {
            name: adapter_type.clone(),
            adapter_type,
            version: version.into(),
        }
    }

    /// Sets the name of this instance.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

/// The answer of `check_availability`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Availability {
    /// Whether the adapter can work now.
    pub available: bool,
    /// What was found, a line each, for example an engine's version.
    pub facts: Vec<String>,
    /// Why it cannot work, or what is limited, with what to do about each.
    pub problems: Vec<Problem>,
}

/// One finding that keeps an adapter from working, or limits it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// A finding with its remedy.
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

impl Availability {
    /// It works.
    pub fn ready() -> Self {
        Self {
            available: true,
            facts: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// It does not work, and why.
    pub fn unavailable(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            available: false,
            facts: Vec::new(),
            problems: vec![Problem::new(reason, remedy)],
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with_fact(mut self, fact: impl Into<String>) -> Self {
        self.facts.push(fact.into());
        self
    }

    /// Adds a limitation that leaves the adapter usable.
    #[must_use]
    pub fn with_problem(mut self, problem: Problem) -> Self {
        self.problems.push(problem);
        self
    }
}

/// Whether a runtime can enforce something on this host, and if not, why and what would make it work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "support", rename_all = "snake_case")]
pub enum Support {
    /// It is enforced.
    Enforced,
    /// It is not, so a request for it is refused.
    Refused {
        /// Why it cannot be enforced.
        reason: String,
        /// What would make it work.
        remedy: String,
    },
}

impl Support {
    /// A refusal.
    pub fn refused(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// Whether it is enforced.
    pub fn is_enforced(&self) -> bool {
        matches!(self, Self::Enforced)
    }
}
