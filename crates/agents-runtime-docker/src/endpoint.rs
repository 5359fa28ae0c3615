//! Which engine, found the way the `docker` program finds it.

use std::{
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use agents_core::{Error, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::DockerConfig;

/// Where the engine listens.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A socket of this machine.
    Unix(PathBuf),
    /// A port, over TLS unless it is this machine's own or plain text was asked for.
    Tcp { host: String, port: u16, tls: Tls },
    /// A socket of another machine, by way of the program `ssh`.
    Ssh(SshTarget),
}

/// How a port is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    /// In plain text.
    Off,
    /// Over TLS, with the certificates of a folder.
    Folder(PathBuf),
}

/// Where ssh goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SshTarget {
    pub(crate) user: Option<String>,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    /// The socket on the other machine.
    pub(crate) socket: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp {
                host,
                port,
                tls: Tls::Off,
            } => write!(f, "tcp://{host}:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "tcp://{host}:{port} over TLS"),
            Self::Ssh(target) => write!(f, "ssh://{}{}", target.host, target.socket),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the environment of this process says; a value, so that tests need not change it.
pub(crate) struct Environment<'a> {
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    pub(crate) exists: &'a dyn Fn(&Path) -> bool,
}

impl Environment<'_> {
    /// That of this process.
    pub(crate) const OWN: Environment<'static> = Environment {
        variable: &|name| std::env::var_os(name),
        exists: &|path| path.exists(),
    };

    fn text(&self, name: &str) -> Option<String> {
        let value = (self.variable)(name)?.into_string().ok()?;
        Some(value).filter(|value| !value.is_empty())
    }

    /// The folder of docker's configuration.
    pub(crate) fn config_folder(&self, config: &DockerConfig) -> Option<PathBuf> {
        let own = config.config_path.clone();
        own.or_else(|| self.text("DOCKER_CONFIG").map(PathBuf::from))
            .or_else(|| Some(PathBuf::from(self.text("HOME")?).join(".docker")))
    }
}

impl Endpoint {
    /// Reads a host as docker writes it. TLS is decided elsewhere.
    pub(crate) fn parse(host: &str) -> Result<Self, String> {
        let known = "write unix:///path, tcp://name:port or ssh://user@name";
        if host.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(format!("{host:?} has a blank or a control character in it; {known}"));
        }
        let (scheme, rest) = host
            .split_once("://")
            .ok_or_else(|| format!("{host:?} has no scheme; {known}"))?;
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(PathBuf::from(rest))),
            "unix" => Err(format!("{host:?} is not an absolute path; write unix:///path")),
            "tcp" | "http" | "https" => {
                let (name, port) = authority(rest.trim_end_matches('/'))?;
                let host = name.ok_or_else(|| format!("{host:?} names no host; write tcp://name:port"))?;
                let tls = if scheme == "https" { 2376 } else { 2375 };
                Ok(Self::Tcp {
                    host,
                    port: port.unwrap_or(tls),
                    tls: Tls::Off,
                })
            }
            "ssh" => {
                let (target, socket) = match rest.find('/') {
                    Some(slash) if rest.len() > slash + 1 => (&rest[..slash], &rest[slash..]),
                    Some(slash) => (&rest[..slash], "/var/run/docker.sock"),
                    None => (rest, "/var/run/docker.sock"),
                };
                let (user, target) = match target.rsplit_once('@') {
                    Some((user, target)) => (Some(user.to_owned()), target),
                    None => (None, target),
                };
                let (name, port) = authority(target)?;
                let name = name.ok_or_else(|| format!("{host:?} names no host; write ssh://user@name"))?;
                let odd = |word: &String| word.is_empty() || word.starts_with('-') || word.contains(['@', ':']);
                if user.as_ref().is_some_and(odd) {
                    return Err(format!("{host:?} has an odd user; a password does not belong here"));
                }
                if socket.contains(':') {
                    return Err(format!("{host:?} has a socket with a colon in its path"));
                }
                Ok(Self::Ssh(SshTarget {
                    user,
                    host: name,
                    port,
                    socket: socket.to_owned(),
                }))
            }
            "npipe" => Err(format!("{host:?} is a Windows pipe, which is not supported; {known}")),
            "fd" => Err(format!("{host:?} is for the engine itself; {known}")),
            _ => Err(format!("{host:?} has an unknown scheme; {known}")),
        }
    }

    /// The engine that the configuration and the environment name.
    pub(crate) fn find(config: &DockerConfig, environment: &Environment<'_>) -> Result<Self> {
        let folder = environment.config_folder(config);
        let named = |host: &str, source: &str| {
            Self::parse(host).map_err(|reason| Error::invalid(format!("{source}: {reason}")))
        };
        if let Some(host) = &config.host {
            return named(host, "host")?.with_tls(config, environment, "host");
        }
        let context = match &config.context {
            Some(context) => Some((context.clone(), "context")),
            None => {
                if let Some(host) = environment.text("DOCKER_HOST") {
                    return named(&host, "DOCKER_HOST")?.with_tls(config, environment, "DOCKER_HOST");
                }
                environment
                    .text("DOCKER_CONTEXT")
                    .map(|context| (context, "DOCKER_CONTEXT"))
                    .or_else(|| Some((current_context(folder.as_deref()?)?, "currentContext")))
            }
        };
        if let Some((name, source)) = context.filter(|(name, _)| name != "default") {
            let folder = folder.ok_or_else(|| {
                Error::invalid(format!(
                    "{source}: there is no home folder to find the context {name:?} in; set config_path"
                ))
            })?;
            return of_context(&folder, &name, source);
        }
        let usual = PathBuf::from("/var/run/docker.sock");
        let rootless = environment
            .text("XDG_RUNTIME_DIR")
            .map(|folder| PathBuf::from(folder).join("docker.sock"));
        Ok(Self::Unix(match rootless {
            Some(rootless) if !(environment.exists)(&usual) && (environment.exists)(&rootless) => rootless,
            _ => usual,
        }))
    }

    /// Decides how a port is spoken to.
    fn with_tls(self, config: &DockerConfig, environment: &Environment<'_>, source: &str) -> Result<Self> {
        let Self::Tcp { host, port, .. } = self else {
            return Ok(self);
        };
        let wanted = config.tls_verify.unwrap_or_else(|| {
            config.cert_path.is_some() || environment.text("DOCKER_TLS_VERIFY").is_some_and(|value| value != "0")
        });
        let tls = if wanted {
            let folder = config
                .cert_path
                .clone()
                .or_else(|| environment.text("DOCKER_CERT_PATH").map(PathBuf::from))
                .or_else(|| environment.config_folder(config));
            Tls::Folder(
                folder.ok_or_else(|| Error::invalid("cert_path: there is no folder with certificates; set it"))?,
            )
        } else {
            let own = matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1");
            if !own && config.tls_verify.is_none() {
                return Err(Error::invalid(format!(
                    "{source}: tcp://{host}:{port} is another machine and TLS is off, so that everybody on the way could use \
                     the engine; set cert_path, use ssh://, or write tls_verify: false"
                )));
            }
            Tls::Off
        };
        Ok(Self::Tcp { host, port, tls })
    }

    /// Whether the engine sees the same files as this process does.
    pub(crate) fn is_local(&self) -> bool {
        self.socket().is_some()
    }

    /// The socket of an engine of this machine.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            _ => None,
        }
    }
}

