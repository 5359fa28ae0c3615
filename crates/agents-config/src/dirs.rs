//! Where things live on this machine.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use agents_core::{Error, Result};

use crate::Environment;

const NAME: &str = "isolated-agents";

/// The folders of the SDK, after the XDG base directory specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Sessions, the default audit log and the default store.
    pub state: PathBuf,
    /// What can be fetched again, such as images.
    pub data: PathBuf,
    /// The user's configuration, when there is a home.
    pub config: Option<PathBuf>,
}

impl Dirs {
    /// The folders for an environment. The state is in `state` when that is given, else in `ISOLATED_AGENTS_STATE_DIR`,
    /// else in `$XDG_STATE_HOME/isolated-agents`, else in `~/.local/state/isolated-agents`; the data is in
    /// `ISOLATED_AGENTS_DATA_DIR` or `$XDG_DATA_HOME/isolated-agents`, wherever the state is.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` when there is no home and no folder was named.
    pub fn new(environment: &Environment, state: Option<PathBuf>) -> Result<Self> {
        let path = |name: &str| {
            environment
                .get(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = path("HOME").filter(|home| home.is_absolute());
        // The specification says that relative paths are to be ignored.
        let xdg = |name: &str, fallback: &str| {
            path(name)
                .filter(|base| base.is_absolute())
                .or_else(|| Some(home.as_ref()?.join(fallback)))
                .map(|base| base.join(NAME))
        };
        let state = state
            .or_else(|| path("ISOLATED_AGENTS_STATE_DIR"))
            .or_else(|| xdg("XDG_STATE_HOME", ".local/state"))
            .ok_or_else(|| {
                Error::invalid(
                    "cannot tell where sessions are kept, since HOME is not set; set ISOLATED_AGENTS_STATE_DIR",
                )
            })?;
        let state = std::path::absolute(&state)
            .map_err(|error| Error::io(format!("cannot find the state folder {}", state.display()), error))?;
        let data = path("ISOLATED_AGENTS_DATA_DIR")
            .or_else(|| xdg("XDG_DATA_HOME", ".local/share"))
            .unwrap_or_else(|| state.join("data"));
        let data = std::path::absolute(&data)
            .map_err(|error| Error::io(format!("cannot find the data folder {}", data.display()), error))?;
        Ok(Self {
            state,
            data,
            config: xdg("XDG_CONFIG_HOME", ".config"),
        })
    }

    /// Makes the state folder, readable by its owner only, unless it is there.
    ///
    /// # Errors
    ///
    /// What the file system says, naming the folder.
    pub fn create_state(&self) -> Result<()> {
        create_private(&self.state)
    }
}

fn create_private(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| {
            Error::io(
                format!(
                    "cannot create the state folder {}; make it writable or choose another with ISOLATED_AGENTS_STATE_DIR",
                    path.display()
                ),
                error,
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(variables: &[(&str, &str)], state: Option<&str>) -> Result<Dirs> {
        let environment = variables.iter().copied().collect();
        Dirs::new(&environment, state.map(PathBuf::from))
    }

    #[test]
    fn the_folders_follow_the_specification() {
        let found = dirs(&[("HOME", "/h")], None).unwrap();
        assert_eq!(found.state, Path::new("/h/.local/state/isolated-agents"));
        assert_eq!(found.data, Path::new("/h/.local/share/isolated-agents"));
        assert_eq!(found.config.as_deref(), Some(Path::new("/h/.config/isolated-agents")));
        let found = dirs(
            &[("HOME", "/h"), ("XDG_STATE_HOME", "/s"), ("XDG_DATA_HOME", "relative")],
            None,
        )
        .unwrap();
        assert_eq!(found.state, Path::new("/s/isolated-agents"));
        assert_eq!(found.data, Path::new("/h/.local/share/isolated-agents"));
    }

    #[test]
    fn a_named_state_folder_wins_and_leaves_the_data_alone() {
        let variables = [("HOME", "/h"), ("ISOLATED_AGENTS_STATE_DIR", "/env")];
        assert_eq!(dirs(&variables, None).unwrap().state, Path::new("/env"));
        let found = dirs(&variables, Some("/flag")).unwrap();
        assert_eq!(found.state, Path::new("/flag"));
        assert_eq!(found.data, Path::new("/h/.local/share/isolated-agents"));
    }

    #[test]
    fn without_a_home_a_folder_must_be_named() {
        assert!(
            dirs(&[], None)
                .unwrap_err()
                .message()
                .contains("ISOLATED_AGENTS_STATE_DIR")
        );
        assert_eq!(dirs(&[], Some("/s")).unwrap().data, Path::new("/s/data"));
    }

    #[test]
    fn the_state_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let found = dirs(&[], Some(folder.path().join("a/b").to_str().unwrap())).unwrap();
        found.create_state().unwrap();
        found.create_state().unwrap();
        assert_eq!(found.state.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
