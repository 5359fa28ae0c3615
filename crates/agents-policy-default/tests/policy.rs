//! What is found, what is narrowed, and what rule sets say, as tables; and that narrowing never widens, for any policy.

use std::collections::BTreeMap;

use agents_core::{
    ComplianceOutcome, EnforcementContext, ErrorKind, Finding, NetworkPolicy, Policy, PolicySpec, PolicyValidator,
    Severity,
};
use agents_policy_default::{DefaultPolicy, DefaultPolicyConfig};
use proptest::{collection::vec, option, prelude::*};
use serde_json::{Value, json};

fn validator(config: Value) -> DefaultPolicy {
    DefaultPolicy::new(serde_json::from_value(config).unwrap()).unwrap()
}

fn policy(value: Value) -> Policy {
    Policy::from_value(value).unwrap()
}

async fn findings(config: &Value, asked: &Value) -> Vec<Finding> {
    let result = validator(config.clone())
        .validate(&policy(asked.clone()), &EnforcementContext::new())
        .await
        .unwrap();
    result.findings
}

/// Constraints, a policy, and the findings as `CODE path`.
fn found() -> Vec<(Value, Value, Vec<&'static str>)> {
    let endpoints = |list: &[&str]| json!({"network": {"disabled": false, "allowed_endpoints": list}});
    let network = json!({"require_network_policy": true});
    let only = json!({"allowed_pip_packages": ["requests", "zope.interface"]});
    let pip = |list: &[&str]| json!({"pip_packages": list});
    vec![
        (json!({}), json!({}), vec![]),
        (json!({"max_memory_mb": 512}), json!({"memory_mb": 512}), vec![]),
        (
            json!({"max_memory_mb": 511}),
            json!({"memory_mb": 512}),
            vec!["MEMORY_EXCEEDED memory_mb"],
        ),
        (
            json!({"max_memory_mb": 512}),
            json!({"memory_mb": null}),
            vec!["MEMORY_EXCEEDED memory_mb"],
        ),
        (
            json!({}),
            json!({"memory_mb": null, "cpu_cores": null, "timeout_seconds": null}),
            vec![],
        ),
        (json!({}), json!({"memory_mb": 128}), vec![]),
        (json!({}), json!({"memory_mb": 127}), vec!["LOW_MEMORY memory_mb"]),
        (
            json!({"max_memory_mb": 64}),
            json!({"memory_mb": 100}),
            vec!["MEMORY_EXCEEDED memory_mb", "LOW_MEMORY memory_mb"],
        ),
        (json!({"max_cpu_cores": 1.0}), json!({"cpu_cores": 1.0}), vec![]),
        (
            json!({"max_cpu_cores": 1.0}),
            json!({"cpu_cores": 1.01}),
            vec!["CPU_EXCEEDED cpu_cores"],
        ),
        (
            json!({"max_cpu_cores": 1.0}),
            json!({"cpu_cores": null}),
            vec!["CPU_EXCEEDED cpu_cores"],
        ),
        (
            json!({"max_timeout_seconds": 60}),
            json!({"timeout_seconds": 60.0}),
            vec![],
        ),
        (
            json!({"max_timeout_seconds": 60}),
            json!({"timeout_seconds": 60.5}),
            vec!["TIMEOUT_EXCEEDED timeout_seconds"],
        ),
        (
            json!({"max_timeout_seconds": 60}),
            json!({}),
            vec!["TIMEOUT_EXCEEDED timeout_seconds"],
        ),
        (json!({"require_readonly_rootfs": true}), json!({}), vec![]),
        (
            json!({"require_readonly_rootfs": true}),
            json!({"read_only_rootfs": false}),
            vec!["READONLY_ROOTFS_REQUIRED read_only_rootfs"],
        ),
        (json!({}), json!({"read_only_rootfs": false}), vec![]),
        (network.clone(), json!({}), vec![]),
        (
            network.clone(),
            endpoints(&["example.com:443", "10.0.0.0/8", "fd00::/8"]),
            vec![],
        ),
        (json!({}), endpoints(&[]), vec![]),
        (
            network.clone(),
            endpoints(&[]),
            vec!["MISSING_NETWORK_POLICY network.allowed_endpoints"],
        ),
        (
            network,
            endpoints(&[
                "a.example",
                "0.0.0.0/0",
                "0.0.0.0/0:443",
                "::/0",
                "[::/0]:443",
                "[::]/0:443",
            ]),
            vec![
                "MISSING_NETWORK_POLICY network.allowed_endpoints[1]",
                "MISSING_NETWORK_POLICY network.allowed_endpoints[2]",
                "MISSING_NETWORK_POLICY network.allowed_endpoints[3]",
                "MISSING_NETWORK_POLICY network.allowed_endpoints[4]",
                "MISSING_NETWORK_POLICY network.allowed_endpoints[5]",
            ],
        ),
        (json!({}), json!({"network": {"ingress_ports": [22]}}), vec![]),
        (
            json!({"allowed_ingress_ports": [8080]}),
            json!({"network": {"ingress_ports": [22, 8080, 80]}}),
            vec![
                "PORT_NOT_ALLOWED network.ingress_ports[0]",
                "PORT_NOT_ALLOWED network.ingress_ports[2]",
            ],
        ),
        (
            json!({"allowed_ingress_ports": []}),
            json!({"network": {"ingress_ports": [8080]}}),
            vec!["PORT_NOT_ALLOWED network.ingress_ports[0]"],
        ),
        (
            json!({"blocked_env_vars": ["B", "C"]}),
            json!({"allowed_env_vars": ["A", "B"], "env_vars": {"A": "1", "C": "2", "c": "3"}}),
            vec!["BLOCKED_ENV_VAR allowed_env_vars[1]", "BLOCKED_ENV_VAR env_vars.C"],
        ),
        (json!({}), pip(&["-r x", "anything"]), vec![]),
        (only.clone(), pip(&["Requests==2.0", "ZOPE_Interface>=5"]), vec![]),
        (
            only.clone(),
            pip(&["requests", "flask"]),
            vec!["PACKAGE_NOT_ALLOWED pip_packages[1]"],
        ),
        (
            json!({"allowed_pip_packages": []}),
            pip(&["x"]),
            vec!["PACKAGE_NOT_ALLOWED pip_packages[0]"],
        ),
        (
            json!({"blocked_pip_packages": ["Paramiko"]}),
            pip(&["requests", "paramiko[all]<3", "PARAMIKO"]),
            vec!["BLOCKED_PACKAGE pip_packages[1]", "BLOCKED_PACKAGE pip_packages[2]"],
        ),
        (
            json!({"allowed_pip_packages": ["x"], "blocked_pip_packages": ["x"]}),
            pip(&["x"]),
            vec!["BLOCKED_PACKAGE pip_packages[0]"],
        ),
        (
            json!({"blocked_pip_packages": ["paramiko"]}),
            pip(&[
                "git+https://example.com/paramiko.git",
                "--pre",
                "./paramiko",
                "paramiko-3-py3-none-any.whl",
            ]),
            vec![
                "PACKAGE_NOT_ALLOWED pip_packages[0]",
                "PACKAGE_NOT_ALLOWED pip_packages[1]",
                "PACKAGE_NOT_ALLOWED pip_packages[2]",
                "PACKAGE_NOT_ALLOWED pip_packages[3]",
            ],
        ),
        (
            json!({
                "max_memory_mb": 256, "max_cpu_cores": 0.5, "max_timeout_seconds": 1, "allowed_pip_packages": [],
                "require_network_policy": true, "require_readonly_rootfs": true, "allowed_ingress_ports": [],
                "blocked_env_vars": ["A"]
            }),
            json!({
                "network": {"disabled": false, "ingress_ports": [80]}, "env_vars": {"A": ""}, "pip_packages": ["x"],
                "read_only_rootfs": false
            }),
            vec![
                "CPU_EXCEEDED cpu_cores",
                "MEMORY_EXCEEDED memory_mb",
                "MISSING_NETWORK_POLICY network.allowed_endpoints",
                "PORT_NOT_ALLOWED network.ingress_ports[0]",
                "BLOCKED_ENV_VAR env_vars.A",
                "PACKAGE_NOT_ALLOWED pip_packages[0]",
                "TIMEOUT_EXCEEDED timeout_seconds",
                "READONLY_ROOTFS_REQUIRED read_only_rootfs",
            ],
        ),
    ]
}

