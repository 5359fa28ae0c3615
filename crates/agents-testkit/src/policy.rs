//! What every [`PolicyValidator`] must do.

use std::{any::Any, fmt, sync::Arc};

use agents_core::{
    AgentId, EnforcementContext, ErrorKind, Finding, Policy, PolicySpec, PolicyValidator, SessionId, ValidationResult,
};
use async_trait::async_trait;

use crate::{
    Case, CaseResult, Fixture,
    case::{cases, skipped},
};

/// A validator to judge.
pub struct PolicyFixture {
    /// The validator.
    pub validator: Arc<dyn PolicyValidator>,
    allowed: Policy,
    denied: Option<Policy>,
    clamped: Option<Policy>,
    rule_sets: Vec<String>,
    kept: Vec<Box<dyn Any + Send + Sync>>,
}

impl PolicyFixture {
    /// Judges a validator, which must allow this policy.
    pub fn new(validator: Arc<dyn PolicyValidator>, allowed: Policy) -> Self {
        Self {
            validator,
            allowed,
            denied: None,
            clamped: None,
            rule_sets: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Gives a policy that the validator, as it is configured here, must deny even after it was enforced.
    #[must_use]
    pub fn with_denied(mut self, policy: Policy) -> Self {
        self.denied = Some(policy);
        self
    }

    /// Gives a policy that the validator, as it is configured here, must narrow to one that it allows.
    #[must_use]
    pub fn with_clamped(mut self, policy: Policy) -> Self {
        self.clamped = Some(policy);
        self
    }

    /// Names rule sets that the validator knows.
    #[must_use]
    pub fn with_rule_sets(mut self, rule_sets: Vec<String>) -> Self {
        self.rule_sets = rule_sets;
        self
    }

    /// Keeps something, such as a temporary folder, until the case has ended.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self.kept.push(Box::new(kept));
        self
    }
}

impl fmt::Debug for PolicyFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyFixture({:?}, {} kept)", self.validator, self.kept.len())
    }
}

#[async_trait]
impl Fixture for PolicyFixture {}

/// Policies that go to the edges of what can be asked for.
pub fn policies() -> Vec<Policy> {
    let texts = [
        r#"{}"#,
        r#"{"cpu_cores": null, "memory_mb": null, "pids_limit": null, "disk_mb": null, "nofile_limit": null}"#,
        r#"{"cpu_cores": 4096.0, "memory_mb": 16777216, "timeout_seconds": 31536000.0}"#,
        r#"{"cpu_cores": 0.01, "memory_mb": 6, "timeout_seconds": 0.5, "pids_limit": 1, "disk_mb": 1, "tmpfs_size_mb": 1}"#,
        r#"{"network": {"disabled": false, "allowed_endpoints": ["example.com:443", "10.0.0.0/8"], "ingress_ports": [8080, 443]}}"#,
        r#"{"read_only_rootfs": false, "cap_add": ["CAP_NET_BIND_SERVICE", "CAP_CHOWN"], "container_user": "0:0"}"#,
        r#"{"env_vars": {"A": "1", "LD_PRELOAD": "/x.so"}, "allowed_env_vars": ["HOME", "AWS_SECRET_ACCESS_KEY"], "blocked_env_vars": ["A"]}"#,
        r#"{"readonly_mounts": ["/etc/ssl", "/opt/data:/data"], "tmpfs_secrets": {"token": "env:TOKEN"}}"#,
        r#"{"interactive": true, "retry_count": 10, "retry_delay_seconds": 60.0, "max_output_bytes": 1}"#,
        r#"{"base_image": "registry.example.com:5000/team/image@sha256:0000000000000000000000000000000000000000000000000000000000000000", "entrypoint": ["python3", "-u"]}"#,
    ];
    texts.iter().filter_map(|text| Policy::from_json(text).ok()).collect()
}

/// All cases.
pub fn cases() -> Vec<Case<PolicyFixture>> {
    cases![
        identity_and_availability,
        findings_are_values,
        a_denial_names_what_is_wrong,
        enforce_only_narrows_and_reports_it,
        enforce_is_idempotent,
        what_is_clamped_is_allowed_then,
        the_same_question_has_the_same_answer,
        the_context_is_optional,
        unknown_rule_sets_are_not_found,
        known_rule_sets_report_every_rule,
    ]
}

/// The cases for who denies everything, and so has no policy to allow.
pub fn denying_cases() -> Vec<Case<PolicyFixture>> {
    let mut cases = cases();
    cases.retain(|case| case.name() != "findings_are_values");
    cases
}

type Fx = Arc<PolicyFixture>;

fn context() -> agents_core::Result<EnforcementContext> {
    Ok(EnforcementContext::new()
        .with_session(SessionId::generate())
        .with_agent(AgentId::new("agent-1")?)
        .with_user(Some("user@example.com".to_owned()))
        .with_runtime("native"))
}

async fn identity_and_availability(fx: Fx) -> CaseResult {
    let info = fx.validator.info();
    assert!(info.adapter_type.starts_with(|c: char| c.is_ascii_lowercase()));
    assert_eq!(fx.validator.info(), info, "info must not change");
    let availability = fx.validator.check_availability().await?;
    assert!(availability.available, "{availability:?}");
    Ok(())
}

