//! Seccomp profiles in the JSON format of Docker and the OCI.

use std::{fs, path::Path};

use agents_core::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The default profile: equal in meaning to the native runtime's filter. It allows what programs need and refuses the rest,
/// among it everything that makes or enters namespaces, mounts, traces, loads code into the kernel, keeps keys, makes
/// set-user-id files, or talks to the kernel's own netlink families.
///
/// A profile can only allow on conditions, so what the native filter refuses on a condition is allowed here on the opposite
/// one: where a value of 32 bits must be another than `X`, one of its bits must differ, and there is a rule for each. The
/// upper halves of registers, of which the kernel takes no notice there, are masked out.
pub const DEFAULT_SECCOMP_PROFILE: &str = include_str!("seccomp.json");

/// What of a profile is looked at before an engine gets it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Deserialize)]
struct Argument {
    index: u8,
    #[serde(rename = "value")]
    _value: u64,
    op: String,
}

const ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The profile to load: the one at a path, or the default.
pub(super) fn profile(path: Option<&Path>) -> Result<String> {
    let Some(path) = path else {
        return Ok(DEFAULT_SECCOMP_PROFILE.to_owned());
    };
    let text = fs::read_to_string(path)
        .map_err(|error| Error::io(format!("seccomp_profile: cannot read {}", path.display()), error))?;
    check(&text)?;
    Ok(text)
}

/// Engines take some faults for something harmless, and tell of others only when the container starts.
fn check(text: &str) -> Result<()> {
    let profile: Profile = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("seccomp_profile: this is not a seccomp profile: {error}")))?;
    let invalid = |what: &str, kind: &str| Error::invalid(format!("seccomp_profile: {what:?} is not {kind}"));
    let actions = profile.syscalls.iter().map(|rule| &rule.action);
    for action in std::iter::once(&profile.default_action).chain(actions) {
        if !ACTIONS.contains(&action.as_str()) {
            return Err(invalid(action, "an action"));
        }
    }
    for rule in &profile.syscalls {
        if rule.names.is_empty() && rule.name.is_none() {
            return Err(Error::invalid("seccomp_profile: a rule names no call"));
        }
        for argument in rule.args.iter().flatten() {
            if !OPERATORS.contains(&argument.op.as_str()) {
                return Err(invalid(&argument.op, "an operator"));
            }
            if argument.index > 5 {
                return Err(invalid(&argument.index.to_string(), "the index of an argument, 0 to 5"));
            }
        }
    }
    Ok(())
}

