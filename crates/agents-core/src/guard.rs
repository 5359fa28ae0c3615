//! Requested is enforced, or refused.
//!
//! [`ContainerRuntime::provision`] takes an [`Admitted`] request, and only [`Admitted::new`] makes one; it refuses whatever
//! the runtime cannot enforce on this host. What `provision` returns is a [`Provisioned`], which gives its
//! [`ContainerHandle`] away only to [`Provisioned::verify`], and that compares the effective state with the request.
//! So no caller, layer or engine can skip either half.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    ContainerHandle, ContainerId, ContainerRuntime, Error, ErrorKind, MountSource, ProvisionRequest, Result, SessionId,
    Support, VerifiedContainer,
};

/// A request that the runtime can enforce as a whole.
#[derive(Clone, Debug)]
pub struct Admitted(ProvisionRequest);

impl Admitted {
    /// Compares a request with what the runtime can enforce on this host.
    ///
    /// # Errors
    ///
    /// `Unsupported` that names every field that cannot be enforced, why, and what would make it work; `ConfigInvalid`
    /// for a request that contradicts itself. Nothing has been created then.
    pub fn new(runtime: &dyn ContainerRuntime, request: ProvisionRequest) -> Result<Self> {
        check_shape(&request)?;
        let all = runtime.capabilities();
        let mut refusals = Vec::new();
        // What an unknown class could enforce is not known; the request is refused anyway, with all of its faults.
        let capabilities = all
            .of_class(request.security.runtime_class.as_deref())
            .unwrap_or_else(|error| {
                refusals.push(error.message().to_owned());
                &all
            });
        let mut need = |asked: bool, field: &str, support: &Support| {
            if asked && let Support::Refused { reason, remedy } = support {
                refusals.push(format!("{field}: {reason}; {remedy}"));
            }
        };
        let resources = &request.resources;
        need(
            resources.memory_bytes.is_some(),
            "memory_mb",
            &capabilities.memory_limit,
        );
        need(resources.cpu_cores.is_some(), "cpu_cores", &capabilities.cpu_limit);
        need(resources.pids.is_some(), "pids_limit", &capabilities.pids_limit);
        need(resources.nofile.is_some(), "nofile", &capabilities.nofile_limit);
        need(resources.disk_bytes.is_some(), "disk_mb", &capabilities.disk_limit);
        let network = &request.network;
        need(
            network.allowed_endpoints.is_empty(),
            "network.disabled",
            &capabilities.network_isolation,
        );
        need(
            !network.allowed_endpoints.is_empty(),
            "network.allowed_endpoints",
            &capabilities.egress_allow_list,
        );
        need(
            !network.ingress_ports.is_empty(),
            "network.ingress_ports",
            &capabilities.ingress_ports,
        );
        let security = &request.security;
        need(
            !security.capabilities.is_empty(),
            "cap_add",
            &capabilities.add_capabilities,
        );
        need(security.seccomp_profile.is_none(), "seccomp", &capabilities.seccomp);
        need(
            security.seccomp_profile.is_some(),
            "seccomp_profile",
            &capabilities.seccomp_profile,
        );
        need(security.user.is_some(), "container_user", &capabilities.user);
        need(
            security.read_only_rootfs,
            "read_only_rootfs",
            &capabilities.read_only_rootfs,
        );
        need(
            !security.read_only_rootfs,
            "read_only_rootfs: false",
            &capabilities.writable_rootfs,
        );
        need(security.gpus.is_some(), "gpus", &capabilities.gpus);
        for mount in &request.mounts {
            if let MountSource::Bind { path } = &mount.source {
                let field = format!("mount {} at {}", path.display(), mount.destination);
                need(true, &field, &capabilities.bind_mounts);
                need(!mount.read_only, &field, &capabilities.writable_bind_mounts);
            }
        }
        need(!request.secrets.is_empty(), "tmpfs_secrets", &capabilities.secrets);
        if let Some(process) = &request.process {
            need(true, "process", &capabilities.main_process);
            need(process.tty.is_some(), "tty", &capabilities.tty);
        }
        if refusals.is_empty() {
            return Ok(Self(request));
        }
        Err(Error::unsupported(format!(
            "the {} runtime cannot enforce what was requested: {}",
            runtime.info().adapter_type,
            refusals.join(". ")
        ))
        .with_operation("provision"))
    }

