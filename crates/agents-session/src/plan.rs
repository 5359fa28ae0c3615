//! From an agent and a policy to a container: pure but for looking at the host's paths.

use std::path::{Path, PathBuf};

use agents_core::{
    ContainerId, Error, ErrorKind, Finding, Mount, MountSource, NetworkConfig, Policy, Process, ProvisionRequest,
    ResourceLimits, Result, RuntimeCapabilities, SecretBytes, SecurityConfig, SessionId, Support, ValidationResult,
    capability, split_mount,
};

use crate::{Agent, Input};

/// Where the workspace is, and the working directory.
const WORKSPACE: &str = "/workspace";
const MIB: u64 = 1 << 20;

/// The label with the session.
pub(crate) const LABEL_SESSION: &str = "isolated-agents.session";
/// The label with the agent.
pub(crate) const LABEL_AGENT: &str = "isolated-agents.agent";
/// The label with the state folder that the session is recorded in.
pub(crate) const LABEL_STATE: &str = "isolated-agents.state";

/// What runs, and where.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Without the main process, and with the name of the first attempt.
    pub(crate) request: ProvisionRequest,
    pub(crate) process: Process,
}

/// The command with the policy's entrypoint.
pub(crate) fn command(agent: &Agent, policy: &Policy) -> Vec<String> {
    policy
        .entrypoint
        .iter()
        .flatten()
        .chain(&agent.command)
        .cloned()
        .collect()
}

/// The image.
pub(crate) fn image(agent: &Agent, policy: &Policy) -> String {
    agent.image.clone().unwrap_or_else(|| policy.base_image.clone())
}

/// What must not be shown: secrets, and the values of sensitive variables.
pub(crate) fn secrets(agent: &Agent, policy: &Policy) -> Vec<SecretBytes> {
    let sensitive = |name: &String| policy.sensitive_env_vars.contains(name);
    let forwarded = policy
        .allowed_env_vars
        .iter()
        .filter(|name| sensitive(name))
        .filter_map(|name| std::env::var(name).ok());
    let given = agent
        .env
        .iter()
        .map(|(name, value)| (name, value))
        .chain(&policy.env_vars);
    let values = given
        .filter(|(name, _)| sensitive(name))
        .map(|(_, value)| value.clone());
    let secrets = agent.secrets.iter().map(|secret| secret.value.clone());
    secrets.chain(values.chain(forwarded).map(SecretBytes::new)).collect()
}

/// The policy with the agent's own image and environment in it, so that the validator decides what is really used.
pub(crate) fn whole(agent: &Agent, policy: Policy) -> Result<Policy> {
    let image = image(agent, &policy);
    let mut spec = policy.into_spec();
    spec.base_image = image;
    spec.env_vars.extend(agent.env.iter().cloned());
    Ok(Policy::new(spec)?)
}

