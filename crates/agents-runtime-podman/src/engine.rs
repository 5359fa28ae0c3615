//! What the engine is and can do, found out once and kept: podman needs half a second to say it, for it asks the package
//! manager about every program that it uses.

use std::time::Duration;

use agents_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::{
    client::{Call, Client},
    model::View,
};

/// For how long what was kept is believed; the read-back of each container finds what has changed meanwhile.
pub(crate) const BELIEVED: Duration = Duration::from_secs(24 * 60 * 60);

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Engine {
    /// The engine's version, as it writes it.
    pub(crate) version: String,
    pub(crate) rootless: bool,
    pub(crate) cgroup_v2: bool,
    /// Who makes the cgroups of its containers: `systemd` or `cgroupfs`.
    pub(crate) cgroup_manager: String,
    /// The cgroup controllers that its containers are limited by.
    pub(crate) controllers: Vec<String>,
    pub(crate) seccomp: bool,
    pub(crate) selinux: bool,
    pub(crate) apparmor: bool,
    pub(crate) kernel: String,
    pub(crate) arch: String,
    /// The name of the runtime that containers get without asking.
    pub(crate) default_runtime: String,
    /// The runtimes that its configuration names.
    pub(crate) runtimes: Vec<String>,
    /// The host's user and group that root in a rootless container is: who runs the engine.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Engine {
    /// Asks the engine.
    pub(crate) async fn ask(client: &Client) -> Result<Self> {
        let libpod = client.json::<View>(Call::get("say what it is", &["info"]));
        let compatible = client.json::<View>(Call::at(hyper::Method::GET, "list its runtimes", "/v1.40/info"));
        let (libpod, compatible) = tokio::join!(libpod, compatible);
        // The second is there for the names alone.
        Ok(Self::read(&libpod?, &compatible.unwrap_or_default()))
    }

    fn read(info: &View, compatible: &View) -> Self {
        let first = |pointer: &str| {
            let map = info.items(pointer).find(|map| map.number("/container_id") == Some(0))?;
            u32::try_from(map.number("/host_id")?).ok()
        };
        let default_runtime = info.text("/host/ociRuntime/name").unwrap_or_default().to_owned();
        let mut runtimes = compatible.keys("/Runtimes");
        if !default_runtime.is_empty() && !runtimes.contains(&default_runtime) {
            runtimes.push(default_runtime.clone());
        }
        runtimes.sort();
        let text = |pointer: &str| info.text(pointer).unwrap_or_default().to_owned();
        Self {
            version: text("/version/Version"),
            rootless: info.flag("/host/security/rootless").unwrap_or(true),
            cgroup_v2: info.text("/host/cgroupVersion") == Some("v2"),
            cgroup_manager: text("/host/cgroupManager"),
            controllers: info.texts("/host/cgroupControllers"),
            seccomp: info.flag("/host/security/seccompEnabled").unwrap_or(false),
            selinux: info.flag("/host/security/selinuxEnabled").unwrap_or(false),
            apparmor: info.flag("/host/security/apparmorEnabled").unwrap_or(false),
            kernel: text("/host/kernel"),
            arch: text("/host/arch"),
            default_runtime,
            runtimes,
            owner: first("/host/idMappings/uidmap").zip(first("/host/idMappings/gidmap")),
        }
    }

    /// Whether the version is at least this one.
    pub(crate) fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.version.split(['.', '-', '+']).map(|part| part.parse::<u32>().ok());
        let have = (parts.next().flatten(), parts.next().flatten());
        have >= (Some(major), Some(minor))
    }

    /// Whether the cgroup controller limits containers.
    pub(crate) fn controls(&self, controller: &str) -> bool {
        self.makes_cgroups() && self.controllers.iter().any(|name| name == controller)
    }

    /// Whether containers get cgroups at all. On cgroup v1 nobody but root can make any, and on v2 rootless podman makes none
    /// itself: without systemd it takes limits, repeats them when it is asked, and sets none
    /// (https://github.com/podman-container-tools/podman/issues/21575).
    pub(crate) fn makes_cgroups(&self) -> bool {
        !self.rootless || (self.cgroup_v2 && self.cgroup_manager == "systemd")
    }

    /// Whether containers of a class, or of none, run under gVisor.
    pub(crate) fn is_gvisor(&self, class: Option<&str>) -> bool {
        class.map_or(&*self.default_runtime, Self::runtime_of) == "runsc"
    }

    /// How the runtime is called that stands behind a class.
    pub(crate) fn runtime_of(class: &str) -> &str {
        if class == "gvisor" { "runsc" } else { class }
    }
}

/// Asks for the version alone, which is quick.
pub(crate) async fn version(client: &Client) -> Result<String> {
    let answer = client
        .call(Call::at(hyper::Method::GET, "be reached", "/_ping"))
        .await?;
    let version = answer
        .headers
        .get("libpod-api-version")
        .and_then(|value| value.to_str().ok());
    version.map(str::to_owned).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "what answers there is not podman; give podman's own socket, or use `type: docker`",
        )
        .with_context("engine", client.address())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(json: &str) -> View {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_not_said_is_not_believed() {
        let engine = Engine::read(&View::default(), &View::default());
        assert!(engine.rootless && !engine.cgroup_v2 && !engine.seccomp);
        assert!(!engine.controls("memory"));
    }

    #[test]
    fn rootless_controls_nothing_without_systemds_cgroups() {
        let info = |rootless, version, manager| {
            view(&format!(
                r#"{{"host":{{"cgroupManager":"{manager}","security":{{"rootless":{rootless},"seccompEnabled":true}},"cgroupVersion":"{version}",
                "cgroupControllers":["memory","pids"],"idMappings":{{"uidmap":[{{"container_id":0,"host_id":1000,"size":1}}],
                "gidmap":[{{"container_id":0,"host_id":1001,"size":1}}]}},"ociRuntime":{{"name":"crun"}}}},"version":{{"Version":"4.10.1-dev"}}}}"#
            ))
        };
        let names = view(r#"{"Runtimes":{"runsc":{"path":"/x"},"crun":{}}}"#);
        let one = Engine::read(&info(true, "v1", "systemd"), &names);
        assert!(!one.controls("memory"));
        assert_eq!(one.owner, Some((1000, 1001)));
        assert_eq!(one.runtimes, ["crun", "runsc"]);
        assert!(one.at_least(4, 3) && one.at_least(4, 10) && !one.at_least(5, 0));
        assert!(Engine::read(&info(true, "v2", "systemd"), &names).controls("memory"));
        assert!(!Engine::read(&info(true, "v2", "systemd"), &names).controls("cpu"));
        assert!(!Engine::read(&info(true, "v2", "cgroupfs"), &names).controls("memory"));
        assert!(Engine::read(&info(false, "v1", "cgroupfs"), &names).controls("pids"));
    }
}
