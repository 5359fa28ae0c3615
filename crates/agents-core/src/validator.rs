//! What decides the policy: the [`PolicyValidator`] trait and its findings.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AdapterInfo, AgentId, Availability, Error, ErrorKind, Policy, Result, SessionId, Severity};

/// What decides the policy.
///
/// # For adapter authors
///
/// - Findings are values, and *all* are reported. `Err` means that the evaluation itself failed, which callers treat as a
///   denial.
/// - `enforce` **must** only narrow. Core checks that with [`Enforced::check`].
///
/// # For callers
///
/// Call `enforce`, then [`Enforced::check`], then `validate` with the result.
#[async_trait]
pub trait PolicyValidator: fmt::Debug + Send + Sync + 'static {
    /// What this adapter is.
    fn info(&self) -> AdapterInfo;

    /// Whether the validator can decide now.
    ///
    /// # Errors
    ///
    /// Only when the question itself could not be asked; "not available" is a value.
    async fn check_availability(&self) -> Result<Availability>;

    /// Judges a policy.
    async fn validate(&self, policy: &Policy, context: &EnforcementContext) -> Result<ValidationResult>;

    /// Applies the organisation's constraints.
    async fn enforce(&self, policy: Policy, context: &EnforcementContext) -> Result<Enforced>;

    /// Checks a policy against rule sets, by their names.
    ///
    /// # Errors
    ///
    /// `NotFound` for a rule set that the validator does not know, with the list of those it knows.
    async fn check_compliance(&self, policy: &Policy, rule_sets: &[String]) -> Result<ComplianceReport>;
}

/// Who asks for what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EnforcementContext {
    /// The session.
    pub session_id: Option<SessionId>,
    /// The agent.
    pub agent_id: Option<AgentId>,
    /// Who asked for it.
    pub user_id: Option<String>,
    /// The type of the runtime that it will run on.
    pub runtime: Option<String>,
}

impl EnforcementContext {
    /// Nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the session.
    #[must_use]
    pub fn with_session(mut self, session_id: SessionId) -> Self {
        self.session_id = Some(session_id);
        self
    }

    /// Sets the agent.
    #[must_use]
    pub fn with_agent(mut self, agent_id: AgentId) -> Self {
        self.agent_id = Some(agent_id);
        self
    }

    /// Sets who asked for it.
    #[must_use]
    pub fn with_user(mut self, user_id: Option<String>) -> Self {
        self.user_id = user_id;
        self
    }

    /// Sets the type of the runtime.
    #[must_use]
    pub fn with_runtime(mut self, runtime: impl Into<String>) -> Self {
        self.runtime = Some(runtime.into());
        self
    }
}

/// One finding about a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// `Error` and above deny; `Warning` and below do not.
    pub severity: Severity,
    /// A stable code, for example `MEMORY_EXCEEDED`.
    pub code: String,
    /// The policy field, for example `network.ingress_ports[0]`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Finding {
    /// A finding that denies.
    pub fn error(code: impl Into<String>, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code: code.into(),
            path: path.into(),
            message: message.into(),
        }
    }

    /// A finding that does not deny.
    pub fn warning(code: impl Into<String>, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, path, message)
        }
    }

    /// Whether it denies.
    pub fn denies(&self) -> bool {
        self.severity >= Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.path, self.message, self.code)
    }
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidationResult {
    /// The findings, in the order of the policy's fields.
    pub findings: Vec<Finding>,
}

impl ValidationResult {
    /// Whether no finding denies.
    pub fn is_allowed(&self) -> bool {
        !self.findings.iter().any(Finding::denies)
    }

    /// An error that names every finding that denies.
    ///
    /// # Errors
    ///
    /// `PolicyDenied`, unless the policy is allowed.
    pub fn into_result(self) -> Result<()> {
        if self.is_allowed() {
            return Ok(());
        }
        let denials: Vec<_> = self
            .findings
            .iter()
            .filter(|finding| finding.denies())
            .map(ToString::to_string)
            .collect();
        Err(Error::new(
            ErrorKind::PolicyDenied,
            format!("the policy is denied: {}", denials.join("; ")),
        )
        .with_operation("validate"))
    }
}

/// A policy after the organisation's constraints.
#[derive(Clone, Debug)]
pub struct Enforced {
    /// The constrained policy.
    pub policy: Policy,
    /// What was changed.
    pub changes: Vec<PolicyChange>,
}

impl Enforced {
    /// Checks that nothing was widened, and that every change is reported.
    ///
    /// # Errors
    ///
    /// `PolicyDenied` that names the fields that were widened or changed silently.
    pub fn check(&self, original: &Policy) -> Result<()> {
        let widened = self.policy.widened_fields(original);
        if !widened.is_empty() {
            return Err(Error::new(
                ErrorKind::PolicyDenied,
                format!("the validator widened the policy: {}", widened.join(", ")),
            )
            .with_operation("enforce"));
        }
        let silent: Vec<_> = self
            .policy
            .changed_fields(original)
            .into_iter()
            .filter(|field| {
                !self.changes.iter().any(|change| {
                    change.path == *field
                        || change
                            .path
                            .strip_prefix(field.as_str())
                            .is_some_and(|rest| rest.starts_with(['.', '[']))
                })
            })
            .collect();
        if silent.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::PolicyDenied,
            format!(
                "the validator changed the policy without saying so: {}",
                silent.join(", ")
            ),
        )
        .with_operation("enforce"))
    }
}

/// One change that a validator made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    /// The policy field.
    pub path: String,
    /// Its value before.
    pub from: Value,
    /// Its value now.
    pub to: Value,
    /// The constraint's code, for example `MEMORY_EXCEEDED`.
    pub code: String,
}

/// Whether a policy meets rule sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComplianceReport {
    /// The rules, in the order of the sets.
    pub rules: Vec<ComplianceRule>,
}

impl ComplianceReport {
    /// Whether no rule failed.
    pub fn is_compliant(&self) -> bool {
        !self.rules.iter().any(|rule| rule.outcome == ComplianceOutcome::Fail)
    }
}

/// One rule of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComplianceRule {
    /// The set, for example `pod-security-restricted`.
    pub rule_set: String,
    /// The rule's own name or number.
    pub rule: String,
    /// Whether it is met.
    pub outcome: ComplianceOutcome,
    /// What that rests on.
    pub evidence: String,
}

/// Whether a rule is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComplianceOutcome {
    /// It is met.
    Pass,
    /// It is not met.
    Fail,
    /// It says nothing about such a policy.
    NotApplicable,
}