    /// The request.
    pub fn request(&self) -> &ProvisionRequest {
        &self.0
    }

    /// The request itself.
    pub fn into_request(self) -> ProvisionRequest {
        self.0
    }
}

fn check_shape(request: &ProvisionRequest) -> Result<()> {
    let mut faults = Vec::new();
    if request.image.is_empty() || request.image.starts_with('-') || request.image.contains(char::is_control) {
        faults.push(format!("image: {:?} is not an image", request.image));
    }
    let mut destinations = BTreeSet::new();
    for mount in &request.mounts {
        let destination = mount.destination.as_str();
        if !is_clean_absolute(destination) || destination == "/" {
            faults.push(format!("mounts: {destination:?} is not a clean absolute path below /"));
        }
        if !destinations.insert(destination) {
            faults.push(format!("mounts: {destination:?} is used twice"));
        }
        if let MountSource::Bind { path } = &mount.source
            && !path.is_absolute()
        {
            faults.push(format!(
                "mounts: the source {} is relative; make it absolute",
                path.display()
            ));
        }
    }
    if !is_clean_absolute(&request.working_dir) {
        faults.push(format!(
            "working_dir: {:?} is not a clean absolute path",
            request.working_dir
        ));
    }
    let process_env = request.process.iter().flat_map(|process| &process.env);
    for (name, value) in request.env.iter().chain(process_env) {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            faults.push(format!(
                "env: {name:?} is not an environment variable, or its value holds NUL"
            ));
        }
    }
    if let Some(process) = &request.process
        && (process.command.is_empty() || process.command.iter().any(|word| word.contains('\0')))
    {
        faults.push("process: the command is empty or holds NUL".to_owned());
    }
    for secret in &request.secrets {
        if secret.name.is_empty() || secret.name.contains(['/', '\0']) || secret.name.starts_with('.') {
            faults.push(format!("secrets: {:?} is not a file name", secret.name));
        }
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::invalid(faults.join("; ")))
    }
}

/// Whether a path is absolute, without `.`, `..`, empty components, NUL and control characters.
pub fn is_clean_absolute(path: &str) -> bool {
    path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|component| !matches!(component, "" | "." | ".."))
                && !rest.chars().any(char::is_control)
        })
}

/// A container that exists and has not been compared with its request yet.
#[derive(Debug)]
#[must_use = "an unverified container must be verified or destroyed"]
pub struct Provisioned {
    id: ContainerId,
    session_id: SessionId,
    effective: EffectiveState,
}

impl Provisioned {
    /// For adapter authors: what was read back from the kernel or the engine.
    pub fn new(id: ContainerId, session_id: SessionId, effective: EffectiveState) -> Self {
        Self {
            id,
            session_id,
            effective,
        }
    }

    /// The container's identifier, to destroy it by.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// What was read back.
    pub fn effective(&self) -> &EffectiveState {
        &self.effective
    }

    /// Compares what is in force with what was requested.
    ///
    /// # Errors
    ///
    /// `EnforcementMismatch` that names each field that differs, or that could not be read. The caller destroys the
    /// container then.
    pub fn verify(self, request: &ProvisionRequest) -> Result<VerifiedContainer> {
        let comparison = self.effective.compare(request);
        let different: Vec<_> = comparison
            .iter()
            .filter(|row| !row.holds)
            .map(|row| format!("{}: requested {}, in force {}", row.field, row.requested, row.effective))
            .collect();
        if different.is_empty() {
            return Ok(VerifiedContainer {
                handle: ContainerHandle::new(self.id, self.session_id),
                comparison,
            });
        }
        Err(Error::new(
            ErrorKind::EnforcementMismatch,
            format!(
                "the container differs from what was requested: {}",
                different.join("; ")
            ),
        )
        .with_operation("provision"))
    }
}

/// One compared field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The field, as in the policy.
    pub field: String,
    /// What was requested.
    pub requested: String,
    /// What is in force.
    pub effective: String,
    /// Whether what is in force is at least as strict as what was requested.
    pub holds: bool,
}

