//! A container registry: Debian's `docker-registry`, once open to all and once with a password.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::{Launch, Place, Server, http};
use crate::error::{Context, Result, fail};
use crate::{deb, random};

pub(super) static ANONYMOUS: Registry = Registry { password: false };
pub(super) static AUTHENTICATED: Registry = Registry { password: true };

const USER: &str = "agents";

/// One of the two registries.
pub(super) struct Registry {
    password: bool,
}

impl Server for Registry {
    fn name(&self) -> &'static str {
        if self.password { "registry-auth" } else { "registry" }
    }

    fn about(&self) -> &'static str {
        if self.password {
            "container registry that wants a user and a password"
        } else {
            "container registry open to all"
        }
    }

    fn default_tier(&self) -> bool {
        true
    }

    fn install(&self, cache: &Path) -> Result<PathBuf> {
        // One folder for both: it is the same program.
        deb::unpack(&cache.join("registry"), "docker-registry")
    }

    fn launch(&self, place: &Place) -> Result<Launch> {
        let address = format!("127.0.0.1:{}", place.port);
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "info", "accesslog": { "disabled": true } },
            "storage": {
                "filesystem": { "rootdirectory": place.data.join("blobs") },
                "delete": { "enabled": true },
            },
            "http": { "addr": address, "secret": random::hex(16)? },
        });
        let mut env = vec![];
        if self.password {
            let password = random::hex(12)?;
            let users = place.data.join("htpasswd");
            write(&users, &format!("{USER}:{}\n", bcrypt(&password)?))?;
            config["auth"] = json!({ "htpasswd": { "realm": "tests", "path": users } });
            env.push(("ISOLATED_AGENTS_TEST_REGISTRY_AUTH", address));
            env.push(("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_USER", USER.to_owned()));
            env.push(("ISOLATED_AGENTS_TEST_REGISTRY_AUTH_PASSWORD", password));
        } else {
            env.push(("ISOLATED_AGENTS_TEST_REGISTRY", address));
        }
        // JSON is YAML too, and needs no quoting of ours.
        let file = place.data.join("config.yml");
        write(&file, &config.to_string())?;
        let mut command = Command::new(place.program.join("usr/bin/docker-registry"));
        command.arg("serve").arg(file);
        Ok(Launch { command, env })
    }

    fn ready(&self, place: &Place) -> bool {
        let wanted = if self.password { 401 } else { 200 };
        http::status(place.port, "/v2/") == Some(wanted)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).context(|| format!("cannot write {}", path.display()))
}

/// The bcrypt hash of a password, from the system's crypt(3).
///
/// The registry takes bcrypt only. Perl is part of every Debian, which saves a dependency and a package.
fn bcrypt(password: &str) -> Result<String> {
    // Hexadecimal digits are within bcrypt's alphabet; the salt has 22 of them, the last one in a fixed class.
    let salt = format!("{}u", &random::hex(11)?[..21]);
    let mut child = Command::new("perl")
        .args(["-e", "chomp(my $p = <STDIN>); print crypt($p, $ARGV[0])"])
        .arg(format!("$2y$05${salt}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "cannot start `perl`".to_owned())?;
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "{password}").context(|| "cannot write to `perl`".to_owned())?;
    }
    let output = child
        .wait_with_output()
        .context(|| "cannot wait for `perl`".to_owned())?;
    let hash = String::from_utf8_lossy(&output.stdout).into_owned();
    if hash.starts_with("$2y$05$") && hash.len() == 60 {
        return Ok(hash);
    }
    fail("the system's crypt(3) knows no bcrypt; is this a Debian without libxcrypt?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_hash_is_bcrypt_and_salted() {
        let first = bcrypt("secret").unwrap();
        assert!(first.starts_with("$2y$05$"));
        assert_ne!(first, bcrypt("secret").unwrap());
    }

    #[test]
    fn the_password_reaches_the_test_and_not_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            program: PathBuf::from("/nowhere"),
            data: folder.path().to_owned(),
            port: 5000,
        };
        let launch = AUTHENTICATED.launch(&place).unwrap();
        let (_, password) = launch.env.last().unwrap();
        assert!(!crate::sh::display(&launch.command).contains(password.as_str()));
        assert!(
            !fs::read_to_string(folder.path().join("htpasswd"))
                .unwrap()
                .contains(password.as_str())
        );
    }
}
