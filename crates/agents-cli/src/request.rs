//! From flags, files and configuration to an agent and its policy.

use std::path::{Path, PathBuf};

use agents_sdk::{
    Loaded,
    config::read_document,
    core::{AgentId, Error, Mount, Policy, Result, SecretRef, nearest},
    session::{Agent, Input},
};
use serde_json::{Map, Value, json};

use crate::{
    args::{Network, Pull, RunArgs},
    envfile,
    failure::Failure,
    terminal,
};

/// A larger file is streamed; up to this size it is read at once, so that every retry reads it from the start.
const INPUT_IN_MEMORY: u64 = 1 << 20;

/// What `agents run` is to do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) agent: Agent,
    pub(crate) policy: Policy,
    /// The image was named by a flag, a policy or the configuration.
    pub(crate) image_named: bool,
    pub(crate) interactive: bool,
    pub(crate) tty: bool,
}

pub(crate) async fn plan(args: &RunArgs, loaded: &Loaded) -> Result<Plan, Failure> {
    let mut workspace = args.workspace.clone();
    let mut fields = base_policy(args, loaded, &mut workspace)?;
    apply(args, &mut fields)?;
    let image_named = args.image.is_some() || fields.contains_key("base_image");
    let policy = Policy::from_value(Value::Object(fields))?;

    let interactive = args.interactive || (policy.interactive && args.stdin.is_none());
    let tty = args.tty || (policy.interactive && terminal::stdin_is_terminal());
    let mounts = args
        .mount
        .iter()
        .map(|text| parse_mount(text))
        .collect::<Result<Vec<_>>>()
        .map_err(Failure::Usage)?;
    // The last of a name wins, so that flags win over files.
    let mut env = envfile::read_files(&args.env_file)?;
    env.extend(envfile::parse_flags(&args.env).map_err(Failure::Usage)?);
    let agent = Agent::new(agent_id(args).map_err(Failure::Usage)?, args.command.iter().cloned())
        .with_image(args.image.clone())
        .with_workspace(workspace.map(|folder| absolute(&folder)).transpose()?)
        .with_env(env)
        .with_mounts(mounts)
        .with_secrets(agents_sdk::resolve_secrets(&policy, loaded.secrets.as_ref()).await?)
        .with_stdin(input(args, interactive)?)
        .with_tty(tty.then(|| terminal::size().unwrap_or((24, 80))));
    Ok(Plan {
        agent,
        policy,
        image_named,
        interactive,
        tty,
    })
}

/// The policy before flags: the file of `--policy`, else the agent's over the configuration's default.
fn base_policy(args: &RunArgs, loaded: &Loaded, workspace: &mut Option<PathBuf>) -> Result<Map<String, Value>> {
    let mut fields = fields_of(loaded.config.default_policy().cloned())?;
    if let Some(name) = &args.agent {
        let agents = loaded.config.agents();
        let agent = agents.get(name).ok_or_else(|| {
            let known = agents.keys().map(String::as_str);
            let hint = match nearest(name, known.clone()) {
                Some(near) => format!("did you mean {near:?}?"),
                None if agents.is_empty() => "the configuration has no agents".to_owned(),
                None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
            };
            Error::not_found(format!("there is no agent {name:?} in the configuration; {hint}"))
        })?;
        fields.extend(fields_of(agent.policy.clone())?);
        if workspace.is_none() {
            workspace.clone_from(&agent.workspace);
        }
    }
    match &args.policy {
        Some(path) => policy_file(path),
        None => Ok(fields),
    }
}

/// The fields of a policy file, not yet validated.
pub(crate) fn policy_file(path: &Path) -> Result<Map<String, Value>> {
    fields_of(Some(read_document(path)?))
        .map_err(|_| Error::invalid(format!("the policy {} is not a map of fields", path.display())))
}

fn fields_of(value: Option<Value>) -> Result<Map<String, Value>> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(fields)) => Ok(fields),
        Some(_) => Err(Error::invalid("a policy is a map of fields")),
    }
}