/// What is refused before anybody else is asked.
pub(crate) fn check(agent: &Agent, policy: &Policy, idle: bool) -> Result<()> {
    let mut findings = policy.not_implemented();
    let mut fault = |code: &str, path: &str, message: String| findings.push(Finding::error(code, path, message));
    let network = &policy.network;
    let opened = !network.allowed_endpoints.is_empty() || !network.ingress_ports.is_empty();
    if network.disabled && opened {
        let message = "contradicts allowed_endpoints and ingress_ports; set it to false, or leave the two empty";
        fault("INVALID_NETWORK", "network.disabled", message.to_owned());
    }
    if !network.disabled && !opened {
        let message = "must be true, or allowed_endpoints must say what may be reached";
        fault("INVALID_NETWORK", "network.disabled", message.to_owned());
    }
    for (name, _) in &agent.env {
        if policy.blocked_env_vars.contains(name) {
            fault(
                "BLOCKED_ENV_VAR",
                "blocked_env_vars",
                format!("the variable {name:?} is blocked; leave it out"),
            );
        }
    }
    for name in policy.tmpfs_secrets.keys() {
        if !agent.secrets.iter().any(|secret| secret.name == *name) {
            fault(
                "MISSING_SECRET",
                &format!("tmpfs_secrets.{name}"),
                "was not resolved; resolve it first".to_owned(),
            );
        }
    }
    if agent.tty.is_some() && !policy.interactive {
        fault(
            "NOT_INTERACTIVE",
            "interactive",
            "must be true for a terminal".to_owned(),
        );
    }
    if policy.retry_count > 0 && matches!(agent.stdin, Some(Input::Stream(_))) {
        let message = "needs an input that can be read again; give the bytes, or set it to 0";
        fault("INVALID_VALUE", "retry_count", message.to_owned());
    }
    if idle {
        if !agent.command.is_empty() || agent.stdin.is_some() || agent.tty.is_some() {
            fault(
                "INVALID_VALUE",
                "command",
                "a long-lived session has no command, input or terminal".to_owned(),
            );
        }
        for (path, set) in [
            ("entrypoint", policy.entrypoint.is_some()),
            ("retry_count", policy.retry_count > 0),
            ("structured_output", policy.structured_output.is_some()),
        ] {
            if set {
                fault(
                    "INVALID_VALUE",
                    path,
                    "has no meaning for a long-lived session".to_owned(),
                );
            }
        }
    } else if command(agent, policy).first().is_none_or(String::is_empty) {
        fault(
            "INVALID_VALUE",
            "command",
            "there is no command; name a program".to_owned(),
        );
    }
    ValidationResult { findings }.into_result()
}

/// The mapping. The policy is the one that the validator left of the one that was `asked` for.
pub(crate) fn plan(
    agent: &Agent,
    asked: &Policy,
    policy: &Policy,
    session_id: &SessionId,
    name: &ContainerId,
    state_root: &Path,
    state_label: &str,
) -> Result<Plan> {
    let mut mounts = vec![
        match &agent.workspace {
            Some(folder) => Mount::bind(workspace(folder)?, WORKSPACE).writable(),
            None => Mount::scratch(WORKSPACE),
        },
        Mount::scratch(policy.output_path_in_container.clone()),
        Mount::tmpfs(policy.tmpfs_size_mb * MIB, "/tmp"),
    ];
    for text in &policy.readonly_mounts {
        let (source, destination) = split_mount(text).map_err(Error::invalid)?;
        mounts.push(Mount::bind(
            readable("readonly_mounts", Path::new(source))?,
            destination,
        ));
    }
    for mount in &agent.mounts {
        let mut mount = mount.clone();
        if let MountSource::Bind { path } = &mut mount.source {
            *path = readable("mount", path)?;
        }
        mounts.push(mount);
    }
    for mount in &mounts {
        if let MountSource::Bind { path } = &mount.source
            && !mount.read_only
            && (state_root.starts_with(path) || path.starts_with(state_root))
        {
            return Err(Error::invalid(format!(
                "{} is writable for the agent and holds the state folder {}, or lies in it; keep the two apart",
                path.display(),
                state_root.display()
            )));
        }
    }
    let resources = ResourceLimits::none()
        .with_memory_bytes(policy.memory_mb.map(|mebibytes| mebibytes * MIB))
        .with_cpu_cores(policy.cpu_cores)
        .with_pids(policy.pids_limit)
        .with_nofile(policy.nofile_limit)
        .with_disk_bytes(policy.disk_mb.map(|mebibytes| mebibytes * MIB));
    let network = if policy.network.disabled {
        NetworkConfig::disabled()
    } else {
        let ports = policy
            .network
            .ingress_ports
            .iter()
            .filter_map(|port| u16::try_from(*port).ok());
        NetworkConfig::disabled()
            .with_allowed_endpoints(policy.network.allowed_endpoints.clone())
            .with_ingress_ports(ports.collect())
    };
    let security = SecurityConfig::default()
        .with_capabilities(
            policy
                .cap_add
                .iter()
                .filter_map(|name| capability(name))
                .map(|(_, name)| name)
                .collect(),
        )
        .with_seccomp_profile(
            policy
                .seccomp_profile
                .as_ref()
                .map(|path| absolute(Path::new(path)))
                .transpose()?,
        )
        .with_user(policy.user())
        .with_read_only_rootfs(policy.read_only_rootfs)
        .with_runtime_class(policy.runtime_class.clone())
        .with_gpus(policy.gpus.clone());
    let labels = [
        (LABEL_SESSION, session_id.as_str()),
        (LABEL_AGENT, agent.id.as_str()),
        (LABEL_STATE, state_label),
    ];
    // A secret that the validator took away is not delivered, although it is resolved.
    let denied = |name: &String| asked.tmpfs_secrets.contains_key(name) && !policy.tmpfs_secrets.contains_key(name);
    let secrets = agent.secrets.iter().filter(|secret| !denied(&secret.name)).cloned();
    let request = ProvisionRequest::new(session_id.clone(), name.clone(), policy.base_image.clone())
        .with_pull_policy(policy.image_pull_policy)
        .with_mounts(mounts)
        .with_resources(resources)
        .with_network(network)
        .with_security(security)
        .with_env(environment(agent, policy, session_id)?)
        .with_working_dir(WORKSPACE)
        .with_labels(labels.map(|(key, value)| (key.to_owned(), value.to_owned())))
        .with_secrets(secrets);
    let process = Process::new(command(agent, policy))
        .with_stdin(agent.stdin.is_some())
        .with_tty(agent.tty);
    Ok(Plan { request, process })
}

