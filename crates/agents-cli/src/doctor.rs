//! `agents doctor`: what works here, what does not, and what to do.

#[cfg(feature = "spool")]
mod spool;

use std::{fs, path::Path};

use agents_sdk::{
    core::{Adapters as Built, Availability, Problem, Result, RuntimeCapabilities, Support},
    session::Engine,
};
use owo_colors::OwoColorize;
use serde::Serialize;
use serde_json::json;

use crate::{
    args::Adapters,
    context::Context,
    failure::{CODE_FAILED, Outcome},
    output::{self, one_line},
    units,
};

/// Less free space than this is a problem.
const LOW_SPACE: u64 = 1 << 30;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    usable: bool,
    facts: Vec<String>,
    problems: Vec<Problem>,
}

pub(crate) async fn doctor(context: &Context) -> Outcome {
    let loaded = context.load(&Adapters::default())?;
    let (state, data) = (loaded.dirs.state.clone(), loaded.dirs.data.clone());
    let file = loaded.config.file().map(|file| file.display().to_string());
    #[cfg(feature = "spool")]
    let folders = spool::folders(&state, &loaded.config.settings());
    let engine = context.build(loaded).await?;
    let mut findings = vec![Finding {
        name: "configuration".to_owned(),
        usable: true,
        facts: vec![
            file.unwrap_or_else(|| "no file, so the defaults and the environment".to_owned()),
            format!("state in {}", state.display()),
            format!("data in {}", data.display()),
        ],
        problems: Vec::new(),
    }];
    findings.push(host(&state));
    findings.extend(adapters(&engine).await);
    #[cfg(feature = "spool")]
    let spools = spool::look(&folders, &engine.adapters().audit.location(), &mut findings).await;
    #[cfg(not(feature = "spool"))]
    let spools: [(); 0] = [];
    let capabilities = engine.adapters().runtime.capabilities();
    let usable = findings.iter().all(|finding| finding.usable);
    if context.json() {
        output::json(&json!({"usable": usable, "findings": findings, "capabilities": capabilities, "spools": spools}))?;
    } else {
        output::text(&render(&findings, &capabilities))?;
        if !context.common.quiet {
            output::note(match usable {
                true => "everything that is configured can be used",
                false => "something that is configured cannot be used; see above for what to do",
            });
        }
    }
    Ok(if usable { 0 } else { CODE_FAILED })
}

fn render(findings: &[Finding], capabilities: &RuntimeCapabilities) -> String {
    let mut lines = Vec::new();
    for finding in findings {
        let mark = match (finding.usable, finding.problems.is_empty()) {
            (true, true) => "ok".green().to_string(),
            (true, false) => "limited".yellow().to_string(),
            (false, _) => "unusable".red().to_string(),
        };
        lines.push(format!("{}: {mark}", finding.name.bold()));
        lines.extend(finding.facts.iter().map(|fact| format!("  {}", one_line(fact))));
        for problem in &finding.problems {
            lines.push(format!("  {} {}", "problem:".yellow(), one_line(&problem.reason)));
            lines.push(format!("  {} {}", "to do:".cyan(), one_line(&problem.remedy)));
        }
    }
    lines.push(format!("{}:", "what the runtime enforces here".bold()));
    let (mut enforced, mut refused) = (Vec::new(), Vec::new());
    for (name, support) in capabilities.entries() {
        match support {
            Support::Enforced => enforced.push(name),
            Support::Refused { reason, remedy } => {
                refused.push(format!("  {}: {}; {}", name, one_line(reason), one_line(remedy)));
            }
        }
    }
    lines.push(format!("  {}", enforced.join(", ")));
    if !refused.is_empty() {
        lines.push(format!("{}:", "what it refuses here".bold()));
        lines.extend(refused);
    }
    lines.join("\n") + "\n"
}

async fn adapters(engine: &Engine) -> Vec<Finding> {
    let Built {
        runtime,
        storage,
        audit,
        policy,
    } = engine.adapters();
    let label = |kind: &str, info: agents_sdk::core::AdapterInfo| match info.name == info.adapter_type {
        true => format!("{kind} {}", info.adapter_type),
        false => format!("{kind} {} ({})", info.adapter_type, one_line(&info.name)),
    };
    vec![
        finding(
            label("container_runtime", runtime.info()),
            runtime.check_availability().await,
        ),
        finding(
            label("storage_backend", storage.info()),
            storage.check_availability().await,
        ),
        finding(label("audit_logger", audit.info()), audit.check_availability().await),
        finding(
            label("policy_validator", policy.info()),
            policy.check_availability().await,
        ),
    ]
}