#[tokio::test]
async fn everything_is_found_with_its_path() {
    for (config, asked, expected) in found() {
        let findings = findings(&config, &asked).await;
        let names: Vec<_> = findings
            .iter()
            .map(|finding| format!("{} {}", finding.code, finding.path))
            .collect();
        assert_eq!(names, expected, "{config} {asked}");
        for finding in findings {
            let warns = finding.code == "LOW_MEMORY";
            let severity = if warns { Severity::Warning } else { Severity::Error };
            assert_eq!(finding.severity, severity, "{finding}");
        }
    }
}

#[tokio::test]
async fn in_strict_mode_warnings_deny_and_nothing_is_narrowed() {
    for (mut config, asked, expected) in found() {
        config["strict_mode"] = json!(true);
        let findings = findings(&config, &asked).await;
        assert_eq!(findings.len(), expected.len());
        assert!(findings.iter().all(Finding::denies), "{config} {asked}");
        let asked = policy(asked);
        let enforced = validator(config)
            .enforce(asked.clone(), &EnforcementContext::new())
            .await
            .unwrap();
        assert_eq!((enforced.policy, enforced.changes), (asked, vec![]));
    }
}

#[tokio::test]
async fn what_is_narrowed_is_reported_one_by_one() {
    let config = json!({
        "max_memory_mb": 256, "max_cpu_cores": 0.5, "max_timeout_seconds": 60, "require_readonly_rootfs": true,
        "allowed_ingress_ports": [8080], "blocked_env_vars": ["A", "B"]
    });
    let asked = policy(json!({
        "memory_mb": null, "cpu_cores": 2.0, "read_only_rootfs": false, "allowed_env_vars": ["X", "A", "Y", "B"],
        "env_vars": {"A": "hunter2", "C": "kept"}, "network": {"ingress_ports": [22, 8080, 80]}
    }));
    let context = EnforcementContext::new();
    let validator = validator(config);
    let enforced = validator.enforce(asked.clone(), &context).await.unwrap();
    enforced.check(&asked).unwrap();
    let changes: Vec<_> = enforced
        .changes
        .iter()
        .map(|change| {
            (
                change.code.as_str(),
                change.path.as_str(),
                change.from.clone(),
                change.to.clone(),
            )
        })
        .collect();
    let expected = [
        ("CPU_EXCEEDED", "cpu_cores", json!(2.0), json!(0.5)),
        ("MEMORY_EXCEEDED", "memory_mb", json!(null), json!(256)),
        ("PORT_NOT_ALLOWED", "network.ingress_ports[0]", json!(22), json!(null)),
        ("PORT_NOT_ALLOWED", "network.ingress_ports[2]", json!(80), json!(null)),
        ("BLOCKED_ENV_VAR", "allowed_env_vars[1]", json!("A"), json!(null)),
        ("BLOCKED_ENV_VAR", "allowed_env_vars[3]", json!("B"), json!(null)),
        ("BLOCKED_ENV_VAR", "env_vars.A", json!("(a value)"), json!(null)),
        ("TIMEOUT_EXCEEDED", "timeout_seconds", json!(null), json!(60.0)),
        (
            "READONLY_ROOTFS_REQUIRED",
            "read_only_rootfs",
            json!(false),
            json!(true),
        ),
    ];
    assert_eq!(changes, expected);
    let narrow = &enforced.policy;
    assert_eq!(narrow.allowed_env_vars, ["X", "Y"]);
    assert_eq!(narrow.env_vars.keys().collect::<Vec<_>>(), ["C"]);
    assert_eq!(narrow.network.ingress_ports, [8080]);
    assert_eq!(
        (narrow.memory_mb, narrow.cpu_cores, narrow.timeout_seconds),
        (Some(256), Some(0.5), Some(60.0))
    );
    assert!(narrow.read_only_rootfs);
    assert_eq!(validator.validate(narrow, &context).await.unwrap().findings, []);
}