/// A terminal for a process that is not the container's main one, where the guard does not look.
pub(crate) fn check_tty(process: &Process, capabilities: &RuntimeCapabilities) -> Result<()> {
    match &capabilities.tty {
        Support::Refused { reason, remedy } if process.tty.is_some() => {
            Err(Error::unsupported(format!("tty: {reason}; {remedy}")))
        }
        _ => Ok(()),
    }
}

/// The variables in their order: a default, those forwarded from the host, the policy's, ours. Later ones win, and a
/// blocked one is not passed on wherever it comes from.
fn environment(agent: &Agent, policy: &Policy, session_id: &SessionId) -> Result<Vec<(String, String)>> {
    let mut env = vec![("HOME".to_owned(), WORKSPACE.to_owned())];
    for name in &policy.allowed_env_vars {
        match std::env::var(name) {
            Ok(value) => env.push((name.clone(), value)),
            Err(std::env::VarError::NotPresent) => {}
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Error::invalid(format!(
                    "allowed_env_vars: the host's value of {name:?} is not UTF-8 and cannot be forwarded"
                )));
            }
        }
    }
    env.extend(
        policy
            .env_vars
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    env.retain(|(name, _)| !policy.blocked_env_vars.contains(name));
    env.push(("ISOLATED_AGENTS_SESSION_ID".to_owned(), session_id.to_string()));
    env.push(("ISOLATED_AGENTS_AGENT_ID".to_owned(), agent.id.to_string()));
    let mut names = std::collections::HashSet::new();
    env.reverse();
    env.retain(|(name, _)| names.insert(name.clone()));
    env.reverse();
    Ok(env)
}

fn workspace(folder: &Path) -> Result<PathBuf> {
    let path = readable("workspace", folder)?;
    if !path.is_dir() {
        return Err(Error::invalid("the workspace is not a folder; name one").with_context("path", path.display()));
    }
    if path == Path::new("/") {
        return Err(Error::new(
            ErrorKind::PolicyDenied,
            "the workspace is the host's root; name a folder of its own",
        ));
    }
    Ok(path)
}

/// An absolute path without links, which exists and can be read.
fn readable(what: &str, path: &Path) -> Result<PathBuf> {
    let read = || {
        let path = std::fs::canonicalize(path)?;
        if path.is_dir() {
            std::fs::read_dir(&path)?;
        } else if path.is_file() {
            std::fs::File::open(&path)?;
        }
        Ok(path)
    };
    read().map_err(|error: std::io::Error| {
        Error::io(
            format!("{what}: cannot read it; name an existing path that you may read"),
            error,
        )
        .with_context("path", path.display())
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::io("cannot make the path absolute", error).with_context("path", path.display()))
}