/// Puts the flags over the policy's fields.
fn apply(args: &RunArgs, fields: &mut Map<String, Value>) -> Result<(), Failure> {
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(field.to_owned(), value);
        }
    };
    set("memory_mb", args.memory.map(Value::from));
    set("cpu_cores", args.cpus.map(Value::from));
    set("pids_limit", args.pids.map(Value::from));
    set("disk_mb", args.disk.map(Value::from));
    set("timeout_seconds", args.timeout.map(Value::from));
    set("container_user", args.user.clone().map(Value::from));
    set(
        "image_pull_policy",
        args.pull.map(|pull| {
            let name = match pull {
                Pull::Always => "always",
                Pull::Missing => "missing",
                Pull::Never => "never",
            };
            name.into()
        }),
    );
    set("interactive", (args.interactive || args.tty).then_some(true.into()));
    if args.network == Some(Network::Disabled) {
        set("network", Some(json!({"disabled": true})));
    }
    if !args.allow.is_empty() {
        set(
            "network",
            Some(json!({"disabled": false, "allowed_endpoints": args.allow})),
        );
    }
    if !args.secret.is_empty() {
        let secrets = fields.entry("tmpfs_secrets").or_insert_with(|| json!({}));
        for text in &args.secret {
            let (name, reference) = parse_secret(text).map_err(Failure::Usage)?;
            if let Value::Object(secrets) = secrets {
                secrets.insert(name, reference.to_string().into());
            }
        }
    }
    Ok(())
}

/// `NAME=env:VAR` or `NAME=file:PATH`. What is wrong is never quoted, since it may be the secret itself.
fn parse_secret(text: &str) -> Result<(String, SecretRef)> {
    let (name, reference) = text
        .split_once('=')
        .ok_or_else(|| Error::invalid("--secret needs NAME=env:VAR or NAME=file:PATH"))?;
    if name.is_empty() {
        return Err(Error::invalid("--secret needs a name: NAME=env:VAR or NAME=file:PATH"));
    }
    let reference = reference
        .parse()
        .map_err(|error: Error| Error::invalid(format!("--secret {name}: {}", error.message())))?;
    Ok((name.to_owned(), reference))
}

/// `SRC:DST`, `SRC:DST:ro` or `SRC:DST:rw`.
fn parse_mount(text: &str) -> Result<Mount> {
    let bad = || Error::invalid(format!("--mount {text:?} is not SRC:DST, SRC:DST:ro or SRC:DST:rw"));
    let (rest, writable) = match text.rsplit_once(':') {
        Some((rest, "rw")) => (rest, true),
        Some((rest, "ro")) => (rest, false),
        _ => (text, false),
    };
    let (source, destination) = rest.rsplit_once(':').ok_or_else(bad)?;
    if source.is_empty() || !destination.starts_with('/') {
        return Err(bad());
    }
    let mount = Mount::bind(absolute(Path::new(source))?, destination);
    Ok(if writable { mount.writable() } else { mount })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(format!("cannot find {}", path.display()), error))
}

/// The name in records: the flag's, the configured agent's, or the command's.
fn agent_id(args: &RunArgs) -> Result<AgentId> {
    if let Some(name) = args.name.as_deref().or(args.agent.as_deref()) {
        return AgentId::new(name);
    }
    let command = args.command.first().map(Path::new).and_then(Path::file_name);
    let name: String = command
        .map(|name| name.to_string_lossy())
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(128)
        .collect();
    AgentId::new(if name.is_empty() { "agent".to_owned() } else { name })
}

fn input(args: &RunArgs, interactive: bool) -> Result<Option<Input>> {
    let Some(path) = &args.stdin else {
        return Ok(interactive.then(|| Input::stream(tokio::io::stdin())));
    };
    let cannot = |error| Error::io(format!("cannot read the standard input {}", path.display()), error);
    let file = std::fs::File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if metadata.is_dir() {
        return Err(Error::invalid(format!(
            "the standard input {} is a folder",
            path.display()
        )));
    }
    if metadata.is_file() && metadata.len() <= INPUT_IN_MEMORY {
        return Ok(Some(Input::Bytes(std::fs::read(path).map_err(cannot)?.into())));
    }
    Ok(Some(Input::stream(tokio::fs::File::from_std(file))))
}

