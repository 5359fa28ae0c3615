//! `agents policy`.

use agents_sdk::core::{Enforced, EnforcementContext, Finding, Policy};
use owo_colors::OwoColorize;
use serde_json::{Value, json};

use crate::{
    args::{Adapters, PolicyCheckArgs},
    context::Context,
    failure::{CODE_FAILED, Outcome},
    output::{self, one_line},
    request,
};

/// Everything that is wrong with a policy: what is not well-formed, or else what the configured validator says.
pub(crate) async fn check(context: &Context, args: &PolicyCheckArgs) -> Outcome {
    let fields = request::policy_file(&args.file)?;
    let (findings, enforced) = match Policy::from_value(Value::Object(fields)) {
        Err(errors) => (errors.findings().to_vec(), None),
        Ok(policy) => judge(context, policy).await?,
    };
    let denied = findings.iter().any(Finding::denies);
    if context.json() {
        let changes = enforced.as_ref().map(|enforced| &enforced.changes);
        output::json(&json!({"allowed": !denied, "findings": findings, "changes": changes}))?;
        return Ok(if denied { CODE_FAILED } else { 0 });
    }
    for finding in &findings {
        let severity = match finding.denies() {
            true => "error".red().to_string(),
            false => "warning".yellow().to_string(),
        };
        output::text(&format!("{severity}: {}\n", one_line(&finding.to_string())))?;
    }
    for change in enforced.iter().flat_map(|enforced| &enforced.changes) {
        output::text(&format!(
            "{}: {} {} becomes {} [{}]\n",
            "narrowed".cyan(),
            change.path,
            change.from,
            change.to,
            change.code
        ))?;
    }
    if !context.common.quiet {
        let file = args.file.display();
        output::note(&match denied {
            true => format!("{file} is denied"),
            false => format!("{file} is allowed"),
        });
    }
    Ok(if denied { CODE_FAILED } else { 0 })
}

/// As a run does it: what has no effect yet is refused, then the validator narrows, then it judges the rest.
async fn judge(context: &Context, policy: Policy) -> agents_sdk::core::Result<(Vec<Finding>, Option<Enforced>)> {
    let engine = context.engine(&Adapters::default()).await?;
    let validator = &engine.adapters().policy;
    let about = EnforcementContext::new().with_runtime(engine.adapters().runtime.info().adapter_type);
    let mut findings = policy.not_implemented();
    if let Some(path) = &policy.seccomp_profile
        && let Err(error) = std::fs::File::open(path)
    {
        let message = format!("cannot read {path}: {error}; name a JSON file that is there");
        findings.push(Finding::error("INVALID_VALUE", "seccomp_profile", message));
    }
    let enforced = validator.enforce(policy.clone(), &about).await?;
    enforced.check(&policy)?;
    findings.extend(validator.validate(&enforced.policy, &about).await?.findings);
    Ok((findings, Some(enforced)))
}