const SETS: [&str; 3] = ["pod-security-baseline", "pod-security-restricted", "cis-docker"];

/// The rules of a set that a policy fails, with their evidence.
async fn failures(config: Value, asked: Value, set: &str) -> BTreeMap<String, String> {
    let sets = [set.to_owned()];
    let report = validator(config).check_compliance(&policy(asked), &sets).await.unwrap();
    let failed: BTreeMap<_, _> = report
        .rules
        .iter()
        .filter(|rule| rule.outcome == ComplianceOutcome::Fail)
        .map(|rule| (rule.rule.clone(), rule.evidence.clone()))
        .collect();
    assert_eq!(report.is_compliant(), failed.is_empty());
    failed
}

#[tokio::test]
async fn each_rule_that_a_policy_can_break_is_broken_by_one() {
    let mount = |path: &str| json!({"readonly_mounts": [path]});
    let [baseline, restricted, docker] = SETS;
    let docker_image = "5.28 the latest image is used";
    let cases: Vec<(&str, Value, Vec<&str>)> = vec![
        (baseline, json!({}), vec![]),
        (restricted, json!({}), vec![]),
        (docker, json!({"image_pull_policy": "always"}), vec![]),
        (docker, json!({"base_image": "x@sha256:00"}), vec![]),
        (docker, json!({}), vec![docker_image]),
        (baseline, json!({"cap_add": ["chown", "CAP_KILL"]}), vec![]),
        (
            baseline,
            json!({"cap_add": ["CHOWN", "NET_RAW"]}),
            vec!["Capabilities (baseline)"],
        ),
        (restricted, json!({"cap_add": ["net_bind_service"]}), vec![]),
        (restricted, json!({"cap_add": ["CHOWN"]}), vec!["Capabilities"]),
        (
            restricted,
            json!({"cap_add": ["SYS_ADMIN"]}),
            vec!["Capabilities", "Capabilities (baseline)"],
        ),
        (
            docker,
            json!({"cap_add": ["SYS_ADMIN"]}),
            vec!["5.4 capabilities are restricted", docker_image],
        ),
        (baseline, mount("/data"), vec!["HostPath Volumes"]),
        (restricted, mount("/data"), vec!["HostPath Volumes", "Volume Types"]),
        (docker, mount("/data:/etc/x"), vec![docker_image]),
        (
            docker,
            mount("/etc/ssl:/data"),
            vec![docker_image, "5.6 no sensitive host folders are mounted"],
        ),
        (docker, mount("/etcetera"), vec![docker_image]),
        (
            docker,
            mount("/data/../etc:/data"),
            vec![
                docker_image,
                "5.32 the engine's socket is not mounted",
                "5.6 no sensitive host folders are mounted",
            ],
        ),
        (
            docker,
            mount("/var/run:/data"),
            vec![docker_image, "5.32 the engine's socket is not mounted"],
        ),
        (
            docker,
            mount("/run/user/1000/podman/podman.sock"),
            vec![docker_image, "5.32 the engine's socket is not mounted"],
        ),
        (baseline, json!({"network": {"ingress_ports": [8080]}}), vec![]),
        (
            baseline,
            json!({"network": {"ingress_ports": [9090]}}),
            vec!["Host Ports"],
        ),
        (
            docker,
            json!({"network": {"ingress_ports": [80]}}),
            vec![
                docker_image,
                "5.8 no privileged ports are mapped",
                "5.9 only needed ports are open",
            ],
        ),
        (restricted, json!({"container_user": "1000:0"}), vec![]),
        (
            restricted,
            json!({"container_user": "0:1000"}),
            vec!["Running as Non-root", "Running as Non-root user"],
        ),
        (baseline, json!({"container_user": "0:0"}), vec![]),
        (
            docker,
            json!({"container_user": "0:0"}),
            vec!["5.24 exec does not use the root user", docker_image],
        ),
        (
            docker,
            json!({"memory_mb": null}),
            vec!["5.11 memory is limited", docker_image],
        ),
        (
            docker,
            json!({"cpu_cores": null}),
            vec!["5.12 CPU is limited", docker_image],
        ),
        (
            docker,
            json!({"pids_limit": null}),
            vec![docker_image, "5.29 the number of processes is limited"],
        ),
        (
            docker,
            json!({"read_only_rootfs": false}),
            vec!["5.13 the root file system is read-only", docker_image],
        ),
        (
            restricted,
            json!({"read_only_rootfs": false, "memory_mb": null}),
            vec![],
        ),
        (docker, json!({"retry_count": 5}), vec![docker_image]),
        (
            docker,
            json!({"retry_count": 6}),
            vec!["5.15 restarts on failure are limited to 5", docker_image],
        ),
        (
            docker,
            json!({"gpus": "all"}),
            vec!["5.18 no host devices are exposed", docker_image],
        ),
        (docker, json!({"nofile_limit": null}), vec![docker_image]),
        (restricted, json!({"seccomp_profile": "/etc/profile.json"}), vec![]),
    ];
    for (set, asked, expected) in cases {
        let failed = failures(json!({"allowed_ingress_ports": [8080]}), asked.clone(), set).await;
        let rules: Vec<_> = failed.keys().map(String::as_str).collect();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(rules, expected, "{set} {asked}");
        assert!(failed.values().all(|evidence| !evidence.is_empty()));
    }
    // Without a list of needed ports, none is needed.
    let failed = failures(json!({}), json!({"network": {"ingress_ports": [8080]}}), baseline).await;
    assert_eq!(
        failed["Host Ports"],
        "port 8080 is published and not in allowed_ingress_ports"
    );
}

