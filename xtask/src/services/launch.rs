//! Starting a server on a free port, detached from us, and waiting until it answers.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::state::{self, Record, Store};
use super::{Place, Server, leftovers, process};
use crate::error::{Context, Result, fail};
use crate::sh;

/// A port can be taken between our look and the server's bind; then another one is tried.
const ATTEMPTS: usize = 3;

/// Starts `server`, whose program is installed in `program`, and records it once it answers.
pub(super) fn start(server: &dyn Server, program: PathBuf, store: &Store) -> Result<Record> {
    let name = server.name();
    let mut place = Place {
        program,
        data: store.data(name),
        port: 0,
    };
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        server.clean(&place)?;
        leftovers::remove(&place.data)?;
        fs::create_dir_all(&place.data).context(|| format!("cannot create {}", place.data.display()))?;
        place.port = free_port()?;
        let launch = server.launch(&place)?;
        let log = store.log(name);
        let output = File::create(&log).context(|| format!("cannot create {}", log.display()))?;
        let mut child = detached(&launch.command, output)?;
        let Some(start_time) = process::start_time(child.id()) else {
            last = ended(server, store, &mut child)?;
            continue;
        };
        let record = Record {
            name: name.to_owned(),
            pid: child.id(),
            start_time,
            boot_id: state::boot_id(),
            place: place.clone(),
            env: launch
                .env
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        };
        // Recorded before it is ready, so that `down` finds it even if we are killed while we wait.
        store.write(&record)?;
        match wait(server, &record, &mut child).and_then(|up| fill(server, &record, up)) {
            Ok(true) => return Ok(record),
            Ok(false) => {}
            Err(error) => {
                server.clean(&place)?;
                store.forget(name)?;
                return fail(format!(
                    "{error}; the end of {}:\n{}",
                    log.display(),
                    sh::tail(&fs::read_to_string(&log).unwrap_or_default(), 10)
                ));
            }
        }
        last = ended(server, store, &mut child)?;
        server.clean(&place)?;
        store.forget(name)?;
    }
    fail(format!("{name} ended before it answered: {last}"))
}

/// A port that nobody listens on at this moment.
fn free_port() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .context(|| "cannot bind a loopback port".to_owned())
}

/// Starts the command in a session of its own, so that neither our end nor `Ctrl-C` ends it.
fn detached(command: &Command, output: File) -> Result<Child> {
    // setsid(1) replaces itself with the program, so the process id is the server's own.
    let mut wrapped = Command::new("setsid");
    wrapped.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    let second = output.try_clone().context(|| "cannot share the log file".to_owned())?;
    wrapped
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(second)
        .spawn()
        .context(|| format!("cannot start `{}`", sh::display(command)))
}

/// Waits until the server answers: true; false when it ended; an error when it does neither in time.
fn wait(server: &dyn Server, record: &Record, child: &mut Child) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(server.patience());
    while Instant::now() < deadline {
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            return Ok(false);
        }
        // Alive after the answer too: the answer might come from whoever took the port first.
        if server.ready(&record.place) && record.alive() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(25));
    }
    process::stop(record.pid, record.start_time, server.stop_signal())?;
    fail(format!(
        "{} did not answer on {} within {} s",
        record.name,
        server.address(&record.place),
        server.patience()
    ))
}

/// Lets a server that is up be filled; one that cannot be is stopped.
fn fill(server: &dyn Server, record: &Record, up: bool) -> Result<bool> {
    if up && let Err(error) = server.fill(&record.place) {
        server.retire(&record.place);
        process::stop(record.pid, record.start_time, server.stop_signal())?;
        return fail(format!("{} is up, but it cannot be filled: {error}", record.name));
    }
    Ok(up)
}

fn ended(server: &dyn Server, store: &Store, child: &mut Child) -> Result<String> {
    let status = child.wait().context(|| format!("cannot wait for {}", server.name()))?;
    let log = store.log(server.name());
    let text = fs::read_to_string(&log).unwrap_or_default();
    Ok(format!(
        "{status}; the end of {}:\n{}",
        log.display(),
        sh::tail(&text, 10)
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use rustix::process::Signal;

    use crate::services::Launch;

    /// Runs a shell script as if it were a server that is ready at once.
    struct Script(&'static str);

    impl Server for Script {
        fn name(&self) -> &'static str {
            "script"
        }
        fn about(&self) -> &'static str {
            "a script"
        }
        fn default_tier(&self) -> bool {
            false
        }
        fn patience(&self) -> u64 {
            1
        }
        fn install(&self, cache: &Path) -> Result<PathBuf> {
            Ok(cache.to_owned())
        }
        fn launch(&self, _: &Place) -> Result<Launch> {
            let mut command = Command::new("sh");
            command.args(["-c", self.0]);
            Ok(Launch {
                command,
                env: vec![("KEY", "value".to_owned())],
            })
        }
        fn ready(&self, _: &Place) -> bool {
            self.0.contains("ready")
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("state")).unwrap();
        (folder, store)
    }

    #[test]
    fn a_started_server_has_its_own_session_and_is_stopped_alone() {
        let (_folder, store) = store();
        let record = start(&Script(": ready; exec sleep 60"), PathBuf::new(), &store).unwrap();
        assert!(record.alive());
        // This server is ready before setsid(1) has got to its call.
        let session = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", record.pid)).unwrap();
            let (_, fields) = stat.rsplit_once(')').unwrap();
            fields.split_whitespace().nth(3).unwrap().to_owned()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while session() != record.pid.to_string() {
            assert!(Instant::now() < deadline, "still in session {}", session());
            thread::sleep(Duration::from_millis(5));
        }
        process::stop(record.pid, record.start_time, Signal::TERM).unwrap();
        assert!(!record.alive());
    }

    #[test]
    fn a_server_that_ends_shows_its_log() {
        let (_folder, store) = store();
        let error = start(&Script("echo broken; exit 3"), PathBuf::new(), &store).unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
        assert_eq!(store.all().unwrap(), []);
    }

    #[test]
    fn a_server_that_never_answers_is_stopped() {
        let (_folder, store) = store();
        let error = start(&Script("exec sleep 60"), PathBuf::new(), &store).unwrap_err();
        assert!(error.to_string().contains("did not answer"), "{error}");
        assert_eq!(store.all().unwrap(), []);
    }
}