/// A host and a port.
fn authority(text: &str) -> Result<(Option<String>, Option<u16>), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or_else(|| format!("{text:?} has no closing bracket"))?;
        (host, rest.strip_prefix(':'))
    } else {
        match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().map_err(|_| format!("{port:?} is not a port"))?),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '%');
    if host.starts_with('-') || !host.chars().all(plain) {
        return Err(format!("{host:?} is not the name of a host"));
    }
    Ok((Some(host.to_owned()).filter(|host| !host.is_empty()), port))
}

fn current_context(folder: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default, rename = "currentContext")]
        current: String,
    }
    let bytes = fs::read(folder.join("config.json")).ok()?;
    let file: File = serde_json::from_slice(&bytes).ok()?;
    Some(file.current).filter(|name| !name.is_empty())
}

/// The engine of a context, which docker keeps in folders named by the hash of the context's name.
fn of_context(folder: &Path, name: &str, source: &str) -> Result<Endpoint> {
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "Endpoints")]
        endpoints: Endpoints,
    }
    #[derive(Deserialize)]
    struct Endpoints {
        docker: Option<Docker>,
    }
    #[derive(Deserialize)]
    struct Docker {
        #[serde(default, rename = "Host")]
        host: String,
        #[serde(default, rename = "SkipTLSVerify")]
        skip_verify: bool,
    }
    let key = hex(&Sha256::digest(name.as_bytes()));
    let path = folder.join("contexts/meta").join(&key).join("meta.json");
    let bytes = fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!(
            "{source}: there is no docker context {name:?}; see `docker context ls`, or set host"
        )),
        _ => Error::io(format!("{source}: cannot read {}", path.display()), error),
    })?;
    let meta: Meta = serde_json::from_slice(&bytes).map_err(|error| {
        Error::invalid(format!(
            "{source}: the docker context {name:?} cannot be read; make it again"
        ))
        .with_source(error)
    })?;
    let docker = meta
        .endpoints
        .docker
        .filter(|docker| !docker.host.is_empty())
        .ok_or_else(|| Error::invalid(format!("{source}: the context {name:?} has no docker engine")))?;
    let endpoint = Endpoint::parse(&docker.host)
        .map_err(|reason| Error::invalid(format!("{source}: the context {name:?}: {reason}")))?;
    let Endpoint::Tcp { host, port, .. } = endpoint else {
        return Ok(endpoint);
    };
    if docker.skip_verify {
        return Err(Error::invalid(format!(
            "{source}: the context {name:?} does not check who the engine is, which is refused; make it again with the \
             engine's CA"
        )));
    }
    let certificates = folder.join("contexts/tls").join(&key).join("docker");
    let own = matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1");
    if certificates.join("ca.pem").exists() {
        let tls = Tls::Folder(certificates);
        Ok(Endpoint::Tcp { host, port, tls })
    } else if own {
        Ok(Endpoint::Tcp {
            host,
            port,
            tls: Tls::Off,
        })
    } else {
        Err(Error::invalid(format!(
            "{source}: the context {name:?} is another machine and has no certificates; make it again with them, or use ssh://"
        )))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(config: &DockerConfig, variables: &[(&str, &str)], present: &[&str]) -> Result<Endpoint> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let exists = |path: &Path| present.iter().any(|present| Path::new(present) == path);
        let environment = Environment {
            variable: &variable,
            exists: &exists,
        };
        Endpoint::find(config, &environment)
    }

    fn shown(config: &DockerConfig, variables: &[(&str, &str)]) -> String {
        find(config, variables, &[]).unwrap().to_string()
    }

    #[test]
    fn the_order_is_that_of_docker() {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join(".docker");
        let context = |name: &str, host: &str| {
            let key = hex(&Sha256::digest(name.as_bytes()));
            let folder = docker.join("contexts/meta").join(key);
            fs::create_dir_all(&folder).unwrap();
            let meta = format!(
                r#"{{"Name":"{name}","Metadata":{{}},"Endpoints":{{"docker":{{"Host":"{host}","SkipTLSVerify":false}}}}}}"#
            );
            fs::write(folder.join("meta.json"), meta).unwrap();
        };
        context("one", "unix:///one.sock");
        context("two", "ssh://me@two.example");
        fs::write(docker.join("config.json"), r#"{"currentContext":"one"}"#).unwrap();
        let home_variable = ("HOME", home.path().to_str().unwrap());
        let default = DockerConfig::default();
        assert_eq!(shown(&default, &[home_variable]), "unix:///one.sock");
        assert_eq!(
            shown(&default, &[home_variable, ("DOCKER_CONTEXT", "two")]),
            "ssh://two.example/var/run/docker.sock"
        );
        let both = [
            home_variable,
            ("DOCKER_CONTEXT", "two"),
            ("DOCKER_HOST", "unix:///env.sock"),
        ];
        assert_eq!(shown(&default, &both), "unix:///env.sock");
        let named = DockerConfig {
            context: Some("one".to_owned()),
            ..DockerConfig::default()
        };
        assert_eq!(shown(&named, &both), "unix:///one.sock");
        assert_eq!(
            shown(&DockerConfig::host("unix:///own.sock"), &both),
            "unix:///own.sock"
        );
        let missing = find(&default, &[home_variable, ("DOCKER_CONTEXT", "three")], &[]).unwrap_err();
        assert!(missing.message().contains("three"), "{missing}");
        assert_eq!(
            shown(&default, &[home_variable, ("DOCKER_CONTEXT", "default")]),
            "unix:///var/run/docker.sock"
        );
    }

    #[test]
    fn rootless_docker_is_found_when_there_is_no_other() {
        let variables = [("XDG_RUNTIME_DIR", "/run/user/1000")];
        let own = "/run/user/1000/docker.sock";
        let usual = "/var/run/docker.sock";
        let found = |present: &[&str]| find(&DockerConfig::default(), &variables, present).unwrap().to_string();
        assert_eq!(found(&[own]), format!("unix://{own}"));
        assert_eq!(found(&[own, usual]), format!("unix://{usual}"));
        assert_eq!(found(&[]), format!("unix://{usual}"));
    }

    #[test]
    fn another_machine_needs_tls_or_an_open_word() {
        let plain = DockerConfig::host("tcp://build.example:2375");
        assert!(find(&plain, &[], &[]).unwrap_err().message().contains("tls_verify"));
        let open = DockerConfig {
            tls_verify: Some(false),
            ..plain.clone()
        };
        assert_eq!(shown(&open, &[]), "tcp://build.example:2375");
        assert_eq!(
            shown(&DockerConfig::host("tcp://127.0.0.1:1"), &[]),
            "tcp://127.0.0.1:1"
        );
        let variables = [("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", "/certs")];
        assert_eq!(shown(&plain, &variables), "tcp://build.example:2375 over TLS");
    }

    #[test]
    fn hosts_are_read_strictly() {
        let good = [
            ("ssh://ci@h:22", "ssh://h/var/run/docker.sock"),
            ("ssh://h/run/user/1/docker.sock", "ssh://h/run/user/1/docker.sock"),
            ("tcp://[::1]:2375", "tcp://::1:2375"),
        ];
        for (text, expected) in good {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), expected);
        }
        for bad in [
            "unix:///a b",
            "/var/run/docker.sock",
            "unix://relative",
            "tcp://",
            "tcp://h:99999",
            "ssh://-oProxyCommand=x",
            "ssh://-x@h",
            "ssh://a:b@h",
            "tcp://a$b:1",
            "npipe:////./pipe/docker_engine",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