/// A mount as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveMount {
    /// The path in the container.
    pub destination: String,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// What is in force, as read back. `None` means that it could not be read, which never passes for "as requested".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EffectiveState {
    /// The union of the effective, permitted, inheritable, bounding and ambient capabilities of the first process, by name.
    pub capabilities: Option<Vec<String>>,
    /// Whether `no_new_privs` is set.
    pub no_new_privileges: Option<bool>,
    /// Whether a seccomp filter is in force.
    pub seccomp_filter: Option<bool>,
    /// The user's number inside.
    pub uid: Option<u32>,
    /// The group's number inside.
    pub gid: Option<u32>,
    /// Whether the root file system is read-only.
    pub read_only_rootfs: Option<bool>,
    /// The mounts.
    pub mounts: Option<Vec<EffectiveMount>>,
    /// The memory limit, in bytes.
    pub memory_bytes: Option<u64>,
    /// The CPU limit, in cores.
    pub cpu_cores: Option<f64>,
    /// The limit on processes.
    pub pids: Option<u64>,
    /// The limit on open files.
    pub nofile: Option<u64>,
    /// The size of the writable space, in bytes.
    pub disk_bytes: Option<u64>,
    /// The network interfaces inside.
    pub network_interfaces: Option<Vec<String>>,
    /// The endpoints that an allow-list in force admits.
    pub allowed_endpoints: Option<Vec<String>>,
    /// The ports that are published.
    pub ingress_ports: Option<Vec<u16>>,
    /// The kinds of namespaces that are not the host's (`pid`, `mnt`, `net`, `ipc`, `uts`, …).
    pub private_namespaces: Option<Vec<String>>,
}

/// The namespaces that every container has of its own.
const PRIVATE_NAMESPACES: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];

impl EffectiveState {
    /// Nothing was read.
    pub fn unread() -> Self {
        Self::default()
    }

    /// Compares field by field; every field that the request decides is in the result.
    pub fn compare(&self, request: &ProvisionRequest) -> Vec<Comparison> {
        let mut rows = Rows(Vec::new());
        let security = &request.security;
        rows.check(
            "cap_add",
            &security.capabilities,
            self.capabilities.as_ref(),
            |asked, have| have.iter().all(|capability| asked.contains(capability)),
        );
        rows.check(
            "no_new_privileges",
            &true,
            self.no_new_privileges.as_ref(),
            |_, have| *have,
        );
        rows.check("seccomp", &true, self.seccomp_filter.as_ref(), |_, have| *have);
        match security.user {
            Some(user) => {
                rows.check("container_user.uid", &user.uid, self.uid.as_ref(), PartialEq::eq);
                rows.check("container_user.gid", &user.gid, self.gid.as_ref(), PartialEq::eq);
            }
            None => {
                rows.check("container_user", &"not root", self.uid.as_ref(), |_, have| *have != 0);
            }
        }
        if security.read_only_rootfs {
            rows.check("read_only_rootfs", &true, self.read_only_rootfs.as_ref(), |_, have| {
                *have
            });
        }
        for mount in &request.mounts {
            let have = self.mounts.as_ref().and_then(|mounts| {
                mounts
                    .iter()
                    .find(|candidate| candidate.destination == mount.destination)
            });
            let asked = if mount.read_only { "read-only" } else { "writable" };
            let field = format!("mount {}", mount.destination);
            rows.check(&field, &asked, have, |_, have| have.read_only == mount.read_only);
        }
        let resources = &request.resources;
        if let Some(asked) = resources.memory_bytes {
            rows.check("memory_mb", &asked, self.memory_bytes.as_ref(), |asked, have| {
                have <= asked
            });
        }
        if let Some(asked) = resources.cpu_cores {
            // The kernel keeps a quota in microseconds per period, so a hundredth of a core may be lost to rounding.
            rows.check("cpu_cores", &asked, self.cpu_cores.as_ref(), |asked, have| {
                *have <= asked + 0.01
            });
        }
        if let Some(asked) = resources.pids {
            rows.check("pids_limit", &asked, self.pids.as_ref(), |asked, have| have <= asked);
        }
        if let Some(asked) = resources.nofile {
            rows.check("nofile", &asked, self.nofile.as_ref(), |asked, have| have <= asked);
        }
        if let Some(asked) = resources.disk_bytes {
            rows.check("disk_mb", &asked, self.disk_bytes.as_ref(), |asked, have| have <= asked);
        }
        if request.network.allowed_endpoints.is_empty() && request.network.ingress_ports.is_empty() {
            let only_loopback = |_: &&str, have: &Vec<String>| have.iter().all(|name| name == "lo");
            rows.check(
                "network.disabled",
                &"loopback only",
                self.network_interfaces.as_ref(),
                only_loopback,
            );
        }
        if !request.network.allowed_endpoints.is_empty() {
            let asked = &request.network.allowed_endpoints;
            rows.check(
                "network.allowed_endpoints",
                asked,
                self.allowed_endpoints.as_ref(),
                |asked, have| have.iter().all(|endpoint| asked.contains(endpoint)),
            );
        }
        if !request.network.ingress_ports.is_empty() {
            let asked = &request.network.ingress_ports;
            rows.check(
                "network.ingress_ports",
                asked,
                self.ingress_ports.as_ref(),
                PartialEq::eq,
            );
        }
        rows.check(
            "namespaces",
            &PRIVATE_NAMESPACES,
            self.private_namespaces.as_ref(),
            |asked, have| asked.iter().all(|kind| have.iter().any(|private| private == kind)),
        );
        rows.0
    }
}