fn finding(name: String, answer: Result<Availability>) -> Finding {
    let answer = answer.unwrap_or_else(|error| {
        Availability::unavailable(
            error.report(),
            "correct what the message names, and run agents doctor again",
        )
    });
    Finding {
        name,
        usable: answer.available,
        facts: answer.facts,
        problems: answer.problems,
    }
}

/// Facts of this machine. None of them makes it unusable by itself: that is the runtime's to say.
fn host(state: &Path) -> Finding {
    let mut facts = Vec::new();
    let mut problems = Vec::new();
    let name = rustix::system::uname();
    facts.push(format!(
        "kernel {} {}",
        name.release().to_string_lossy(),
        name.machine().to_string_lossy()
    ));
    facts.push(cgroups(Path::new("/sys/fs/cgroup"), Path::new("/proc/self/cgroup")));
    user_namespaces(Path::new("/proc/sys"), &mut facts, &mut problems);
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(_) => facts.push("seccomp filters".to_owned()),
        Err(_) => problems.push(Problem::new(
            "the kernel has no seccomp filters",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )),
    }
    if let Ok(stat) = rustix::fs::statvfs(state) {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        facts.push(format!("{} free for {}", units::bytes(free), state.display()));
        if free < LOW_SPACE {
            problems.push(Problem::new(
                format!("only {} are free for sessions and artifacts", units::bytes(free)),
                "free some space, or choose another folder with --state-dir",
            ));
        }
    }
    Finding {
        name: "host".to_owned(),
        usable: true,
        facts,
        problems,
    }
}

/// The version of the cgroups, and what is delegated to this process.
fn cgroups(root: &Path, own: &Path) -> String {
    if let Ok(all) = fs::read_to_string(root.join("cgroup.controllers")) {
        let own = fs::read_to_string(own).unwrap_or_default();
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap_or_default();
        let folder = root.join(own);
        let delegated = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        let writable = rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK).is_ok();
        return match writable {
            true => format!("cgroup v2, this process may manage {}", delegated.trim()),
            false => format!("cgroup v2 with {}, none delegated to this process", all.trim()),
        };
    }
    let mut controllers: Vec<_> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("tasks").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    controllers.sort();
    match controllers.is_empty() {
        true => "no cgroups".to_owned(),
        false => format!("cgroup v1 with {}", controllers.join(", ")),
    }
}

fn user_namespaces(sys: &Path, facts: &mut Vec<String>, problems: &mut Vec<Problem>) {
    let number = |name: &str| {
        let text = fs::read_to_string(sys.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let refusals = [
        ("user/max_user_namespaces", 0, "sysctl user.max_user_namespaces=10000"),
        (
            "kernel/unprivileged_userns_clone",
            0,
            "sysctl kernel.unprivileged_userns_clone=1",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            1,
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or a profile for this program",
        ),
    ];
    if number("user/max_user_namespaces").is_none() {
        problems.push(Problem::new(
            "the kernel has no user namespaces",
            "use a kernel with CONFIG_USER_NS, or run as root",
        ));
        return;
    }
    let refused: Vec<_> = refusals
        .into_iter()
        .filter(|refusal| number(refusal.0) == Some(refusal.1))
        .collect();
    if refused.is_empty() {
        facts.push("user namespaces for everybody".to_owned());
    }
    for (name, value, remedy) in refused {
        problems.push(Problem::new(
            format!("user namespaces are closed to ordinary users ({name} is {value})"),
            format!("run {remedy}, or run as root"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn both_versions_of_cgroups_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("cgroup");
        let own = folder.path().join("self");
        fs::create_dir(&root).unwrap();
        assert_eq!(cgroups(&root, &own), "no cgroups");
        file(&root.join("memory/tasks"), "");
        file(&root.join("cpu/tasks"), "");
        assert_eq!(cgroups(&root, &own), "cgroup v1 with cpu, memory");
        file(&root.join("cgroup.controllers"), "cpu memory pids\n");
        file(&root.join("mine/cgroup.controllers"), "memory pids\n");
        file(&own, "0::/mine\n");
        assert_eq!(cgroups(&root, &own), "cgroup v2, this process may manage memory pids");
    }

    #[test]
    fn closed_user_namespaces_are_a_problem_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let sys = folder.path();
        let look = || {
            let (mut facts, mut problems) = (Vec::new(), Vec::new());
            user_namespaces(sys, &mut facts, &mut problems);
            (facts, problems)
        };
        assert!(look().1[0].reason.contains("no user namespaces"));
        file(&sys.join("user/max_user_namespaces"), "100\n");
        assert_eq!(look().0, ["user namespaces for everybody"]);
        file(&sys.join("kernel/apparmor_restrict_unprivileged_userns"), "1\n");
        let (facts, problems) = look();
        assert!(facts.is_empty());
        assert!(problems[0].remedy.contains("apparmor_restrict_unprivileged_userns=0"));
    }
}
