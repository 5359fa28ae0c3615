//! MariaDB: Debian's server on a folder of its own, over TLS or without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Place, Server, account, certificates};
use crate::error::{Context, Result};
use crate::{random, sh};

pub(super) static MARIADB: MariaDb = MariaDb;

/// The user and the database.
const NAME: &str = "agents";

/// The server.
pub(super) struct MariaDb;

impl Server for MariaDb {
    fn name(&self) -> &'static str {
        "mariadb"
    }

    fn about(&self) -> &'static str {
        "Debian's MariaDB 10.11"
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, _cache: &Path) -> Result<PathBuf> {
        account::create()?;
        for program in ["mariadb", "mariadb-install-db"] {
            sh::need(program)?;
        }
        sh::need("mariadbd")
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let folder = account::make_folder(place)?;
        let certificates = folder.join("certs");
        let authority = certificates::certify(&certificates)?;
        let key = certificates.join("private.key");
        account::hand_over(&key)?;
        let password = random::hex(12)?;
        let write = |path: &Path, text: String| {
            fs::write(path, text).context(|| format!("cannot write {}", path.display()))?;
            account::hand_over(path)
        };
        write(
            &client_file(place),
            format!(
                "[client]\nhost = 127.0.0.1\nport = {}\nuser = {NAME}\npassword = {password}\n",
                place.port
            ),
        )?;
        // One statement a line, or the server skips it without a word.
        let statements = folder.join("init.sql");
        write(
            &statements,
            format!(
                "CREATE DATABASE {NAME} CHARACTER SET utf8mb4;\n\
                 CREATE USER '{NAME}'@'127.0.0.1' IDENTIFIED BY '{password}';\n\
                 GRANT ALL ON *.* TO '{NAME}'@'127.0.0.1' WITH GRANT OPTION;\n"
            ),
        )?;
        let data = folder.join("data");
        sh::output(
            account::command()?
                .arg(sh::need("mariadb-install-db")?)
                .args([
                    "--no-defaults",
                    "--skip-test-db",
                    "--auth-root-authentication-method=normal",
                ])
                .arg(option("datadir", &data)),
        )?;
        let mut command = account::command()?;
        command
            .arg(&place.program)
            .args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve"])
            .arg(format!("--port={}", place.port))
            .arg(option("datadir", &data))
            .arg(option("socket", &folder.join("socket")))
            .arg(option("pid-file", &folder.join("pid")))
            .arg(option("init-file", &statements))
            .arg(option("ssl-cert", &certificates.join("public.crt")))
            .arg(option("ssl-key", &key));
        Ok(Launch {
            command,
            env: vec![
                (
                    "AGENTS_TEST_MARIADB",
                    format!("mysql://{NAME}:{password}@127.0.0.1:{}/{NAME}", place.port),
                ),
                ("AGENTS_TEST_MARIADB_CA", authority.display().to_string()),
            ],
        })
    }

    fn ready(&self, place: &Place) -> bool {
        // Its port is open before the user is there.
        sh::need("mariadb").is_ok_and(|client| {
            sh::output(
                Command::new(client)
                    .arg(option("defaults-file", &client_file(place)))
                    .args(["--connect-timeout=2", "--execute=SELECT 1", NAME]),
            )
            .is_ok()
        })
    }

    fn clean(&self, place: &Place) -> Result<()> {
        account::remove_folder(place)
    }
}

fn client_file(place: &Place) -> PathBuf {
    account::folder(place).join("client.cnf")
}

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}
