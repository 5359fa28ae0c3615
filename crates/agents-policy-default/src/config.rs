//! The organisation's constraints.

use agents_core::{Error, Policy, PolicySpec, Result};
use serde::{Deserialize, Serialize};

use crate::pip;

/// The organisation's constraints. By default there are none, and only warnings are given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DefaultPolicyConfig {
    /// The most memory in MiB. Default: `null`, no maximum. Example: `2048`.
    pub max_memory_mb: Option<u64>,
    /// The most CPU time in cores. Default: `null`, no maximum. Example: `2.0`.
    pub max_cpu_cores: Option<f64>,
    /// The longest deadline in seconds. Default: `null`, no maximum. Example: `3600`.
    pub max_timeout_seconds: Option<f64>,
    /// The only Python packages that may be installed; an empty list allows none. Names alone, compared as in PEP 503.
    /// Default: `null`, any. Example: `[requests, numpy]`.
    pub allowed_pip_packages: Option<Vec<String>>,
    /// Python packages that may not be installed, also when they are allowed above. Default: `[]`. Example: `[paramiko]`.
    pub blocked_pip_packages: Vec<String>,
    /// Whether a network needs a list of what may be reached. Default: `false`.
    pub require_network_policy: bool,
    /// Whether the root file system must be read-only. Default: `false`.
    pub require_readonly_rootfs: bool,
    /// The only ports that may be published; an empty list allows none. Default: `null`, any. Example: `[8080]`.
    pub allowed_ingress_ports: Option<Vec<u16>>,
    /// Environment variables that may be neither set nor forwarded. Default: `[]`. Example: `[LD_PRELOAD]`.
    pub blocked_env_vars: Vec<String>,
    /// Whether warnings deny, and a policy that exceeds a constraint is denied rather than narrowed. Default: `false`.
    pub strict_mode: bool,
}

impl DefaultPolicyConfig {
    /// No constraints.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks the values without any I/O, and reports every fault.
    pub(crate) fn check(&self) -> Result<()> {
        let mut faults = self.check_limits();
        let packages = [
            (
                "allowed_pip_packages",
                self.allowed_pip_packages.as_deref().unwrap_or_default(),
            ),
            ("blocked_pip_packages", &self.blocked_pip_packages),
        ];
        for (key, names) in packages {
            for (i, name) in names.iter().enumerate() {
                if pip::normalised(name).is_none() {
                    faults.push(format!(
                        "{key}[{i}]: {name:?} is not a package's name; write the name alone, without a version"
                    ));
                }
            }
        }
        for (i, port) in self.allowed_ingress_ports.iter().flatten().enumerate() {
            if *port == 0 {
                faults.push(format!(
                    "allowed_ingress_ports[{i}]: 0 is not a port; write one between 1 and 65535"
                ));
            }
        }
        for (i, name) in self.blocked_env_vars.iter().enumerate() {
            if name.is_empty() || name.contains(['=', '\0']) {
                faults.push(format!(
                    "blocked_env_vars[{i}]: {name:?} is not a variable's name; write the name alone"
                ));
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::invalid(faults.join("; ")))
    }

    /// A maximum that is no possible value of its field could never be met.
    fn check_limits(&self) -> Vec<String> {
        let at_the_limit = PolicySpec {
            cpu_cores: self.max_cpu_cores,
            memory_mb: self.max_memory_mb,
            timeout_seconds: self.max_timeout_seconds,
            ..PolicySpec::default()
        };
        match Policy::new(at_the_limit) {
            Ok(_) => Vec::new(),
            Err(errors) => errors
                .findings()
                .iter()
                .map(|finding| format!("max_{}: {}", finding.path, finding.message))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_judged_and_all_faults_come_at_once() {
        let cases: [(Value, &[&str]); 12] = [
            (json!({}), &[]),
            (
                json!({
                    "max_memory_mb": 2048, "max_cpu_cores": 2, "max_timeout_seconds": 60,
                    "allowed_pip_packages": ["Requests"], "blocked_pip_packages": ["x.y"],
                    "require_network_policy": true, "require_readonly_rootfs": true, "allowed_ingress_ports": [80],
                    "blocked_env_vars": ["LD_PRELOAD"], "strict_mode": true
                }),
                &[],
            ),
            (json!({"max_memory_mb": 0}), &["max_memory_mb: 0 is not between 4"]),
            (json!({"max_cpu_cores": 0}), &["max_cpu_cores: 0 is not"]),
            (json!({"max_cpu_cores": -1}), &["max_cpu_cores: -1 is not"]),
            (json!({"max_timeout_seconds": 0}), &["max_timeout_seconds: 0 is not"]),
            (
                json!({"allowed_pip_packages": ["x>=2"]}),
                &["allowed_pip_packages[0]: \"x>=2\""],
            ),
            (json!({"blocked_pip_packages": ["a", ""]}), &["blocked_pip_packages[1]"]),
            (json!({"allowed_ingress_ports": [80, 0]}), &["allowed_ingress_ports[1]"]),
            (json!({"blocked_env_vars": ["A=B"]}), &["blocked_env_vars[0]"]),
            (json!({"blocked_env_vars": [""]}), &["blocked_env_vars[0]"]),
            (
                json!({"max_memory_mb": 1, "max_cpu_cores": 0, "blocked_env_vars": [""]}),
                &["max_memory_mb", "max_cpu_cores", "blocked_env_vars[0]"],
            ),
        ];
        for (value, words) in cases {
            let config: DefaultPolicyConfig = serde_json::from_value(value.clone()).unwrap();
            match config.check() {
                Ok(()) => assert!(words.is_empty(), "{value} passed"),
                Err(error) => {
                    assert!(!words.is_empty(), "{value}: {error}");
                    assert!(
                        words.iter().all(|word| error.message().contains(word)),
                        "{value}: {error}"
                    );
                }
            }
        }
        for value in [
            json!({"max_memory": 1}),
            json!({"max_memory_mb": -1}),
            json!({"strict_mode": 1}),
            json!({"allowed_ingress_ports": [65536]}),
        ] {
            assert!(
                serde_json::from_value::<DefaultPolicyConfig>(value.clone()).is_err(),
                "{value}"
            );
        }
    }

    #[test]
    fn the_example_is_read() {
        #[derive(Deserialize)]
        struct File {
            adapters: Adapters,
        }
        #[derive(Deserialize)]
        struct Adapters {
            policy_validator: PolicyValidator,
        }
        #[derive(Deserialize)]
        struct PolicyValidator {
            r#type: String,
            config: DefaultPolicyConfig,
        }
        let file: File = serde_saphyr::from_str(include_str!("../example.yaml")).unwrap();
        let validator = file.adapters.policy_validator;
        assert_eq!(validator.r#type, "default");
        validator.config.check().unwrap();
        assert_eq!(validator.config.max_memory_mb, Some(2048));
        assert!(!validator.config.strict_mode);
    }
}
