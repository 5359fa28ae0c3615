//! The adapter.

use std::collections::BTreeSet;

use agents_core::{
    AdapterInfo, Availability, ComplianceReport, Enforced, EnforcementContext, Finding, NetworkPolicy, Policy,
    PolicyChange, PolicyValidator, Result, Severity, ValidationResult,
};
use async_trait::async_trait;
use serde_json::{Value, json};

use crate::{DefaultPolicyConfig, compliance, pip};

/// Below this much memory in MiB, a finding warns: most interpreters do not even start.
const LOW_MEMORY_MB: u64 = 128;

/// Compares policies with an organisation's constraints.
#[derive(Debug)]
pub struct DefaultPolicy {
    config: DefaultPolicyConfig,
    allowed_packages: Option<BTreeSet<String>>,
    blocked_packages: BTreeSet<String>,
}

impl DefaultPolicy {
    /// Takes the constraints.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names every wrong value.
    pub fn new(config: DefaultPolicyConfig) -> Result<Self> {
        config.check()?;
        let names = |list: &[String]| list.iter().filter_map(|name| pip::normalised(name)).collect();
        Ok(Self {
            allowed_packages: config.allowed_pip_packages.as_deref().map(names),
            blocked_packages: names(&config.blocked_pip_packages),
            config,
        })
    }

    fn findings(&self, policy: &Policy) -> Vec<Finding> {
        let mut findings = Vec::new();
        let config = &self.config;
        if let Some(max) = exceeded(policy.cpu_cores, config.max_cpu_cores) {
            let message = format!("{} above the maximum of {max} cores", asked(policy.cpu_cores));
            findings.push(Finding::error("CPU_EXCEEDED", "cpu_cores", message));
        }
        if let Some(max) = exceeded(policy.memory_mb, config.max_memory_mb) {
            let message = format!("{} above the maximum of {max} MiB", asked(policy.memory_mb));
            findings.push(Finding::error("MEMORY_EXCEEDED", "memory_mb", message));
        }
        if let Some(memory) = policy.memory_mb
            && memory < LOW_MEMORY_MB
        {
            let message = format!("{memory} MiB is little; most agents need {LOW_MEMORY_MB} MiB or more");
            findings.push(Finding::warning("LOW_MEMORY", "memory_mb", message));
        }
        if config.require_network_policy {
            network_findings(&policy.network, &mut findings);
        }
        for (i, port) in policy.network.ingress_ports.iter().enumerate() {
            if !self.allows_port(*port) {
                let message = format!("port {port} may not be published; {}", self.allowed_ports());
                findings.push(Finding::error(
                    "PORT_NOT_ALLOWED",
                    format!("network.ingress_ports[{i}]"),
                    message,
                ));
            }
        }
        for (i, name) in policy.allowed_env_vars.iter().enumerate() {
            if self.blocks_variable(name) {
                let message = format!("the variable {name:?} may not be forwarded; remove it");
                findings.push(Finding::error(
                    "BLOCKED_ENV_VAR",
                    format!("allowed_env_vars[{i}]"),
                    message,
                ));
            }
        }
        for name in policy.env_vars.keys() {
            if self.blocks_variable(name) {
                let message = format!("the variable {name:?} may not be set; remove it");
                findings.push(Finding::error("BLOCKED_ENV_VAR", variable_path(name), message));
            }
        }
        for (i, requirement) in policy.pip_packages.iter().enumerate() {
            if let Some((code, message)) = self.judge_package(requirement) {
                findings.push(Finding::error(code, format!("pip_packages[{i}]"), message));
            }
        }
        if let Some(max) = exceeded(policy.timeout_seconds, config.max_timeout_seconds) {
            let message = format!("{} above the maximum of {max} seconds", asked(policy.timeout_seconds));
            findings.push(Finding::error("TIMEOUT_EXCEEDED", "timeout_seconds", message));
        }
        if config.require_readonly_rootfs && !policy.read_only_rootfs {
            let message = "the root file system must be read-only; set it to true";
            findings.push(Finding::error("READONLY_ROOTFS_REQUIRED", "read_only_rootfs", message));
        }
        if config.strict_mode {
            for finding in &mut findings {
                finding.severity = finding.severity.max(Severity::Error);
            }
        }
        findings
    }

    fn narrow(&self, policy: Policy) -> Result<Enforced> {
        let config = &self.config;
        let mut changes = Vec::new();
        let mut spec = policy.into_spec();
        let mut change = |path: String, from: Value, to: Value, code: &str| {
            let code = code.to_owned();
            changes.push(PolicyChange { path, from, to, code });
        };
        if let Some(max) = exceeded(spec.cpu_cores, config.max_cpu_cores) {
            change(
                "cpu_cores".to_owned(),
                json!(spec.cpu_cores),
                json!(max),
                "CPU_EXCEEDED",
            );
            spec.cpu_cores = Some(max);
        }
        if let Some(max) = exceeded(spec.memory_mb, config.max_memory_mb) {
            change(
                "memory_mb".to_owned(),
                json!(spec.memory_mb),
                json!(max),
                "MEMORY_EXCEEDED",
            );
            spec.memory_mb = Some(max);
        }
        drop_items(&mut spec.network.ingress_ports, |i, port| {
            let drop = !self.allows_port(*port);
            if drop {
                change(
                    format!("network.ingress_ports[{i}]"),
                    json!(port),
                    Value::Null,
                    "PORT_NOT_ALLOWED",
                );
            }
            drop
        });
        drop_items(&mut spec.allowed_env_vars, |i, name| {
            let drop = self.blocks_variable(name);
            if drop {
                change(
                    format!("allowed_env_vars[{i}]"),
                    json!(name),
                    Value::Null,
                    "BLOCKED_ENV_VAR",
                );
            }
            drop
        });
        spec.env_vars.retain(|name, _| {
            let keep = !self.blocks_variable(name);
            if !keep {
                // The value may be a secret, and changes go on record.
                change(variable_path(name), json!("(a value)"), Value::Null, "BLOCKED_ENV_VAR");
            }
            keep
        });
        if let Some(max) = exceeded(spec.timeout_seconds, config.max_timeout_seconds) {
            let from = json!(spec.timeout_seconds);
            change("timeout_seconds".to_owned(), from, json!(max), "TIMEOUT_EXCEEDED");
            spec.timeout_seconds = Some(max);
        }
        if config.require_readonly_rootfs && !spec.read_only_rootfs {
            change(
                "read_only_rootfs".to_owned(),
                json!(false),
                json!(true),
                "READONLY_ROOTFS_REQUIRED",
            );
            spec.read_only_rootfs = true;
        }
        Ok(Enforced {
            policy: Policy::new(spec)?,
            changes,
        })
    }

