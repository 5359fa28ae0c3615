//! A policy validator whose decisions are on record.

use std::sync::Arc;

use agents_core::{
    AdapterInfo, AuditClass, Availability, ComplianceReport, Enforced, EnforcementContext, Policy, PolicyValidator,
    Result, ValidationResult,
};
use async_trait::async_trait;
use serde_json::json;

use super::{
    Trail,
    operation::{Intent, Operation},
};

#[derive(Debug)]
pub(super) struct RecordedPolicy {
    pub(super) inner: Arc<dyn PolicyValidator>,
    pub(super) trail: Trail,
}

impl RecordedPolicy {
    /// A decision changes nothing, so it does not wait for its intent; whoever acts on it waits for both.
    fn begin(&self, operation: &'static str) -> Operation {
        let known = json!({ "validator": self.inner.info().adapter_type });
        Operation::begin_unwaited(&self.trail, Intent::new(operation, AuditClass::Policy, known))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl PolicyValidator for RecordedPolicy {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.inner.check_availability().await
    }

    async fn validate(&self, policy: &Policy, context: &EnforcementContext) -> Result<ValidationResult> {
        let operation = self.begin("policy.validate");
        operation.settle(self.inner.validate(policy, context).await, |judged| {
            let decision = if judged.is_allowed() { "allowed" } else { "denied" };
            let findings: Vec<_> = judged.findings.iter().map(ToString::to_string).collect();
            json!({"decision": decision, "findings": findings})
        })
    }

    async fn enforce(&self, policy: Policy, context: &EnforcementContext) -> Result<Enforced> {
        let operation = self.begin("policy.enforce");
        operation.settle(self.inner.enforce(policy, context).await, |enforced| {
            let changes: Vec<_> = enforced
                .changes
                .iter()
                .map(|change| json!({"path": change.path, "code": change.code}))
                .collect();
            json!({ "changes": changes })
        })
    }

    async fn check_compliance(&self, policy: &Policy, rule_sets: &[String]) -> Result<ComplianceReport> {
        self.inner.check_compliance(policy, rule_sets).await
    }
}
