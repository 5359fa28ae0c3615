//! The binary under test, and who calls it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::{Place, Skip};

/// A user that owns nothing and has no name.
pub const TEST_USER: u32 = 54321;

/// Who calls `agents`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Root.
    Root,
    /// An ordinary user: whoever runs the tests, or [`TEST_USER`] when that is root.
    User,
}

impl Caller {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Root, Self::User];

    /// For the names of trials.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::User => "user",
        }
    }

    /// The caller's number.
    pub fn uid(self) -> u32 {
        let own = rustix::process::geteuid();
        match self {
            Self::Root => 0,
            Self::User if own.is_root() => TEST_USER,
            Self::User => own.as_raw(),
        }
    }

    /// Whether calling means to become another user first.
    pub(crate) fn is_other(self) -> bool {
        self == Self::User && rustix::process::geteuid().is_root()
    }

    /// Whether limits on memory and CPU time can be enforced for this caller.
    ///
    /// # Errors
    ///
    /// The reason when the tests cannot be this caller.
    pub fn has_limits(self) -> Result<bool, Skip> {
        static KNOWN: [OnceLock<bool>; 2] = [const { OnceLock::new() }; 2];
        if let Some(known) = KNOWN[self as usize].get() {
            return Ok(*known);
        }
        let place = Place::bare(self)?;
        let ran = place.agents(&["run", "--runtime", "native", "--", "true"]);
        let limited = match ran.code {
            Some(0) => true,
            _ if ran.stderr.contains("memory_mb") => false,
            _ => panic!("agents cannot run anything here, as {}: {}", self.name(), ran.stderr),
        };
        Ok(*KNOWN[self as usize].get_or_init(|| limited))
    }

    /// Skips where such limits cannot be enforced.
    ///
    /// # Errors
    ///
    /// The reason.
    pub fn require_limits(self) -> Result<(), Skip> {
        match self.has_limits()? {
            true => Ok(()),
            false => Err(Skip(format!(
                "{} has no cgroup to limit memory and CPU time",
                self.name()
            ))),
        }
    }
}

static COPY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();

/// Removes the copy of the binary, since a static is never dropped.
pub(crate) fn remove_copy() {
    if let Some((folder, _)) = COPY.get() {
        let _ = fs::remove_dir_all(folder.path());
    }
}

/// The binary, where every user can execute it.
pub(crate) fn agents() -> &'static Path {
    let (_, path) = COPY.get_or_init(|| {
        let built = built();
        let folder = TempDir::with_prefix("agents-tests-").expect("cannot make a folder for the binary");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("cannot open the folder to all");
        let path = folder.path().join("agents");
        // Not `fs::copy`: a descriptor that is open for writing while another thread forks makes the file busy.
        let status = Command::new("cp")
            .arg(&built)
            .arg(&path)
            .status()
            .expect("cannot run cp");
        assert!(status.success(), "cannot copy {}", built.display());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("cannot make the copy executable");
        (folder, path)
    });
    path
}

/// What cargo has built: `AGENTS`, or the binary in the folder of this test program's own profile.
fn built() -> PathBuf {
    let path = match std::env::var_os("AGENTS") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe().expect("this program has no path");
            // target/debug/deps/contract-0123456789abcdef
            own.ancestors()
                .nth(2)
                .expect("this program lies in no folder")
                .join("agents")
        }
    };
    assert!(
        path.is_file(),
        "{} is missing; build it with `cargo build -p agents-cli`, or set AGENTS to it",
        path.display()
    );
    path
}
