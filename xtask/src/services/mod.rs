//! `cargo xtask services`: the servers that tests talk to.
//!
//! A server is one value that implements [`Server`]: how it gets into the cache, how it starts, the question
//! that it answers once it is ready, and the variables that lead tests to it. To add one, write the
//! implementation in a module of its own and name it in [`all`].

mod account;
mod azure;
pub(crate) mod cache;
mod certificates;
mod docker;
pub(crate) mod engine;
mod faults;
mod gcs;
mod golang;
mod http;
mod launch;
mod leftovers;
mod mariadb;
mod moto;
mod opensearch;
mod podman;
mod postgres;
mod process;
mod pypi;
mod registry;
mod runtimes;
mod s3;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::process::Signal;
use serde_json::json;

use crate::args::Args;
use crate::error::{Error, Result, fail};
use crate::{lock, paths, sh};

use state::{Record, Store};

pub(crate) const HELP: &str = "\
Start and stop the servers that tests talk to. They listen on free loopback ports or on unix sockets of their own,
and stay up until `down`.

Usage: cargo xtask services COMMAND

Commands:
  up [NAME…]       start the named servers, or the default tier; those that run already stay as they are
  down [NAME…]     stop the named servers, or all, and remove what they keep; only what `up` started
  status [--json]  what runs, where, and which servers there are
  env              `export K=V` lines that lead tests and the CLI to what runs:
                   eval \"$(cargo xtask services env)\"

Programs are cached in $XDG_CACHE_HOME/isolated-agents/services; state and logs are in
$XDG_STATE_HOME/isolated-agents/services, or in $ISOLATED_AGENTS_SERVICES_DIR.
";

/// One server that tests can talk to.
pub(super) trait Server: Sync {
    /// The name on the command line and of its folders.
    fn name(&self) -> &'static str;

    /// One line for `status`.
    fn about(&self) -> &'static str;

    /// Whether `up` without names starts it: only what is ready within seconds once it is cached.
    fn default_tier(&self) -> bool;

    /// How long it may take until it answers, in seconds.
    fn patience(&self) -> u64 {
        20
    }

    /// Puts its program into the cache, unless it is there, and returns the folder.
    fn install(&self, cache: &Path) -> Result<PathBuf>;

    /// The command that starts it in the foreground. Called again with another port when that one was taken.
    fn launch(&self, place: &Place) -> Result<Launch>;

    /// Where it listens, for people.
    fn address(&self, place: &Place) -> String {
        format!("127.0.0.1:{}", place.port)
    }

    /// Its own question: does it answer as a server that is ready?
    fn ready(&self, place: &Place) -> bool;

    /// What is still to do once it is ready, before tests may use it.
    fn fill(&self, _place: &Place) -> Result<()> {
        Ok(())
    }

    /// What ends it in good order.
    fn stop_signal(&self) -> Signal {
        Signal::TERM
    }

    /// Asks it to let go of what would outlive it, before it is stopped. It may be dead already.
    fn retire(&self, _place: &Place) {}

    /// Removes what it keeps outside of [`Place::data`], after it was stopped and before it is started.
    fn clean(&self, _place: &Place) -> Result<()> {
        Ok(())
    }
}

/// What a server gets to start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// What [`Server::install`] returned.
    pub(super) program: PathBuf,
    /// An empty folder of its own, removed by `down`.
    pub(super) data: PathBuf,
    /// A loopback port that was free a moment ago; servers on a unix socket leave it alone.
    pub(super) port: u16,
}

/// How to start it, and what to tell tests.
pub(super) struct Launch {
    pub(super) command: Command,
    pub(super) env: Vec<(&'static str, String)>,
}

fn all() -> Vec<&'static dyn Server> {
    vec![
        &registry::ANONYMOUS,
        &registry::AUTHENTICATED,
        &s3::Versitygw,
        &s3::Minio,
        &azure::Azurite,
        &gcs::FakeGcs,
        &faults::Toxiproxy,
        &postgres::POSTGRES,
        &mariadb::MARIADB,
        &opensearch::OPENSEARCH,
        &moto::MOTO,
        &docker::OLD,
        &docker::NEW,
        &podman::ROOTFUL,
        &podman::ROOTFUL_GVISOR,
        &podman::ROOTLESS,
        &podman::ROOTLESS_GVISOR,
    ]
}