    fn allows_port(&self, port: u32) -> bool {
        let allowed = self.config.allowed_ingress_ports.as_deref();
        allowed.is_none_or(|ports| ports.iter().any(|allowed| u32::from(*allowed) == port))
    }

    fn allowed_ports(&self) -> String {
        match self.config.allowed_ingress_ports.as_deref() {
            None | Some([]) => "none may".to_owned(),
            Some(ports) => format!("these may: {}", list(ports)),
        }
    }

    fn blocks_variable(&self, name: &str) -> bool {
        self.config.blocked_env_vars.iter().any(|blocked| blocked == name)
    }

    fn judge_package(&self, requirement: &str) -> Option<(&'static str, String)> {
        if self.allowed_packages.is_none() && self.blocked_packages.is_empty() {
            return None;
        }
        let Some(name) = pip::name(requirement) else {
            let message = format!("{requirement:?} does not say which package it is; write its name, or name==version");
            return Some(("PACKAGE_NOT_ALLOWED", message));
        };
        if self.blocked_packages.contains(&name) {
            return Some(("BLOCKED_PACKAGE", format!("the package {name} is blocked; remove it")));
        }
        match &self.allowed_packages {
            Some(allowed) if !allowed.contains(&name) => {
                let message = match allowed.is_empty() {
                    true => format!("the package {name} is not allowed; no package is"),
                    false => format!("the package {name} is not allowed; these are: {}", list(allowed)),
                };
                Some(("PACKAGE_NOT_ALLOWED", message))
            }
            _ => None,
        }
    }
}

#[async_trait]
impl PolicyValidator for DefaultPolicy {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("default", env!("CARGO_PKG_VERSION"))
    }

    async fn check_availability(&self) -> Result<Availability> {
        Ok(Availability::ready())
    }

    async fn validate(&self, policy: &Policy, _: &EnforcementContext) -> Result<ValidationResult> {
        Ok(ValidationResult {
            findings: self.findings(policy),
        })
    }

    async fn enforce(&self, policy: Policy, _: &EnforcementContext) -> Result<Enforced> {
        if self.config.strict_mode {
            let changes = Vec::new();
            return Ok(Enforced { policy, changes });
        }
        self.narrow(policy)
    }

    async fn check_compliance(&self, policy: &Policy, rule_sets: &[String]) -> Result<ComplianceReport> {
        compliance::check(policy, &self.config, rule_sets)
    }
}

/// The maximum, if there is one and the value is above it. No limit is above every maximum.
fn exceeded<T: PartialOrd>(value: Option<T>, max: Option<T>) -> Option<T> {
    max.filter(|max| value.is_none_or(|value| value > *max))
}

fn asked<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "no limit is".to_owned(), |value| format!("{} is", value.to_string()))
}

fn network_findings(network: &NetworkPolicy, findings: &mut Vec<Finding>) {
    if network.disabled {
        return;
    }
    if network.allowed_endpoints.is_empty() {
        let message = "the network is on without a list of what may be reached; name the endpoints, or disable it";
        findings.push(Finding::error(
            "MISSING_NETWORK_POLICY",
            "network.allowed_endpoints",
            message,
        ));
    }
    for (i, endpoint) in network.allowed_endpoints.iter().enumerate() {
        if is_everything(endpoint) {
            let message = format!("{endpoint:?} is every address, which is no policy; name what the agent needs");
            let path = format!("network.allowed_endpoints[{i}]");
            findings.push(Finding::error("MISSING_NETWORK_POLICY", path, message));
        }
    }
}

/// Whether an endpoint is a network with a prefix of no bits, such as `0.0.0.0/0`, `0.0.0.0/0:443` or `[::/0]:443`.
fn is_everything(endpoint: &str) -> bool {
    let Some((_, rest)) = endpoint.split_once('/') else {
        return false;
    };
    let digits = rest.split([':', ']']).next().unwrap_or_default();
    digits.parse() == Ok(0_u8)
}

fn variable_path(name: &str) -> String {
    format!("env_vars.{}", name.escape_debug())
}

/// Removes the items for which `drop` says so; it gets each item's place before anything was removed.
fn drop_items<T>(items: &mut Vec<T>, mut drop: impl FnMut(usize, &T) -> bool) {
    let mut place = 0;
    items.retain(|item| {
        let keep = !drop(place, item);
        place += 1;
        keep
    });
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}
