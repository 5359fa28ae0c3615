//! `agents config`.

use std::io::Write;

use agents_sdk::core::Error;
use owo_colors::OwoColorize;
use serde_json::json;

use crate::{
    args::{Adapters, ConfigInitArgs},
    context::Context,
    failure::Outcome,
    output,
};

/// What `config init` writes. A test loads it.
const TEMPLATE: &str = "\
# The configuration of the Isolated Agents SDK. Every key may be left out; the values here are the defaults.
# The environment wins over this file: ISOLATED_AGENTS_STORAGE_BACKEND=local chooses a type, and
# ISOLATED_AGENTS_STORAGE_LOCAL_BASE_PATH=/srv/artifacts sets one key of it.
adapters:
  # Where containers run.
  container_runtime:
    type: native
  # Where artifacts go.
  storage_backend:
    type: local
    config: {}
    #  base_path: /srv/artifacts      # default: storage in the state folder
  # Where the audit trail goes.
  audit_logger:
    type: file
    config: {}
    #  log_path: /var/log/agents      # default: audit in the state folder
  # What decides the policy.
  policy_validator:
    type: default
    config: {}
    #  max_memory_mb: 2048
    #  max_cpu_cores: 2.0
    #  max_timeout_seconds: 3600
    #  strict_mode: false
";

pub(crate) fn check(context: &Context) -> Outcome {
    let loaded = context.load(&Adapters::default())?;
    let (file, warnings) = (loaded.config.file(), loaded.config.warnings());
    if context.json() {
        output::json(&json!({"valid": true, "file": file, "warnings": warnings, "notes": loaded.config.notes()}))?;
        return Ok(0);
    }
    if !context.common.quiet {
        for note in loaded.config.notes() {
            output::note(note);
        }
        output::note(&match file {
            Some(file) => format!("{} is valid", file.display()),
            None => "there is no configuration file, and the defaults with the environment are valid".to_owned(),
        });
    }
    Ok(0)
}

pub(crate) fn show(context: &Context) -> Outcome {
    let loaded = context.load(&Adapters::default())?;
    let mut settings = json!(loaded.config.settings());
    let dirs = [("state_dir", &loaded.dirs.state), ("data_dir", &loaded.dirs.data)];
    if context.json() {
        if let Some(settings) = settings.as_array_mut() {
            settings.extend(dirs.map(|(key, path)| json!({"key": key, "value": path, "source": "folder"})));
        }
        output::json(&settings)?;
        return Ok(0);
    }
    let mut rows: Vec<_> = loaded
        .config
        .settings()
        .into_iter()
        .map(|setting| [setting.key, setting.value.to_string(), setting.source])
        .collect();
    for (key, path) in dirs {
        rows.push([key.to_owned(), path.display().to_string(), "folder".to_owned()]);
    }
    output::table(["KEY", "VALUE", "SOURCE"], rows, false, "")?;
    Ok(0)
}

pub(crate) fn init(context: &Context, args: &ConfigInitArgs) -> Outcome {
    let path = &args.file;
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    match args.force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(TEMPLATE.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::new(
            agents_sdk::core::ErrorKind::AlreadyExists,
            format!("{} exists already; pass --force to replace it", path.display()),
        ),
        _ => Error::io(format!("cannot write {}", path.display()), error),
    })?;
    if context.json() {
        output::json(&json!({"file": path}))?;
    } else if !context.common.quiet {
        output::note(&format!("wrote {}", path.display().bold()));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_loads_without_a_warning_with_and_without_its_comments() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let uncommented = TEMPLATE.replace("config: {}", "config:").replace("    #  ", "      ");
        for text in [TEMPLATE, &uncommented] {
            std::fs::write(&file, text).unwrap();
            let loaded = agents_sdk::configure_adapters()
                .with_environment([("HOME", folder.path())].into_iter().collect())
                .with_file(Some(file.clone()))
                .load()
                .unwrap();
            assert!(
                loaded.config.warnings().is_empty() && loaded.config.notes().is_empty(),
                "{loaded:?}"
            );
        }
    }
}
