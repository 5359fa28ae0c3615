//! Validators whose answer is fixed.

use agents_core::{
    AdapterInfo, Availability, ComplianceReport, Enforced, EnforcementContext, Error, Finding, Policy, PolicyValidator,
    Result, ValidationResult,
};
use async_trait::async_trait;

/// Gives every policy the same findings, and changes none.
#[derive(Clone, Debug, Default)]
pub struct FixedPolicy(Vec<Finding>);

impl FixedPolicy {
    /// Allows everything.
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// Denies everything, with these findings.
    pub fn deny(findings: Vec<Finding>) -> Self {
        Self(findings)
    }
}

#[async_trait]
impl PolicyValidator for FixedPolicy {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("fixed", env!("CARGO_PKG_VERSION"))
    }

    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }

    async fn validate(&self, _: &Policy, _: &EnforcementContext) -> Result<ValidationResult> {
        Ok(ValidationResult {
            findings: self.0.clone(),
        })
    }

    async fn enforce(&self, policy: Policy, _: &EnforcementContext) -> Result<Enforced> {
        Ok(Enforced {
            policy,
            changes: Vec::new(),
        })
    }

    async fn check_compliance(&self, _: &Policy, rule_sets: &[String]) -> Result<ComplianceReport> {
        match rule_sets.first() {
            None => Ok(ComplianceReport::default()),
            Some(name) => Err(Error::not_found(format!(
                "there is no rule set {name:?}; there are none"
            ))),
        }
    }
}
