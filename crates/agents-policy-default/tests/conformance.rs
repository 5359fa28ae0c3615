//! The conformance cases, without constraints, with all of them, and in strict mode.

use std::{process::ExitCode, sync::Arc};

use agents_core::{Error, Policy};
use agents_policy_default::{DefaultPolicy, DefaultPolicyConfig};
use agents_testkit::{
    policy::{PolicyFixture, cases},
    run, trials,
};

fn constraints(strict_mode: bool) -> DefaultPolicyConfig {
    let mut config = DefaultPolicyConfig::new();
    config.max_memory_mb = Some(1024);
    config.max_cpu_cores = Some(2.0);
    config.max_timeout_seconds = Some(60.0);
    config.allowed_pip_packages = Some(vec!["requests".to_owned()]);
    config.blocked_pip_packages = vec!["paramiko".to_owned()];
    config.require_network_policy = true;
    config.require_readonly_rootfs = true;
    config.allowed_ingress_ports = Some(vec![8080]);
    config.blocked_env_vars = vec!["LD_PRELOAD".to_owned(), "AWS_SECRET_ACCESS_KEY".to_owned()];
    config.strict_mode = strict_mode;
    config
}

fn fixture(config: DefaultPolicyConfig) -> Result<PolicyFixture, Error> {
    let allowed = Policy::from_json(r#"{"timeout_seconds": 30.0}"#)?;
    let validator = Arc::new(DefaultPolicy::new(config)?);
    let rule_sets = ["pod-security-baseline", "pod-security-restricted", "cis-docker"];
    Ok(PolicyFixture::new(validator, allowed).with_rule_sets(rule_sets.map(str::to_owned).to_vec()))
}

fn constrained(strict_mode: bool) -> Result<PolicyFixture, Error> {
    let denied = r#"{"pip_packages": ["paramiko"], "network": {"disabled": false}, "memory_mb": 2048}"#;
    let clamped = r#"{"memory_mb": null, "cpu_cores": 3.0, "timeout_seconds": null, "read_only_rootfs": false,
        "network": {"ingress_ports": [22, 8080]}, "env_vars": {"A": "1", "LD_PRELOAD": "/x.so"},
        "allowed_env_vars": ["HOME", "AWS_SECRET_ACCESS_KEY"]}"#;
    let fixture = fixture(constraints(strict_mode))?;
    if strict_mode {
        // What is not narrowed is denied.
        return Ok(fixture.with_denied(Policy::from_json(clamped)?));
    }
    Ok(fixture
        .with_denied(Policy::from_json(denied)?)
        .with_clamped(Policy::from_json(clamped)?))
}

fn main() -> ExitCode {
    let text = |error: Error| error.report();
    run([
        trials("default_free", cases(), move || async move {
            fixture(DefaultPolicyConfig::new()).map_err(text)
        }),
        trials("default_constrained", cases(), move || async move {
            constrained(false).map_err(text)
        }),
        trials("default_strict", cases(), move || async move {
            constrained(true).map_err(text)
        }),
    ])
}