/// The profile in words that gVisor understands. It takes no notice of `errnoRet` and answers `EPERM` to whatever is refused,
/// for which programs do not go another way, so that none could make a thread. A call that is to be traced fails with `ENOSYS`
/// where nobody traces, seccomp(2), and nobody may here.
pub(super) fn for_gvisor(text: String) -> String {
    const ENOSYS: u64 = 38;
    let Ok(mut profile) = serde_json::from_str::<Value>(&text) else {
        return text;
    };
    let rules = profile.get_mut("syscalls").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten().filter_map(Value::as_object_mut) {
        if rule.get("errnoRet").and_then(Value::as_u64) == Some(ENOSYS) {
            rule.remove("errnoRet");
            rule.insert("action".to_owned(), "SCMP_ACT_TRACE".into());
        }
    }
    profile.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_unknown_looks_so_in_gvisor_too() {
        let profile = for_gvisor(DEFAULT_SECCOMP_PROFILE.to_owned());
        check(&profile).unwrap();
        assert!(!profile.contains("\"errnoRet\":38"));
        let profile: Value = serde_json::from_str(&profile).unwrap();
        let rules = profile["syscalls"].as_array().unwrap();
        let clone3 = rules
            .iter()
            .find(|rule| rule["names"].as_array().unwrap().iter().any(|name| name == "clone3"));
        assert_eq!(clone3.unwrap()["action"], "SCMP_ACT_TRACE");
        assert_eq!(for_gvisor("no JSON".to_owned()), "no JSON");
    }

    /// What the profile answers: the number of an error, or 0.
    fn answer(name: &str, args: &[u64]) -> u64 {
        let profile: Value = serde_json::from_str(DEFAULT_SECCOMP_PROFILE).unwrap();
        let rules = profile["syscalls"].as_array().unwrap();
        let matching = rules.iter().filter(|rule| {
            let named = rule["names"].as_array().unwrap().iter().any(|known| known == name);
            let conditions = rule["args"].as_array().into_iter().flatten();
            named
                && conditions.into_iter().all(|condition| {
                    let number = |key: &str| condition[key].as_u64().unwrap();
                    let value = args[usize::try_from(number("index")).unwrap()];
                    match condition["op"].as_str().unwrap() {
                        "SCMP_CMP_EQ" => value == number("value"),
                        "SCMP_CMP_MASKED_EQ" => value & number("value") == number("valueTwo"),
                        other => panic!("{other}"),
                    }
                })
        });
        let answers: Vec<u64> = matching
            .map(|rule| match rule["action"].as_str().unwrap() {
                "SCMP_ACT_ALLOW" => 0,
                "SCMP_ACT_ERRNO" => rule["errnoRet"].as_u64().unwrap(),
                other => panic!("{other}"),
            })
            .collect();
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{name} has two answers"
        );
        answers.first().copied().unwrap_or(1)
    }

    const UPPER: u64 = 7 << 32;

    #[test]
    fn the_default_profile_is_one() {
        check(DEFAULT_SECCOMP_PROFILE).unwrap();
    }

    #[test]
    fn dangerous_calls_are_refused() {
        for name in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "ptrace",
            "bpf",
            "keyctl",
            "add_key",
            "request_key",
            "kexec_load",
            "init_module",
            "perf_event_open",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "pivot_root",
            "chroot",
            "move_mount",
            "fsopen",
            "open_tree",
            "process_vm_readv",
            "settimeofday",
            "swapon",
            "seccomp",
        ] {
            assert_eq!(answer(name, &[0; 6]), 1, "{name}");
        }
        for name in ["clone3", "openat2"] {
            assert_eq!(answer(name, &[0; 6]), 38, "{name}");
        }
        for name in [
            "read",
            "write",
            "execve",
            "futex",
            "exit_group",
            "vfork",
            "wait4",
            "prctl",
        ] {
            assert_eq!(answer(name, &[0; 6]), 0, "{name}");
        }
    }

    #[test]
    fn namespaces_are_not_made_by_clone() {
        for flag in [
            0x0002_0000,
            0x0200_0000,
            0x0400_0000,
            0x0800_0000,
            0x1000_0000,
            0x2000_0000,
            0x4000_0000,
        ] {
            assert_eq!(answer("clone", &[flag | 17, 0, 0, 0, 0, 0]), 1, "{flag:x}");
        }
        assert_eq!(answer("clone", &[0x3d_0f00, 0, 0, 0, 0, 0]), 0);
    }

    #[test]
    fn sockets_are_of_few_families() {
        for (allowed, family, kind, protocol) in [
            (true, 1, 0x8_0001, 0),
            (true, 2, 1, 6),
            (true, 10, 2 | 0x800, 17),
            (true, 16, 3, 0),
            (false, 2, 3, 1),
            (false, 16, 3, 9),
            (false, 16, 3, 12),
            (false, 17, 3, 0),
            (false, 40, 1, 0),
            (false, 16 | UPPER, 3, 9),
        ] {
            let answer = answer("socket", &[family, kind, protocol, 0, 0, 0]);
            assert_eq!(answer == 0, allowed, "{family} {kind} {protocol}");
        }
        assert_eq!(answer("socketpair", &[2, 1, 0, 0, 0, 0]), 1);
    }

    #[test]
    fn nothing_is_pushed_into_a_terminal() {
        for upper in [0, UPPER] {
            assert_eq!(answer("ioctl", &[0, 0x5412 | upper, 0, 0, 0, 0]), 1);
            assert_eq!(answer("ioctl", &[0, 0x541c | upper, 0, 0, 0, 0]), 1);
        }
        for allowed in (0x5000..0x6000)
            .chain([0, 1 << 31, 0x8004_5430])
            .filter(|call| ![0x5412, 0x541c].contains(call))
        {
            assert_eq!(answer("ioctl", &[0, allowed, 0, 0, 0, 0]), 0, "{allowed:x}");
        }
    }

    #[test]
    fn no_devices_and_no_set_user_id_files_are_made() {
        let modes: [(u64, u64); 6] = [
            (0o100_644, 0),
            (0o010_600, 0),
            (0o140_777, 0),
            (0o020_666, 1),
            (0o060_666, 1),
            (0o104_755, 1),
        ];
        for (mode, expected) in modes {
            assert_eq!(answer("mknod", &[0, mode, 0, 0, 0, 0]), expected, "{mode:o}");
            assert_eq!(answer("mknodat", &[0, 0, mode, 0, 0, 0]), expected, "{mode:o}");
        }
        for (mode, expected) in [(0o755, 0), (0o1777, 0), (0o4755, 1), (0o2755, 1), (0o6000 | UPPER, 1)] {
            assert_eq!(answer("chmod", &[0, mode, 0, 0, 0, 0]), expected);
            assert_eq!(answer("fchmodat2", &[0, 0, mode, 0, 0, 0]), expected);
            assert_eq!(answer("openat", &[0, 0, 0o101, mode, 0, 0]), expected);
            assert_eq!(answer("open", &[0, 0o2020_0002, mode, 0, 0, 0]), expected);
            // Without a file to make, the mode is whatever lies in the register.
            assert_eq!(answer("openat", &[0, 0, 0, mode, 0, 0]), 0);
        }
    }

    #[test]
    fn the_first_process_keeps_the_processor() {
        for pid in [0, 2, 3, 1 << 31, 12_345] {
            assert_eq!(answer("sched_setaffinity", &[pid, 0, 0, 0, 0, 0]), 0, "{pid}");
            assert_eq!(answer("setpriority", &[0, pid, 0, 0, 0, 0]), 0, "{pid}");
        }
        for upper in [0, UPPER] {
            assert_eq!(answer("sched_setscheduler", &[1 | upper, 0, 0, 0, 0, 0]), 1);
            assert_eq!(answer("setpriority", &[upper, 1 | upper, 0, 0, 0, 0]), 1);
            assert_eq!(answer("setpriority", &[2 | upper, 0, 0, 0, 0, 0]), 1);
        }
        assert_eq!(answer("setpriority", &[1, 1, 0, 0, 0, 0]), 0);
    }

    #[test]
    fn profiles_are_read_or_refused() {
        let good = r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["read", "not_a_call"], "action": "SCMP_ACT_ALLOW", "args": null},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
        check(good).unwrap();
        for bad in [
            "{}",
            "[]",
            r#"{"defaultAction": 7}"#,
            r#"{"defaultAction": "ALLOW"}"#,
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(profile(Some(Path::new("/no/such/profile.json"))).is_err());
    }
}