#[tokio::test]
async fn the_report_has_every_rule_of_every_set_in_order() {
    let validator = validator(json!({}));
    let sets = SETS.map(str::to_owned);
    let report = validator.check_compliance(&Policy::default(), &sets).await.unwrap();
    let count = |set: &str| report.rules.iter().filter(|rule| rule.rule_set == set).count();
    assert_eq!(SETS.map(count), [12, 18, 32]);
    let numbers: Vec<_> = report.rules[30..]
        .iter()
        .map(|rule| rule.rule.split(' ').next().unwrap())
        .collect();
    let expected: Vec<_> = (1..=32).map(|n| format!("5.{n}")).collect();
    assert_eq!(numbers, expected);

    let unknown = ["cis-docker".to_owned(), "pci".to_owned()];
    let error = validator
        .check_compliance(&Policy::default(), &unknown)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(SETS.iter().all(|set| error.message().contains(set)), "{error}");
}

fn words(list: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    vec(prop::sample::select(list).prop_map(str::to_owned), 0..4)
}

const NAMES: &[&str] = &["A", "B", "LD_PRELOAD", "ü", "x y"];
const PACKAGES: &[&str] = &[
    "requests",
    "Requests==2",
    "zope.interface",
    "git+https://x/y",
    "flask[async]~=2",
];