pub(crate) fn run(mut args: Args) -> Result<ExitCode> {
    let Some(command) = args.word() else {
        print!("{HELP}");
        return Ok(ExitCode::FAILURE);
    };
    match command.as_str() {
        "up" => {
            up(&args.rest()?)?;
        }
        "down" => down(&args.rest()?)?,
        "status" => {
            let as_json = args.flag("--json");
            args.finish()?;
            status(as_json)?;
        }
        "env" => {
            args.finish()?;
            for (key, value) in env()? {
                println!("export {key}={}", sh::quote(&value));
            }
        }
        other => return fail(format!("no command `services {other}`; see --help")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the named servers, or the default tier, and returns the names of those that did not run before.
pub(crate) fn up(names: &[String]) -> Result<Vec<String>> {
    let (started, outcome) = start_each(choose(names)?);
    outcome.map(|()| started)
}

/// Starts every server there is. Those that did not run before are named even if others could not be started.
pub(crate) fn up_all() -> (Vec<String>, Result<()>) {
    start_each(all())
}

/// One that cannot be started keeps no other from being started.
fn start_each(servers: Vec<&'static dyn Server>) -> (Vec<String>, Result<()>) {
    let mut started = Vec::new();
    let mut failures = Vec::new();
    for server in servers {
        let name = server.name();
        match start(server) {
            Ok(true) => started.push(name.to_owned()),
            Ok(false) => {}
            Err(error) => {
                println!("{name}: {error}");
                failures.push(format!("{name}: {error}"));
            }
        }
    }
    let outcome = if failures.is_empty() {
        Ok(())
    } else {
        fail(failures.join("\n"))
    };
    (started, outcome)
}

/// Starts the server unless it is up; false if it was.
fn start(server: &'static dyn Server) -> Result<bool> {
    let name = server.name();
    let store = Store::open(paths::services_state()?)?;
    // Before the lock, because a first build takes minutes and nobody else should wait for it.
    let program = server.install(&paths::cache()?.join("services"))?;
    let _lock = lock::exclusive(store.folder())?;
    if let Some(record) = store.read(name)? {
        if record.alive() && server.ready(&record.place) {
            println!("{name}: already up on {}", server.address(&record.place));
            return Ok(false);
        }
        // A crash, or a process that no longer answers: start again from nothing.
        stop(&store, &record)?;
    }
    let record = launch::start(server, program, &store)?;
    println!("{name}: up on {}", server.address(&record.place));
    Ok(true)
}

/// Stops the named servers, or all that were started.
pub(crate) fn down(names: &[String]) -> Result<()> {
    let store = Store::open(paths::services_state()?)?;
    let _lock = lock::exclusive(store.folder())?;
    for name in names {
        find(name)?;
    }
    // All is what has a record, so that a server that this version no longer knows is stopped too.
    for record in store.all()? {
        if names.is_empty() || names.contains(&record.name) {
            stop(&store, &record)?;
            println!("{}: down", record.name);
        }
    }
    Ok(())
}

/// A server for one command alone, beside those that `up` starts for everybody. It is stopped when this is dropped; what a
/// command left that was killed is stopped by the next.
pub(crate) struct Own {
    store: Store,
    record: Record,
    _lock: std::fs::File,
}

impl Own {
    /// Starts it in a folder of this purpose; waits while another command has it.
    pub(crate) fn start(name: &str, purpose: &str) -> Result<Self> {
        let server = find(name)?;
        let store = Store::open(paths::services_state()?.join(purpose))?;
        let program = server.install(&paths::cache()?.join("services"))?;
        let lock = lock::exclusive(store.folder())?;
        if let Some(record) = store.read(name)? {
            stop(&store, &record)?;
        }
        let record = launch::start(server, program, &store)?;
        Ok(Self {
            store,
            record,
            _lock: lock,
        })
    }

    /// The variables that lead to it.
    pub(crate) fn env(&self) -> &[(String, String)] {
        &self.record.env
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = stop(&self.store, &self.record) {
            println!("{}: {error}", self.record.name);
        }
    }
}

/// The variables of every server that runs, each once: some servers share a few.
pub(crate) fn env() -> Result<Vec<(String, String)>> {
    let store = Store::open(paths::services_state()?)?;
    let variables: BTreeMap<_, _> = store
        .all()?
        .into_iter()
        .filter(Record::alive)
        .flat_map(|record| record.env)
        .collect();
    Ok(variables.into_iter().collect())
}

fn status(as_json: bool) -> Result<()> {
    let store = Store::open(paths::services_state()?)?;
    let mut rows = Vec::new();
    for server in all() {
        let record = store.read(server.name())?;
        let state = match &record {
            None => "down",
            Some(record) if !record.alive() => "ended",
            Some(record) if server.ready(&record.place) => "up",
            Some(_) => "not answering",
        };
        rows.push((server, record, state));
    }
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(server, record, state)| {
                json!({
                    "name": server.name(),
                    "about": server.about(),
                    "default_tier": server.default_tier(),
                    "state": state,
                    "address": record.as_ref().map(|r| server.address(&r.place)),
                    "pid": record.as_ref().map(|r| r.pid),
                    "log": store.log(server.name()),
                })
            })
            .collect();
        println!("{}", json!({ "services": rows }));
        return Ok(());
    }
    for (server, record, state) in rows {
        let address = record
            .map(|r| format!("{} (pid {})", server.address(&r.place), r.pid))
            .unwrap_or_default();
        println!("{:<22} {state:<14} {}", server.name(), server.about());
        if !address.is_empty() {
            println!("{:<22} {address}", "");
        }
    }
    Ok(())
}

fn stop(store: &Store, record: &Record) -> Result<()> {
    // A server that this version no longer knows has its process and its folder, and nothing else of ours.
    let server = find(&record.name).ok();
    if record.alive() {
        if let Some(server) = server {
            server.retire(&record.place);
        }
        let signal = server.map_or(Signal::TERM, Server::stop_signal);
        process::stop(record.pid, record.start_time, signal)?;
    }
    if let Some(server) = server {
        server.clean(&record.place)?;
    }
    store.forget(&record.name)
}

fn choose(names: &[String]) -> Result<Vec<&'static dyn Server>> {
    if names.is_empty() {
        return Ok(all().into_iter().filter(|server| server.default_tier()).collect());
    }
    names.iter().map(|name| find(name)).collect()
}

fn find(name: &str) -> Result<&'static dyn Server> {
    all().into_iter().find(|server| server.name() == name).ok_or_else(|| {
        let known: Vec<_> = all().iter().map(|server| server.name()).collect();
        Error::new(format!("no server `{name}`; there are: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for server in all() {
            assert_eq!(find(server.name()).unwrap().name(), server.name());
        }
        let mut names: Vec<_> = all().iter().map(|server| server.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn the_documentation_names_them_all() {
        let page = include_str!("../../../docs/testing.md");
        for server in all() {
            assert!(page.contains(&format!("`{}`", server.name())), "{}", server.name());
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = choose(&["registri".to_owned()]).err().unwrap().to_string();
        assert!(error.contains("registry-auth"), "{error}");
    }
}