struct Rows(Vec<Comparison>);

impl Rows {
    fn check<A: std::fmt::Debug, H: std::fmt::Debug>(
        &mut self,
        field: &str,
        asked: &A,
        have: Option<&H>,
        holds: impl FnOnce(&A, &H) -> bool,
    ) {
        self.0.push(Comparison {
            field: field.to_owned(),
            requested: format!("{asked:?}"),
            effective: have.map_or_else(|| "not readable".to_owned(), |have| format!("{have:?}")),
            holds: have.is_some_and(|have| holds(asked, have)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mount, ResourceLimits};

    fn request() -> ProvisionRequest {
        let session = SessionId::generate();
        let name = ContainerId::new(session.as_str()).unwrap();
        ProvisionRequest::new(session, name, "host")
            .with_mounts([Mount::scratch("/output")])
            .with_resources(ResourceLimits::none().with_memory_bytes(Some(1 << 20)))
    }

    fn as_requested() -> EffectiveState {
        EffectiveState {
            capabilities: Some(vec![]),
            no_new_privileges: Some(true),
            seccomp_filter: Some(true),
            uid: Some(1000),
            gid: Some(1000),
            read_only_rootfs: Some(true),
            mounts: Some(vec![EffectiveMount {
                destination: "/output".into(),
                read_only: false,
            }]),
            memory_bytes: Some(1 << 20),
            network_interfaces: Some(vec!["lo".into()]),
            private_namespaces: Some(PRIVATE_NAMESPACES.map(str::to_owned).to_vec()),
            ..EffectiveState::unread()
        }
    }

    type Change = fn(&mut EffectiveState);

    #[test]
    fn every_difference_is_found() {
        let verify = |state: EffectiveState| {
            let request = request();
            Provisioned::new(request.name.clone(), request.session_id.clone(), state).verify(&request)
        };
        assert!(verify(as_requested()).is_ok());
        let changes: [(&str, Change); 12] = [
            ("cap_add", |s| s.capabilities = Some(vec!["CAP_SYS_ADMIN".into()])),
            ("cap_add", |s| s.capabilities = None),
            ("no_new_privileges", |s| s.no_new_privileges = Some(false)),
            ("seccomp", |s| s.seccomp_filter = Some(false)),
            ("container_user", |s| s.uid = Some(0)),
            ("read_only_rootfs", |s| s.read_only_rootfs = Some(false)),
            ("mount /output", |s| s.mounts = Some(vec![])),
            ("memory_mb", |s| s.memory_bytes = Some(2 << 20)),
            ("memory_mb", |s| s.memory_bytes = None),
            ("network.disabled", |s| {
                s.network_interfaces = Some(vec!["lo".into(), "eth0".into()])
            }),
            ("namespaces", |s| s.private_namespaces = Some(vec!["pid".into()])),
            ("network.disabled", |s| s.network_interfaces = None),
        ];
        for (field, change) in changes {
            let mut state = as_requested();
            change(&mut state);
            let error = verify(state).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::EnforcementMismatch);
            assert!(error.message().contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn contradictory_requests_are_refused() {
        for path in ["relative", "/", "/a/../b", "/a//b", "/a/", "/a\n"] {
            let bad = request().with_mounts([Mount::scratch(path)]);
            assert!(check_shape(&bad).is_err(), "{path:?}");
        }
        assert!(check_shape(&request().with_mounts([Mount::scratch("/output")])).is_err());
        assert!(check_shape(&request().with_env([("A=B".to_owned(), String::new())])).is_err());
        assert!(check_shape(&request()).is_ok());
    }
}