prop_compose! {
    fn any_spec()(
        cpu_cores in option::of(0.01..4096.0),
        memory_mb in option::of(4_u64..1 << 24),
        timeout_seconds in option::of(0.001..31_536_000.0),
        read_only_rootfs in any::<bool>(),
        disabled in any::<bool>(),
        allowed_endpoints in words(&["a.example:443", "0.0.0.0/0", "10.0.0.0/8"]),
        ingress_ports in vec(prop::sample::select(vec![1_u32, 22, 80, 8080, 65535]), 0..4),
        allowed_env_vars in words(NAMES),
        names in words(NAMES),
        pip_packages in words(PACKAGES),
        cap_add in words(&["NET_RAW", "chown"]),
    ) -> PolicySpec {
        let network = NetworkPolicy { disabled, allowed_endpoints, ingress_ports, ..NetworkPolicy::default() };
        let env_vars = names.into_iter().map(|name| (name, "value".to_owned())).collect();
        PolicySpec {
            cpu_cores, memory_mb, timeout_seconds, read_only_rootfs, network, allowed_env_vars, env_vars, pip_packages,
            cap_add, ..PolicySpec::default()
        }
    }
}

prop_compose! {
    fn any_config()(
        max_cpu_cores in option::of(0.01..4096.0),
        max_memory_mb in option::of(4_u64..1 << 24),
        max_timeout_seconds in option::of(0.001..31_536_000.0),
        allowed_pip_packages in option::of(words(&["requests", "flask"])),
        blocked_pip_packages in words(&["requests", "Zope_Interface"]),
        require_network_policy in any::<bool>(),
        require_readonly_rootfs in any::<bool>(),
        allowed_ingress_ports in option::of(vec(prop::sample::select(vec![22_u16, 8080]), 0..3)),
        blocked_env_vars in words(NAMES),
        strict_mode in any::<bool>(),
    ) -> DefaultPolicyConfig {
        let mut config = DefaultPolicyConfig::new();
        config.max_cpu_cores = max_cpu_cores;
        config.max_memory_mb = max_memory_mb;
        config.max_timeout_seconds = max_timeout_seconds;
        config.allowed_pip_packages = allowed_pip_packages;
        config.blocked_pip_packages = blocked_pip_packages;
        config.require_network_policy = require_network_policy;
        config.require_readonly_rootfs = require_readonly_rootfs;
        config.allowed_ingress_ports = allowed_ingress_ports;
        config.blocked_env_vars = blocked_env_vars;
        config.strict_mode = strict_mode;
        config
    }
}

proptest! {
    #[test]
    fn enforcing_only_narrows_and_leaves_nothing_that_it_could_narrow(spec in any_spec(), config in any_config()) {
        let strict = config.strict_mode;
        let validator = DefaultPolicy::new(config).unwrap();
        let asked = Policy::new(spec).unwrap();
        let context = EnforcementContext::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (enforced, left) = runtime.block_on(async {
            let enforced = validator.enforce(asked.clone(), &context).await.unwrap();
            let left = validator.validate(&enforced.policy, &context).await.unwrap();
            (enforced, left)
        });
        prop_assert!(enforced.check(&asked).is_ok(), "{:?}", enforced.check(&asked));
        prop_assert_eq!(enforced.changes.is_empty(), enforced.policy == asked);
        if strict {
            prop_assert!(enforced.changes.is_empty());
        } else {
            const LEFT: [&str; 4] = ["LOW_MEMORY", "MISSING_NETWORK_POLICY", "BLOCKED_PACKAGE", "PACKAGE_NOT_ALLOWED"];
            for finding in left.findings {
                prop_assert!(LEFT.contains(&finding.code.as_str()), "{finding}");
            }
        }
    }
}