#[cfg(test)]
mod tests {
    use agents_sdk::core::MountSource;
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(flags: &[&str]) -> RunArgs {
        let words = ["agents", "run"]
            .iter()
            .chain(flags)
            .chain(&["--", "/bin/my agent!", "--json"]);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn fields(flags: &[&str], base: Value) -> Value {
        let Value::Object(mut fields) = base else {
            panic!("not a map")
        };
        apply(&args(flags), &mut fields).unwrap();
        fields.into()
    }

    #[test]
    fn flags_override_the_policys_fields_and_leave_the_rest() {
        let base = json!({"memory_mb": 64, "cpu_cores": 4, "disk_mb": 7, "network": {"allowed_endpoints": ["a:1"], "disabled": false}});
        let table = [
            (vec!["--memory", "2g"], json!({"memory_mb": 2048})),
            (vec!["-m", "unlimited"], json!({"memory_mb": null})),
            (vec!["--cpus", "1.5"], json!({"cpu_cores": 1.5})),
            (vec!["--cpu", "2"], json!({"cpu_cores": 2.0})),
            (vec!["--pids", "9"], json!({"pids_limit": 9})),
            (vec!["--disk", "1g"], json!({"disk_mb": 1024})),
            (vec!["--timeout", "5m"], json!({"timeout_seconds": 300.0})),
            (vec!["--user", "5:6"], json!({"container_user": "5:6"})),
            (vec!["--pull", "never"], json!({"image_pull_policy": "never"})),
            (vec!["-i"], json!({"interactive": true})),
            (vec!["--network", "disabled"], json!({"network": {"disabled": true}})),
            (
                vec!["--allow", "h:443", "--allow", "10.0.0.0/8"],
                json!({"network": {"disabled": false, "allowed_endpoints": ["h:443", "10.0.0.0/8"]}}),
            ),
            (vec!["--secret", "k=env:K"], json!({"tmpfs_secrets": {"k": "env:K"}})),
        ];
        for (flags, changed) in table {
            let mut expected = base.clone();
            for (key, value) in changed.as_object().unwrap() {
                expected[key] = value.clone();
            }
            let got = fields(&flags, base.clone());
            assert_eq!(got, expected, "{flags:?}");
            Policy::from_value(got).unwrap();
        }
    }

    #[test]
    fn a_literal_secret_is_refused_and_not_shown() {
        for text in ["hunter2", "k=hunter2", "k=raw:hunter2", "=env:hunter2"] {
            let error = parse_secret(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn mounts_are_read_only_unless_asked() {
        let table = [
            ("/a:/b", "/a", "/b", true),
            ("/a:/b:ro", "/a", "/b", true),
            ("/a:/b:rw", "/a", "/b", false),
            ("/a:x:/b", "/a:x", "/b", true),
        ];
        for (text, source, destination, read_only) in table {
            let mount = parse_mount(text).unwrap();
            assert_eq!(mount.source, MountSource::Bind { path: source.into() }, "{text}");
            assert_eq!(
                (mount.destination.as_str(), mount.read_only),
                (destination, read_only),
                "{text}"
            );
        }
        let relative = parse_mount("a:/b").unwrap();
        assert!(matches!(relative.source, MountSource::Bind { path } if path.is_absolute()));
        for bad in ["", "/a", ":/b", "/a:b", "/a:", "/a:/b:xx"] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_is_untouched_and_names_the_agent() {
        let args = args(&[]);
        assert_eq!(args.command, ["/bin/my agent!", "--json"]);
        assert_eq!(agent_id(&args).unwrap().as_str(), "myagent");
        let mut nameless = args;
        nameless.command = vec!["./-!".to_owned()];
        assert_eq!(agent_id(&nameless).unwrap().as_str(), "agent");
    }
}