fn check_findings(result: &ValidationResult) {
    for Finding {
        code, path, message, ..
    } in &result.findings
    {
        assert!(
            !code.is_empty()
                && code
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'),
            "{code:?} is no stable code"
        );
        let field = path.split(['.', '[']).next().unwrap_or_default();
        assert!(
            PolicySpec::FIELDS.contains(&field),
            "{path:?} is no field of the policy"
        );
        assert!(!message.is_empty(), "{code} says nothing");
    }
}

async fn findings_are_values(fx: Fx) -> CaseResult {
    let context = context()?;
    for policy in policies() {
        check_findings(&fx.validator.validate(&policy, &context).await?);
    }
    let result = fx.validator.validate(&fx.allowed, &context).await?;
    assert!(result.is_allowed(), "{:?}", result.findings);
    Ok(())
}

async fn a_denial_names_what_is_wrong(fx: Fx) -> CaseResult {
    let Some(denied) = &fx.denied else {
        return skipped("the fixture has no policy that this validator denies");
    };
    let context = context()?;
    let enforced = fx.validator.enforce(denied.clone(), &context).await?;
    enforced.check(denied)?;
    for policy in [denied, &enforced.policy] {
        let result = fx.validator.validate(policy, &context).await?;
        check_findings(&result);
        assert!(!result.is_allowed(), "it was allowed");
        let error = result.into_result().err().map(|error| error.kind());
        assert_eq!(error, Some(ErrorKind::PolicyDenied));
    }
    Ok(())
}

async fn enforce_only_narrows_and_reports_it(fx: Fx) -> CaseResult {
    let context = context()?;
    let clamped = fx.clamped.iter().chain(&fx.denied).cloned();
    for policy in policies().into_iter().chain(clamped) {
        let enforced = fx.validator.enforce(policy.clone(), &context).await?;
        enforced.check(&policy)?;
        for change in &enforced.changes {
            assert_ne!(change.from, change.to, "{}: a change that changes nothing", change.path);
            assert!(!change.code.is_empty(), "{}: no code", change.path);
        }
    }
    Ok(())
}

async fn enforce_is_idempotent(fx: Fx) -> CaseResult {
    let context = context()?;
    for policy in policies().into_iter().chain(fx.clamped.clone()) {
        let once = fx.validator.enforce(policy, &context).await?;
        let twice = fx.validator.enforce(once.policy.clone(), &context).await?;
        assert_eq!(twice.policy, once.policy);
        assert_eq!(twice.changes, []);
    }
    Ok(())
}

async fn what_is_clamped_is_allowed_then(fx: Fx) -> CaseResult {
    let Some(clamped) = &fx.clamped else {
        return skipped("the fixture has no policy that this validator narrows");
    };
    let context = context()?;
    let enforced = fx.validator.enforce(clamped.clone(), &context).await?;
    enforced.check(clamped)?;
    assert!(!enforced.changes.is_empty(), "nothing was narrowed");
    assert_ne!(enforced.policy, *clamped);
    let result = fx.validator.validate(&enforced.policy, &context).await?;
    assert!(result.is_allowed(), "{:?}", result.findings);
    Ok(())
}

async fn the_same_question_has_the_same_answer(fx: Fx) -> CaseResult {
    let context = context()?;
    for policy in policies() {
        let once = fx.validator.validate(&policy, &context).await?;
        let twice = fx.validator.validate(&policy, &context).await?;
        assert_eq!(once, twice);
    }
    Ok(())
}

async fn the_context_is_optional(fx: Fx) -> CaseResult {
    let nothing = EnforcementContext::new();
    let enforced = fx.validator.enforce(fx.allowed.clone(), &nothing).await?;
    enforced.check(&fx.allowed)?;
    check_findings(&fx.validator.validate(&enforced.policy, &nothing).await?);
    Ok(())
}

async fn unknown_rule_sets_are_not_found(fx: Fx) -> CaseResult {
    let unknown = vec!["no-such-rule-set".to_owned()];
    let error = fx.validator.check_compliance(&fx.allowed, &unknown).await.err();
    let kind = error.as_ref().map(agents_core::Error::kind);
    assert_eq!(kind, Some(ErrorKind::NotFound));
    let message = error.map(|error| error.to_string()).unwrap_or_default();
    for known in unknown.iter().chain(&fx.rule_sets) {
        assert!(message.contains(known.as_str()), "{message:?} does not name {known}");
    }
    Ok(())
}

async fn known_rule_sets_report_every_rule(fx: Fx) -> CaseResult {
    assert_eq!(fx.validator.check_compliance(&fx.allowed, &[]).await?.rules, []);
    if fx.rule_sets.is_empty() {
        return skipped("the fixture names no rule set that this validator knows");
    }
    for rule_set in &fx.rule_sets {
        let asked = std::slice::from_ref(rule_set);
        let report = fx.validator.check_compliance(&fx.allowed, asked).await?;
        assert!(!report.rules.is_empty(), "{rule_set} has no rules");
        for rule in &report.rules {
            assert_eq!(rule.rule_set, *rule_set);
            assert!(!rule.rule.is_empty() && !rule.evidence.is_empty(), "{rule:?}");
        }
        // The rules are the set's, not the policy's.
        for policy in policies() {
            let names = |report: &agents_core::ComplianceReport| -> Vec<String> {
                report.rules.iter().map(|rule| rule.rule.clone()).collect()
            };
            let other = fx.validator.check_compliance(&policy, asked).await?;
            assert_eq!(names(&other), names(&report));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn core_takes_every_policy() {
        assert_eq!(super::policies().len(), 10);
    }
}
