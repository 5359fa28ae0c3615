//! PostgreSQL: Debian's server on a folder of its own, over TLS or without, with a password either way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::{Launch, Place, Server, account, certificates};
use crate::error::{Context, Error, Result};
use crate::{random, sh};

pub(super) static POSTGRES: Postgres = Postgres;

/// The user and the database.
const NAME: &str = "agents";

/// The server.
pub(super) struct Postgres;

impl Server for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn about(&self) -> &'static str {
        "Debian's PostgreSQL 15"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, _cache: &Path) -> Result<PathBuf> {
        account::create()?;
        programs()
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let folder = account::make_folder(place)?;
        let certificates = folder.join("certs");
        let authority = certificates::certify(&certificates)?;
        let key = certificates.join("private.key");
        account::hand_over(&key)?;
        let password = random::hex(12)?;
        let password_file = folder.join("password");
        fs::write(&password_file, &password).context(|| format!("cannot write {}", password_file.display()))?;
        account::hand_over(&password_file)?;
        let data = folder.join("data");
        sh::output(
            account::command()?
                .arg("LC_ALL=C.UTF-8")
                .arg(place.program.join("initdb"))
                .args([
                    "--username",
                    NAME,
                    "--encoding=UTF8",
                    "--auth=scram-sha-256",
                    "--no-sync",
                ])
                .arg("--pwfile")
                .arg(&password_file)
                .arg("--pgdata")
                .arg(&data),
        )?;
        let mut command = account::command()?;
        command
            .arg("LC_ALL=C.UTF-8")
            .arg(place.program.join("postgres"))
            .arg("-D")
            .arg(data)
            .args(["-p", &place.port.to_string(), "-h", "127.0.0.1"]);
        for setting in [
            "unix_socket_directories=".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", certificates.join("public.crt").display()),
            format!("ssl_key_file={}", key.display()),
        ] {
            command.args(["-c", &setting]);
        }
        Ok(Launch {
            command,
            env: vec![
                (
                    "AGENTS_TEST_POSTGRES",
                    format!("postgres://{NAME}:{password}@127.0.0.1:{}/{NAME}", place.port),
                ),
                ("AGENTS_TEST_POSTGRES_CA", authority.display().to_string()),
            ],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        sh::output(
            Command::new(place.program.join("pg_isready"))
                .args(["--host=127.0.0.1", "--timeout=2"])
                .arg(format!("--port={}", place.port)),
        )
        .is_ok()
    }

    fn fill(&self, place: &Place) -> Result<()> {
        let file = account::folder(place).join("password");
        let password = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
        sh::output(
            Command::new(place.program.join("createdb"))
                .args(["--host=127.0.0.1", "--username", NAME])
                .arg(format!("--port={}", place.port))
                .arg(NAME)
                .env("PGPASSWORD", password),
        )?;
        Ok(())
    }

    fn stop_signal(&self) -> Signal {
        // At SIGTERM it would wait for its clients.
        Signal::INT
    }

    fn clean(&self, place: &Place) -> Result<()> {
        account::remove_folder(place)
    }
}

/// The folder of the newest version: Debian puts none of the server's programs into `PATH`.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten();
    versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let folder = entry.path().join("bin");
            folder.join("postgres").is_file().then_some((version, folder))
        })
        .max()
        .map(|(_, folder)| folder)
        .ok_or_else(|| Error::new("PostgreSQL is missing; run `cargo xtask install`"))
}
