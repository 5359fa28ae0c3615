//! A state folder, a home and a working directory of a test's own.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Caller, Ran, Skip, binary, traces};

/// Where one test runs `agents`.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
    caller: Caller,
    /// Flags without which the caller could run nothing.
    waived: &'static [&'static str],
}

impl Place {
    /// A place of a caller. Where limits on memory and CPU time cannot be enforced, [`run`](Self::run) waives them.
    ///
    /// # Errors
    ///
    /// The reason when the tests cannot be this caller.
    pub fn new(caller: Caller) -> Result<Self, Skip> {
        let waived: &[_] = match caller.has_limits()? {
            true => &[],
            false => &["--memory", "unlimited", "--cpus", "unlimited"],
        };
        Ok(Self {
            waived,
            ..Self::bare(caller)?
        })
    }

    /// A place whose [`run`](Self::run) waives nothing.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn bare(caller: Caller) -> Result<Self, Skip> {
        if caller == Caller::Root {
            crate::require_root()?;
        }
        let folder = TempDir::with_prefix("agents-test-").expect("cannot make a folder for the test");
        let place = Self {
            folder,
            caller,
            waived: &[],
        };
        fs::set_permissions(place.root(), fs::Permissions::from_mode(0o755)).expect("cannot open the folder to all");
        for name in ["work", "home"] {
            fs::create_dir(place.root().join(name)).expect("cannot make a folder for the test");
            place.give(&place.root().join(name));
        }
        place.give(place.root());
        Ok(place)
    }

    /// The folder of everything.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// The working directory.
    pub fn work(&self) -> PathBuf {
        self.root().join("work")
    }

    /// The state folder, which does not exist at first.
    pub fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    /// Who calls.
    pub fn caller(&self) -> Caller {
        self.caller
    }

    fn give(&self, path: &Path) {
        if self.caller.is_other() {
            let (uid, gid) = (Some(self.caller.uid()), Some(self.caller.uid()));
            std::os::unix::fs::lchown(path, uid, gid).expect("cannot give a file away");
        }
    }

    /// A file of the caller in the working directory, and its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.work().join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        self.give(&path);
        text_of(&path)
    }

    /// A folder of the caller in the working directory, and its path.
    pub fn folder(&self, name: &str) -> String {
        let path = self.work().join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        self.give(&path);
        text_of(&path)
    }

    /// `agents` with these arguments, as the caller.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary::agents());
        command
            .args(args)
            .current_dir(self.work())
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.root().join("home"))
            .env("ISOLATED_AGENTS_STATE_DIR", self.state())
            .stdin(Stdio::null());
        if self.caller.is_other() {
            command.uid(self.caller.uid()).gid(self.caller.uid());
        }
        command
    }

    /// Runs `agents` to its end.
    pub fn agents(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// The arguments of `agents run` on the embedded runtime, with what this caller has to waive.
    pub fn run_args<'a>(&self, args: &[&'a str]) -> Vec<&'a str> {
        [&["run", "--runtime", "native"], self.waived, args].concat()
    }

    /// `agents run` on the embedded runtime, whose image is the host's root unless another one is named.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.agents(&self.run_args(args))
    }

    /// `agents run --json` of a script, and its object.
    #[track_caller]
    pub fn run_json(&self, args: &[&str], script: &str) -> Value {
        let args = [&["--json"], args, &["--", "sh", "-c", script]].concat();
        self.run(&args).json()
    }

    /// Starts `agents run` of a script with its output piped.
    pub fn start(&self, args: &[&str], script: &str) -> Child {
        let args = self.run_args(&[args, &["--", "sh", "-c", script]].concat());
        let mut command = self.command(&args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("cannot start agents")
    }

    /// The sessions that this state folder knows, whether they have ended or not.
    pub fn sessions(&self) -> Vec<String> {
        traces::names(&self.state().join("sessions"))
    }

    /// Every event of the default audit log.
    pub fn events(&self) -> Vec<Value> {
        let folder = self.state().join("audit");
        let mut events = Vec::new();
        for name in traces::names(&folder) {
            let text = fs::read_to_string(folder.join(&name)).expect("cannot read the audit log");
            events.extend(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
        }
        events
    }

    /// The types of a session's events, in order, without the operations that made them happen.
    pub fn event_types(&self, session: &str) -> Vec<String> {
        let events = self.events().into_iter();
        let of_session = events.filter(|event| event["session_id"] == session);
        of_session
            .map(|event| event["event_type"].as_str().unwrap_or_default().to_owned())
            .filter(|event_type| !event_type.starts_with("operation_"))
            .collect()
    }

    /// Asserts that every session has ended on record and that nothing of this state folder is left: no container's folder,
    /// cgroup, mount or loop device, and nothing for `gc` to do.
    #[track_caller]
    pub fn assert_clean(&self) {
        // A helper goes on cleaning up for a moment after its owner was killed.
        let mut left = Vec::new();
        for _ in 0..100 {
            left = traces::left_behind(&self.state(), &self.sessions());
            if left.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(left.is_empty(), "left behind: {left:#?}");
        if self.state().is_dir() {
            let ran = self.agents(&["gc", "--json"]);
            assert_eq!(
                ran.json(),
                json!({"ended_sessions": [], "removed": [], "problems": []}),
                "{}",
                ran.stderr
            );
        }
        let closed: Vec<_> = self
            .events()
            .into_iter()
            .filter(|event| event["event_type"] == "session_closed")
            .map(|event| event["session_id"].clone())
            .collect();
        for event in self.events() {
            if event["event_type"] == "session_created" {
                assert!(closed.contains(&event["session_id"]), "no ending on record: {event}");
            }
        }
    }
}

fn text_of(path: &Path) -> String {
    path.to_str().expect("the path is not UTF-8").to_owned()
}
