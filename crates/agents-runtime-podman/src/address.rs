//! Where the engine is.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use agents_core::{Error, Result};

use crate::config::PodmanConfig;

/// A place to reach an engine at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A unix socket of this host.
    Unix(PathBuf),
    /// A TCP port.
    Tcp { host: String, port: u16 },
    /// A unix socket of another host.
    Ssh {
        user: Option<String>,
        host: String,
        port: Option<u16>,
        socket: String,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ssh {
                user,
                host,
                port,
                socket,
            } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(host)?;
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                f.write_str(socket)
            }
        }
    }
}

impl Address {
    /// Reads a URL.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        // A URL may hold a password, so that it is quoted only where it cannot.
        let fault = |what: &str| {
            Error::invalid(format!(
                "remote_url: {what}; write unix:///path/of/socket, tcp://host:port or ssh://user@host:port/path/of/socket"
            ))
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| fault("it has no scheme"))?;
        if rest.contains(char::is_control) || rest.contains(['?', '#', ' ']) {
            return Err(fault("it has a query, a fragment, a blank or a control character"));
        }
        match scheme {
            "unix" => {
                let path = PathBuf::from(rest);
                if path.is_absolute() {
                    Ok(Self::Unix(path))
                } else {
                    Err(fault("the path of the socket is not absolute"))
                }
            }
            "tcp" | "https" => {
                let rest = rest.strip_suffix('/').unwrap_or(rest);
                if rest.contains(['/', '@']) {
                    return Err(fault("a tcp:// engine has neither a path nor a user"));
                }
                let (host, port) = host_and_port(rest).ok_or_else(|| fault("it names no host"))?;
                let port = port.ok_or_else(|| fault("it names no port"))?;
                Ok(Self::Tcp { host, port })
            }
            "ssh" => {
                let (authority, socket) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let (user, host) = match authority.rsplit_once('@') {
                    Some((user, host)) => (Some(user), host),
                    None => (None, authority),
                };
                if user.is_some_and(|user| user.contains(':')) {
                    return Err(fault("a password in a URL is seen by others; use a key"));
                }
                // Both become one argument of `ssh`, and must not be taken for an option.
                let word = |word: &str| {
                    !word.is_empty()
                        && !word.starts_with('-')
                        && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-:%".contains(c))
                };
                let (host, port) = host_and_port(host).ok_or_else(|| fault("it names no host"))?;
                if !word(&host) || user.is_some_and(|user| !word(user)) {
                    return Err(fault("the user or the host is no such name"));
                }
                let socket = match socket {
                    "" | "/" if user == Some("root") => "/run/podman/podman.sock",
                    "" | "/" => return Err(fault("the path of the socket is missing")),
                    socket if socket.contains(':') => return Err(fault("the path of the socket holds a colon")),
                    socket => socket,
                };
                Ok(Self::Ssh {
                    user: user.map(str::to_owned),
                    host,
                    port,
                    socket: socket.to_owned(),
                })
            }
            _ => Err(fault("its scheme is unknown")),
        }
    }

    /// From the configuration, the environment, or the usual places.
    pub(crate) fn resolve(config: &PodmanConfig) -> Result<Self> {
        Self::resolve_with(config, |name| env::var_os(name), rustix::process::geteuid().as_raw())
    }

    fn resolve_with(config: &PodmanConfig, variable: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Self> {
        if let Some(path) = &config.socket_path {
            return Ok(Self::Unix(path.clone()));
        }
        if let Some(url) = &config.remote_url {
            return Self::parse(url);
        }
        if let Some(url) = variable("CONTAINER_HOST").filter(|url| !url.is_empty()) {
            let url = url
                .into_string()
                .map_err(|_| Error::invalid("CONTAINER_HOST is not UTF-8"))?;
            return Self::parse(&url)
                .map_err(|error| Error::invalid(error.message().replacen("remote_url", "CONTAINER_HOST", 1)));
        }
        if uid == 0 {
            return Ok(Self::Unix(PathBuf::from("/run/podman/podman.sock")));
        }
        let folder = variable("XDG_RUNTIME_DIR")
            .filter(|folder| !folder.is_empty())
            .map_or_else(|| PathBuf::from(format!("/run/user/{uid}")), PathBuf::from);
        Ok(Self::Unix(folder.join("podman/podman.sock")))
    }

    /// Whether paths of this host mean the same to the engine.
    pub(crate) fn is_local(&self) -> bool {
        self.socket().is_some()
    }

    /// The socket of an engine of this host.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            _ => None,
        }
    }
}

fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        (
            host,
            if after.is_empty() {
                None
            } else {
                Some(after.strip_prefix(':')?)
            },
        )
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
        None => None,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_podman() {
        for url in [
            "unix:///run/podman/podman.sock",
            "tcp://engine.example:8443",
            "tcp://[::1]:8443",
            "ssh://core@engine.example:2222/run/user/1000/podman/podman.sock",
            "ssh://engine.example/run/podman/podman.sock",
        ] {
            assert_eq!(Address::parse(url).unwrap().to_string(), url);
        }
        assert_eq!(
            Address::parse("ssh://root@h").unwrap().to_string(),
            "ssh://root@h/run/podman/podman.sock"
        );
    }

    #[test]
    fn nothing_in_a_url_becomes_an_option_or_is_dropped() {
        for bad in [
            "podman.sock",
            "unix://run/podman.sock",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:99999",
            "tcp://u@host:1",
            "tcp://host:1/path",
            "ssh://-oProxyCommand=touch/run/s",
            "ssh://a@-b/s",
            "ssh://u:hunter2@h/s",
            "ssh://h",
            "ssh://h/a:b",
            "ssh://h/s?x=1",
            "unix:///a\nb",
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_order_is_config_environment_usual_place() {
        let variable = |name: &str| match name {
            "CONTAINER_HOST" => Some("tcp://h:1".into()),
            _ => None,
        };
        let set = PodmanConfig::default().with_socket_path("/s");
        let at = |config: &PodmanConfig, variable: &dyn Fn(&str) -> Option<OsString>, uid| {
            Address::resolve_with(config, variable, uid).unwrap().to_string()
        };
        assert_eq!(at(&set, &variable, 0), "unix:///s");
        let none = PodmanConfig::default();
        assert_eq!(at(&none, &variable, 0), "tcp://h:1");
        assert_eq!(at(&none, &|_| None, 0), "unix:///run/podman/podman.sock");
        assert_eq!(at(&none, &|_| None, 7), "unix:///run/user/7/podman/podman.sock");
        let runtime_dir = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| "/x".into());
        assert_eq!(at(&none, &runtime_dir, 7), "unix:///x/podman/podman.sock");
    }
}
