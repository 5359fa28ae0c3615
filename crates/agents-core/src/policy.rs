//! What an agent may use: the [`Policy`].

use std::{collections::BTreeMap, fmt, ops::Deref};

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Finding, ImagePullPolicy, Result, SecretRef, User, guard::is_clean_absolute, nearest};

/// A validated [`PolicySpec`]. Every policy that exists is well-formed.
///
/// ```
/// use agents_core::{Policy, PolicySpec};
///
/// let policy = Policy::new(PolicySpec { memory_mb: Some(1024), ..PolicySpec::default() })?;
/// assert_eq!(policy.memory_mb, Some(1024));
///
/// let errors = Policy::from_json(r#"{"memory_mb": -1, "cpu_core": 2}"#).unwrap_err();
/// assert_eq!(errors.findings().len(), 2);
/// # Ok::<(), agents_core::PolicyErrors>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy(PolicySpec);

/// Everything that is wrong with a policy, each with its path and code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors(Vec<Finding>);

impl PolicyErrors {
    /// The findings, in the order of the fields.
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the policy is not well-formed: ")?;
        for (i, finding) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            finding.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

impl From<PolicyErrors> for Error {
    fn from(errors: PolicyErrors) -> Self {
        Self::new(ErrorKind::ConfigInvalid, errors.to_string()).with_operation("policy")
    }
}

macro_rules! policy_fields {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)*) => {
        /// The fields of a policy, before validation. [`Policy::new`] validates them.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct PolicySpec {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for PolicySpec {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl PolicySpec {
            /// The names of all fields.
            pub const FIELDS: &[&str] = &[$(stringify!($field),)*];

            fn parse(fields: Map<String, Value>, findings: &mut Vec<Finding>) -> Self {
                let mut spec = Self::default();
                for (key, value) in fields {
                    match key.as_str() {
                        $(stringify!($field) => parse_field(&key, value, &mut spec.$field, findings),)*
                        _ => findings.push(unknown_field(&key, "", Self::FIELDS)),
                    }
                }
                spec
            }
        }
    };
}

policy_fields! {
    /// CPU time in cores; `null` asks for no limit.
    cpu_cores: Option<f64> = Some(1.0),
    /// Memory in MiB; `null` asks for no limit.
    memory_mb: Option<u64> = Some(512),
    /// What may be reached, and what may reach the agent.
    network: NetworkPolicy = NetworkPolicy::default(),
    /// Host paths that the agent may read: `/path`, or `/path:/path/inside`.
    readonly_mounts: Vec<String> = Vec::new(),
    /// Whether the agent may start further agents. Not implemented yet: refused unless false.
    allow_sub_agents: bool = false,
    /// Environment variables that are forwarded from the host when they are set there.
    allowed_env_vars: Vec<String> = Vec::new(),
    /// Environment variables and their values.
    env_vars: BTreeMap<String, String> = BTreeMap::new(),
    /// Environment variables that are never passed on.
    blocked_env_vars: Vec<String> = Vec::new(),
    /// Environment variables whose values are redacted in every record.
    sensitive_env_vars: Vec<String> = Vec::new(),
    /// Python packages to install. Not implemented yet: refused unless empty.
    pip_packages: Vec<String> = Vec::new(),
    /// The Python package index. Not implemented yet: refused unless null.
    pip_index_url: Option<String> = None,
    /// Whether Python packages need hashes. Not implemented yet: refused unless false.
    pip_require_hashes: bool = false,
    /// Secrets by the name of their file in `/run/secrets`, each a reference such as `env:NAME` or `file:/path`.
    tmpfs_secrets: BTreeMap<String, SecretRef> = BTreeMap::new(),
    /// Whether the agent gets a standard input and a terminal.
    interactive: bool = false,
    /// Not implemented yet: refused unless false.
    durable: bool = false,
    /// The folder inside that is collected at the end.
    output_path_in_container: String = "/output".to_owned(),
    /// The most bytes that are collected; `null` asks for no limit beyond the writable space.
    max_output_bytes: Option<u64> = None,
    /// The deadline in seconds.
    timeout_seconds: Option<f64> = None,
    /// A host file that gets a copy of the agent's output. Not implemented yet: refused unless null.
    log_output_path: Option<String> = None,
    /// How often a failed agent is tried again, each time in a fresh container.
    retry_count: u32 = 0,
    /// The pause before trying again, in seconds.
    retry_delay_seconds: f64 = 1.0,
    /// Not implemented yet: refused unless 0.
    cache_duration_seconds: f64 = 0.0,
    /// Words that are put before the command.
    entrypoint: Option<Vec<String>> = None,
    /// The image.
    base_image: String = "python:3.11-slim".to_owned(),
    /// Not implemented yet: refused unless false.
    requires_display: bool = false,
    /// Not implemented yet: refused unless null.
    proxy_url: Option<String> = None,
    /// Not implemented yet: refused unless null.
    proxy_ca_cert: Option<String> = None,
    /// A JSON Schema for the agent's `result.json` in the output folder.
    structured_output: Option<Value> = None,
    /// Capabilities that are dropped. Only `["ALL"]`: keep single ones with `cap_add`.
    cap_drop: Vec<String> = vec!["ALL".to_owned()],
    /// Capabilities that are kept.
    cap_add: Vec<String> = Vec::new(),
    /// A file with a seccomp profile in the OCI or Docker JSON format, instead of the default filter.
    seccomp_profile: Option<String> = None,
    /// Whether the root file system is read-only.
    read_only_rootfs: bool = true,
    /// The size of `/tmp` in MiB. It is memory-backed and counts towards `memory_mb`.
    tmpfs_size_mb: u64 = 512,
    /// The user as `uid:gid`.
    container_user: Option<String> = None,
    /// How often use is compared with the thresholds, in seconds.
    resource_monitor_interval: f64 = 5.0,
    /// CPU use that is put on record, in percent of the limit.
    cpu_threshold_percent: f64 = 90.0,
    /// Memory use that is put on record, in percent of the limit.
    memory_threshold_percent: f64 = 90.0,
    /// Not implemented yet: refused unless 3.
    max_sub_agent_depth: u32 = 3,
    /// Not implemented yet: refused unless 10.
    max_sub_agents: u32 = 10,
    /// Not implemented yet: refused unless false.
    enable_telemetry: bool = false,
    /// Not implemented yet: refused unless false.
    enable_session_replay: bool = false,
    /// Not implemented yet: refused unless empty.
    database_access: Map<String, Value> = Map::new(),
    /// Processes and threads; `null` asks for no limit.
    pids_limit: Option<u64> = Some(256),
    /// Writable space outside of `/tmp` and the workspace, in MiB; `null` asks for no limit.
    disk_mb: Option<u64> = Some(2048),
    /// Open files of each process; `null` asks for no limit.
    nofile_limit: Option<u64> = Some(1024),
    /// When the image is fetched: `always`, `missing` or `never`.
    image_pull_policy: ImagePullPolicy = ImagePullPolicy::Missing,
    /// Graphics processors, in the engine's own notation.
    gpus: Option<String> = None,
    /// Another isolation technology of the runtime, by name.
    runtime_class: Option<String> = None,
}

macro_rules! network_fields {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)*) => {
        /// What the agent may reach, and what may reach it.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        pub struct NetworkPolicy {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for NetworkPolicy {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl NetworkPolicy {
            const FIELDS: &[&str] = &[$(stringify!($field),)*];

            fn parse(fields: Map<String, Value>, findings: &mut Vec<Finding>) -> Self {
                let mut network = Self::default();
                for (key, value) in fields {
                    let path = format!("network.{key}");
                    match key.as_str() {
                        $(stringify!($field) => parse_field(&path, value, &mut network.$field, findings),)*
                        _ => findings.push(unknown_field(&key, "network.", Self::FIELDS)),
                    }
                }
                network
            }
        }
    };
}

network_fields! {
    /// Whether there is no network at all.
    disabled: bool = true,
    /// What may be reached: `host`, `host:port`, `*.domain:port`, `CIDR` or `CIDR:port`.
    allowed_endpoints: Vec<String> = Vec::new(),
    /// Not implemented yet: refused unless false.
    websockets: bool = false,
    /// Not implemented yet: refused unless false.
    grpc: bool = false,
    /// Ports that are published on the host's loopback interface.
    ingress_ports: Vec<u32> = Vec::new(),
}

impl<'de> Deserialize<'de> for NetworkPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut findings = Vec::new();
        let network = Self::parse(Map::deserialize(deserializer)?, &mut findings);
        match findings.first() {
            None => Ok(network),
            Some(_) => Err(serde::de::Error::custom(PolicyErrors(findings))),
        }
    }
}

fn parse_field<T: DeserializeOwned>(path: &str, value: Value, field: &mut T, findings: &mut Vec<Finding>) {
    // A secret or an environment value that was written by mistake must not end up in an error.
    let got = match path {
        "tmpfs_secrets" | "env_vars" => "a value in it".to_owned(),
        _ => short(&value),
    };
    match serde_json::from_value(value) {
        Ok(parsed) => *field = parsed,
        Err(error) => {
            let message = format!("{got} does not fit: {error}");
            findings.push(Finding::error(code_of(path), path, message));
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn unknown_field(key: &str, prefix: &str, known: &[&str]) -> Finding {
    let hint = match nearest(key, known.iter().copied()) {
        Some(name) => format!("; did you mean {prefix}{name}?"),
        None => String::new(),
    };
    Finding::error(
        "UNKNOWN_FIELD",
        format!("{prefix}{key}"),
        format!("there is no such field{hint}"),
    )
}

fn code_of(path: &str) -> &'static str {
    match path {
        "memory_mb" => "INVALID_MEMORY",
        "cpu_cores" => "INVALID_CPU",
        "timeout_seconds" => "INVALID_TIMEOUT",
        _ => "INVALID_VALUE",
    }
}

impl Policy {
    /// Validates all fields.
    ///
    /// # Errors
    ///
    /// All faults at once, each with its path and code.
    pub fn new(spec: PolicySpec) -> Result<Self, PolicyErrors> {
        let mut findings = Vec::new();
        check(&spec, &mut findings);
        if findings.is_empty() {
            Ok(Self(spec))
        } else {
            Err(PolicyErrors(findings))
        }
    }

    /// Reads a policy from a JSON value. An absent field has its default; an unknown one is an error.
    ///
    /// # Errors
    ///
    /// All faults at once, each with its path and code.
    pub fn from_value(value: Value) -> Result<Self, PolicyErrors> {
        let mut findings = Vec::new();
        let spec = match value {
            Value::Object(mut fields) => {
                let network = match fields.remove("network") {
                    None => None,
                    Some(Value::Object(network)) => Some(NetworkPolicy::parse(network, &mut findings)),
                    Some(other) => {
                        let message = format!("{} is not a map", short(&other));
                        findings.push(Finding::error("INVALID_VALUE", "network", message));
                        None
                    }
                };
                let mut spec = PolicySpec::parse(fields, &mut findings);
                if let Some(network) = network {
                    spec.network = network;
                }
                spec
            }
            Value::Null => PolicySpec::default(),
            other => {
                let message = format!("a policy is a map of fields, not {}", short(&other));
                return Err(PolicyErrors(vec![Finding::error("INVALID_VALUE", "", message)]));
            }
        };
        check(&spec, &mut findings);
        if findings.is_empty() {
            Ok(Self(spec))
        } else {
            Err(PolicyErrors(findings))
        }
    }

    /// Reads a policy from JSON text.
    ///
    /// # Errors
    ///
    /// As [`from_value`](Self::from_value), or the one fault of text that is not JSON.
    pub fn from_json(text: &str) -> Result<Self, PolicyErrors> {
        let value = serde_json::from_str(text).map_err(|error| {
            PolicyErrors(vec![Finding::error(
                "INVALID_VALUE",
                "",
                format!("this is not JSON: {error}"),
            )])
        })?;
        Self::from_value(value)
    }

    /// The fields, to change and validate again.
    pub fn into_spec(self) -> PolicySpec {
        self.0
    }

    /// `container_user`, parsed.
    pub fn user(&self) -> Option<User> {
        self.0.container_user.as_deref().and_then(parse_user)
    }

    /// The fields whose values differ, in their order.
    pub fn changed_fields(&self, original: &Self) -> Vec<String> {
        let (ours, theirs) = (self.fields(), original.fields());
        ours.iter()
            .filter(|(key, value)| theirs.get(*key) != Some(value))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The fields that allow more than in the original. A field that is neither a limit nor a permission, such as the
    /// image, counts as widened when it differs: a validator has no business there.
    pub fn widened_fields(&self, original: &Self) -> Vec<String> {
        self.changed_fields(original)
            .into_iter()
            .filter(|field| !narrows(field, &self.0, &original.0))
            .collect()
    }

    /// The fields that have no effect yet and are not at their defaults. Whoever runs an agent refuses them.
    pub fn not_implemented(&self) -> Vec<Finding> {
        const NOT_IMPLEMENTED: [&str; 16] = [
            "allow_sub_agents",
            "pip_packages",
            "pip_index_url",
            "pip_require_hashes",
            "durable",
            "log_output_path",
            "cache_duration_seconds",
            "requires_display",
            "proxy_url",
            "proxy_ca_cert",
            "max_sub_agent_depth",
            "max_sub_agents",
            "enable_telemetry",
            "enable_session_replay",
            "database_access",
            "cap_drop",
        ];
        let default = Self(PolicySpec::default());
        let mut findings: Vec<_> = self
            .changed_fields(&default)
            .into_iter()
            .filter(|field| NOT_IMPLEMENTED.contains(&field.as_str()))
            .map(|field| not_implemented(&field))
            .collect();
        if self.network.websockets {
            findings.push(not_implemented("network.websockets"));
        }
        if self.network.grpc {
            findings.push(not_implemented("network.grpc"));
        }
        findings
    }

    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(&self.0) {
            Ok(Value::Object(fields)) => fields,
            // Every field's type serialises to JSON, so there is no other case.
            _ => Map::new(),
        }
    }
}

fn not_implemented(field: &str) -> Finding {
    let message = "is not implemented yet and would have no effect; leave it at its default";
    Finding::error("NOT_IMPLEMENTED", field, message)
}

impl Deref for Policy {
    type Target = PolicySpec;

    fn deref(&self) -> &PolicySpec {
        &self.0
    }
}

impl Serialize for Policy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_value(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Whether a changed field allows no more than before.
fn narrows(field: &str, new: &PolicySpec, old: &PolicySpec) -> bool {
    fn lower<T: PartialOrd>(new: Option<T>, old: Option<T>) -> bool {
        match (new, old) {
            (Some(new), Some(old)) => new <= old,
            (Some(_), None) => true,
            (None, old) => old.is_none(),
        }
    }
    fn subset<T: PartialEq>(new: &[T], old: &[T]) -> bool {
        new.iter().all(|item| old.contains(item))
    }
    match field {
        "cpu_cores" => lower(new.cpu_cores, old.cpu_cores),
        "memory_mb" => lower(new.memory_mb, old.memory_mb),
        "pids_limit" => lower(new.pids_limit, old.pids_limit),
        "disk_mb" => lower(new.disk_mb, old.disk_mb),
        "nofile_limit" => lower(new.nofile_limit, old.nofile_limit),
        "tmpfs_size_mb" => new.tmpfs_size_mb <= old.tmpfs_size_mb,
        "timeout_seconds" => lower(new.timeout_seconds, old.timeout_seconds),
        "max_output_bytes" => lower(new.max_output_bytes, old.max_output_bytes),
        "retry_count" => new.retry_count <= old.retry_count,
        "network" => {
            let (new, old) = (&new.network, &old.network);
            (new.disabled || !old.disabled)
                && subset(&new.allowed_endpoints, &old.allowed_endpoints)
                && subset(&new.ingress_ports, &old.ingress_ports)
                && (old.websockets || !new.websockets)
                && (old.grpc || !new.grpc)
        }
        "readonly_mounts" => subset(&new.readonly_mounts, &old.readonly_mounts),
        "allowed_env_vars" => subset(&new.allowed_env_vars, &old.allowed_env_vars),
        "env_vars" => new
            .env_vars
            .iter()
            .all(|(name, value)| old.env_vars.get(name) == Some(value)),
        "blocked_env_vars" => subset(&old.blocked_env_vars, &new.blocked_env_vars),
        "sensitive_env_vars" => subset(&old.sensitive_env_vars, &new.sensitive_env_vars),
        "pip_packages" => subset(&new.pip_packages, &old.pip_packages),
        "pip_require_hashes" => new.pip_require_hashes,
        "tmpfs_secrets" => new
            .tmpfs_secrets
            .iter()
            .all(|(name, reference)| old.tmpfs_secrets.get(name) == Some(reference)),
        "cap_add" => subset(&new.cap_add, &old.cap_add),
        "read_only_rootfs" => new.read_only_rootfs,
        "allow_sub_agents" => !new.allow_sub_agents,
        "interactive" => !new.interactive,
        "gpus" => new.gpus.is_none(),
        "max_sub_agent_depth" => new.max_sub_agent_depth <= old.max_sub_agent_depth,
        "max_sub_agents" => new.max_sub_agents <= old.max_sub_agents,
        // A sandbox of its own kernel where there was none, or where the caller left the choice open.
        "runtime_class" => old.runtime_class.is_none(),
        _ => false,
    }
}

/// The capabilities of Linux, `capabilities(7)`, without their prefix.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number and the full name of a capability given as `NET_RAW`, `net_raw` or `CAP_NET_RAW`.
pub fn capability(name: &str) -> Option<(u8, String)> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = CAPABILITIES.iter().position(|known| *known == bare)?;
    Some((u8::try_from(number).ok()?, format!("CAP_{bare}")))
}

/// The full name of a capability by its number; `CAP_63` for one that has no name yet.
pub fn capability_name(number: u8) -> String {
    match CAPABILITIES.get(usize::from(number)) {
        Some(name) => format!("CAP_{name}"),
        None => format!("CAP_{number}"),
    }
}

fn parse_user(text: &str) -> Option<User> {
    let (uid, gid) = text.split_once(':')?;
    // 65534 is the overflow id (Documentation/admin-guide/sysctl/fs.rst); above 65535 nothing is mapped.
    let number = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|number| *number <= 65535 && *number != 65534)
    };
    Some(User {
        uid: number(uid)?,
        gid: number(gid)?,
    })
}

fn check(spec: &PolicySpec, findings: &mut Vec<Finding>) {
    let mut fault = |path: &str, message: String| {
        findings.push(Finding::error(code_of(path), path, message));
    };
    if let Some(cores) = spec.cpu_cores
        && !(cores.is_finite() && (0.01..=4096.0).contains(&cores))
    {
        fault(
            "cpu_cores",
            format!("{cores} is not a number of cores between 0.01 and 4096"),
        );
    }
    if let Some(memory) = spec.memory_mb
        && !(4..=1 << 24).contains(&memory)
    {
        fault("memory_mb", format!("{memory} is not between 4 and 16777216 MiB"));
    }
    if let Some(pids) = spec.pids_limit
        && !(1..=4_194_304).contains(&pids)
    {
        fault("pids_limit", format!("{pids} is not between 1 and 4194304"));
    }
    if let Some(disk) = spec.disk_mb
        && !(1..=1 << 24).contains(&disk)
    {
        fault("disk_mb", format!("{disk} is not between 1 and 16777216 MiB"));
    }
    if let Some(nofile) = spec.nofile_limit
        && !(16..=1_048_576).contains(&nofile)
    {
        fault("nofile_limit", format!("{nofile} is not between 16 and 1048576"));
    }
    if !(1..=1 << 20).contains(&spec.tmpfs_size_mb) {
        fault(
            "tmpfs_size_mb",
            format!("{} is not between 1 and 1048576 MiB", spec.tmpfs_size_mb),
        );
    }
    let seconds = [
        ("timeout_seconds", spec.timeout_seconds, false),
        ("retry_delay_seconds", Some(spec.retry_delay_seconds), true),
        ("cache_duration_seconds", Some(spec.cache_duration_seconds), true),
        ("resource_monitor_interval", Some(spec.resource_monitor_interval), false),
    ];
    for (path, value, zero_is_fine) in seconds {
        if let Some(value) = value
            && !(value.is_finite() && value <= 31_536_000.0 && (value > 0.0 || zero_is_fine && value == 0.0))
        {
            fault(path, format!("{value} is not a number of seconds up to a year"));
        }
    }
    for (path, value) in [
        ("cpu_threshold_percent", spec.cpu_threshold_percent),
        ("memory_threshold_percent", spec.memory_threshold_percent),
    ] {
        if !(value > 0.0 && value <= 100.0) {
            fault(path, format!("{value} is not a percentage above 0 and up to 100"));
        }
    }
    check_paths(spec, &mut fault);
    check_names(spec, &mut fault);
    check_network(&spec.network, &mut fault);
}

fn check_paths(spec: &PolicySpec, fault: &mut impl FnMut(&str, String)) {
    let output = spec.output_path_in_container.as_str();
    let reserved = ["/proc", "/sys", "/dev", "/run", "/tmp", "/workspace"];
    let inside = |folder: &str| output == folder || output.starts_with(&format!("{folder}/"));
    if !is_clean_absolute(output) || output == "/" {
        let message = format!("{output:?} is not an absolute path below / without '.', '..' and empty parts");
        fault("output_path_in_container", message);
    } else if let Some(folder) = reserved.into_iter().find(|folder| inside(folder)) {
        fault(
            "output_path_in_container",
            format!("{output:?} is inside {folder}, which has another use"),
        );
    }
    for (i, mount) in spec.readonly_mounts.iter().enumerate() {
        if let Err(message) = split_mount(mount) {
            fault(&format!("readonly_mounts[{i}]"), message);
        }
    }
    if let Some(profile) = &spec.seccomp_profile
        && (profile.is_empty() || profile.contains('\0'))
    {
        fault("seccomp_profile", "is not a path; name a JSON file".to_owned());
    }
}

/// Splits `/path` or `/path:/path/inside` of `readonly_mounts` into source and destination.
///
/// # Errors
///
/// What is wrong with it, as text.
pub fn split_mount(text: &str) -> Result<(&str, &str), String> {
    let (source, destination) = match text.rsplit_once(':') {
        Some((source, destination)) if destination.starts_with('/') => (source, destination),
        _ => (text, text),
    };
    if !source.starts_with('/') || source.contains('\0') {
        return Err(format!(
            "{text:?} is not an absolute host path; write /path or /path:/path/inside"
        ));
    }
    if !is_clean_absolute(destination) || destination == "/" {
        return Err(format!("{destination:?} is not a clean absolute path below /"));
    }
    Ok((source, destination))
}

fn check_names(spec: &PolicySpec, fault: &mut impl FnMut(&str, String)) {
    let image = spec.base_image.as_str();
    if image.is_empty() || image.starts_with('-') || image.contains(char::is_control) {
        fault(
            "base_image",
            format!("{image:?} is not an image; it is empty, starts with '-' or holds a control character"),
        );
    }
    if let Some(entrypoint) = &spec.entrypoint
        && (entrypoint.is_empty() || entrypoint[0].is_empty() || entrypoint.iter().any(|word| word.contains('\0')))
    {
        fault(
            "entrypoint",
            "is empty or holds NUL; name a program, or leave it null".to_owned(),
        );
    }
    let lists = [
        ("allowed_env_vars", &spec.allowed_env_vars),
        ("blocked_env_vars", &spec.blocked_env_vars),
        ("sensitive_env_vars", &spec.sensitive_env_vars),
    ];
    for (path, names) in lists {
        for (i, name) in names.iter().enumerate() {
            if !is_env_name(name) {
                fault(
                    &format!("{path}[{i}]"),
                    format!("{name:?} is not a variable's name: it is empty or holds '=' or NUL"),
                );
            }
        }
    }
    for (name, value) in &spec.env_vars {
        let path = format!("env_vars.{}", name.escape_debug());
        if !is_env_name(name) {
            fault(
                &path,
                format!("{name:?} is not a variable's name: it is empty or holds '=' or NUL"),
            );
        }
        if value.contains('\0') {
            fault(&path, "its value holds NUL".to_owned());
        }
    }
    for name in spec.tmpfs_secrets.keys() {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) || name.len() > 255 {
            fault(
                &format!("tmpfs_secrets.{}", name.escape_debug()),
                format!("{name:?} is not a file name"),
            );
        }
    }
    for (path, names) in [("cap_drop", &spec.cap_drop), ("cap_add", &spec.cap_add)] {
        for (i, name) in names.iter().enumerate() {
            let all = path == "cap_drop" && name.eq_ignore_ascii_case("ALL");
            if !all && capability(name).is_none() {
                fault(
                    &format!("{path}[{i}]"),
                    format!("{name:?} is not a capability of capabilities(7)"),
                );
            }
        }
    }
    if let Some(user) = &spec.container_user
        && parse_user(user).is_none()
    {
        fault(
            "container_user",
            format!("{user:?} is not uid:gid with two numbers up to 65535, 65534 excepted"),
        );
    }
    for (path, value) in [("gpus", &spec.gpus), ("runtime_class", &spec.runtime_class)] {
        if let Some(value) = value
            && (value.is_empty() || value.starts_with('-') || value.contains(char::is_control))
        {
            fault(
                path,
                format!("{value:?} is empty, starts with '-' or holds a control character"),
            );
        }
    }
    if let Some(schema) = &spec.structured_output
        && !(schema.is_object() || schema.is_boolean())
    {
        fault(
            "structured_output",
            "is not a JSON Schema: a schema is an object or a boolean".to_owned(),
        );
    }
}

fn is_env_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn check_network(network: &NetworkPolicy, fault: &mut impl FnMut(&str, String)) {
    for (i, endpoint) in network.allowed_endpoints.iter().enumerate() {
        if let Err(message) = check_endpoint(endpoint) {
            fault(&format!("network.allowed_endpoints[{i}]"), message);
        }
    }
    for (i, port) in network.ingress_ports.iter().enumerate() {
        if !(1..=65535).contains(port) {
            fault(
                &format!("network.ingress_ports[{i}]"),
                format!("{port} is not a port between 1 and 65535"),
            );
        }
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let bad = |why: &str| {
        Err(format!(
            "{endpoint:?} {why}; write host, host:port, *.domain:port, CIDR or CIDR:port"
        ))
    };
    // [v6]:port, [v6]/len:port or a bare v6 address, which has more than one colon.
    let (host, port) = if let Some(rest) = endpoint.strip_prefix('[') {
        match rest.split_once(']') {
            Some((address, rest)) => match rest.rsplit_once(':') {
                Some((prefix, port)) => (format!("{address}{prefix}"), Some(port)),
                None => (format!("{address}{rest}"), None),
            },
            None => return bad("has a bracket that is not closed"),
        }
    } else if endpoint.matches(':').count() > 1 {
        (endpoint.to_owned(), None)
    } else {
        match endpoint.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (endpoint.to_owned(), None),
        }
    };
    if let Some(port) = port
        && !port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        return bad("has a port that is not between 1 and 65535");
    }
    let (name, prefix) = match host.split_once('/') {
        Some((name, prefix)) => (name, Some(prefix)),
        None => (host.as_str(), None),
    };
    if let Ok(address) = name.parse::<std::net::IpAddr>() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        if let Some(prefix) = prefix
            && !prefix.parse::<u8>().is_ok_and(|length| length <= most)
        {
            return bad("has a prefix length that is out of range");
        }
        return Ok(());
    }
    if prefix.is_some() {
        return bad("is a network whose address does not parse");
    }
    let domain = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let digits_only = domain.chars().all(|c| c.is_ascii_digit() || c == '.');
    if domain.len() > 253 || digits_only || !domain.split('.').all(label) {
        return bad("is not a host name, an address or a network");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_old_validator_let_through_is_refused() {
        let cases = [
            (json!({"cpu_cores": 0}), "cpu_cores"),
            (json!({"cpu_cores": "NaN"}), "cpu_cores"),
            (json!({"cpu_cores": -1.5}), "cpu_cores"),
            (json!({"memory_mb": 0}), "memory_mb"),
            (json!({"memory_mb": -5}), "memory_mb"),
            (json!({"retry_count": -1}), "retry_count"),
            (json!({"tmpfs_size_mb": 0}), "tmpfs_size_mb"),
            (json!({"tmpfs_size_mb": -1}), "tmpfs_size_mb"),
            (json!({"max_output_bytes": -1}), "max_output_bytes"),
            (
                json!({"output_path_in_container": "output"}),
                "output_path_in_container",
            ),
            (json!({"output_path_in_container": "/"}), "output_path_in_container"),
            (
                json!({"output_path_in_container": "/proc/x"}),
                "output_path_in_container",
            ),
            (
                json!({"output_path_in_container": "/a/../b"}),
                "output_path_in_container",
            ),
            (json!({"readonly_mounts": ["data"]}), "readonly_mounts[0]"),
            (json!({"entrypoint": []}), "entrypoint"),
            (json!({"base_image": ""}), "base_image"),
            (json!({"base_image": "--privileged"}), "base_image"),
            (json!({"env_vars": {"A=B": "x"}}), "env_vars.A=B"),
            (json!({"env_vars": {"A": "x\u{0}"}}), "env_vars.A"),
            (
                json!({"network": {"ingress_ports": [70000]}}),
                "network.ingress_ports[0]",
            ),
            (json!({"cap_add": ["CAP_FLY"]}), "cap_add[0]"),
            (
                json!({"network": {"allowed_endpoints": ["a b"]}}),
                "network.allowed_endpoints[0]",
            ),
            (
                json!({"network": {"allowed_endpoints": ["x:99999"]}}),
                "network.allowed_endpoints[0]",
            ),
            (
                json!({"network": {"allowed_endpoints": ["10.0.0.0/33"]}}),
                "network.allowed_endpoints[0]",
            ),
            (
                json!({"network": {"allowed_endpoints": ["999.1.1.1"]}}),
                "network.allowed_endpoints[0]",
            ),
            (json!({"network": {"allow": []}}), "network.allow"),
            (json!({"network": "on"}), "network"),
            (json!({"container_user": "root"}), "container_user"),
            (json!({"timeout_seconds": 0}), "timeout_seconds"),
            (json!({"tmpfs_secrets": {"token": "hunter2"}}), "tmpfs_secrets"),
            (json!({"structured_output": 3}), "structured_output"),
            (json!({"memroy_mb": 5}), "memroy_mb"),
        ];
        for (value, path) in cases {
            let errors = Policy::from_value(value.clone()).expect_err(&value.to_string());
            assert_eq!(errors.findings()[0].path, path, "{value}: {errors}");
            assert!(
                !errors.to_string().contains("hunter2") || path != "tmpfs_secrets",
                "{errors}"
            );
        }
        let nan = PolicySpec {
            cpu_cores: Some(f64::NAN),
            ..PolicySpec::default()
        };
        assert_eq!(Policy::new(nan).unwrap_err().findings()[0].code, "INVALID_CPU");
    }

    #[test]
    fn all_errors_come_at_once_and_slips_are_named() {
        let errors = Policy::from_value(json!({
            "memroy_mb": 1, "cpu_cores": 0, "network": {"disabld": true, "ingress_ports": [0]}, "cap_add": ["X"]
        }))
        .unwrap_err();
        assert_eq!(errors.findings().len(), 5, "{errors}");
        let text = errors.to_string();
        assert!(
            text.contains("did you mean memory_mb?") && text.contains("did you mean network.disabled?"),
            "{text}"
        );
    }

    #[test]
    fn good_endpoints_pass() {
        for good in [
            "example.com",
            "example.com:443",
            "*.example.com:443",
            "10.0.0.0/8",
            "10.0.0.0/8:5432",
            "127.0.0.1:80",
            "[::1]:80",
            "fd00::/8",
            "[fd00::/8]:443",
            "localhost",
        ] {
            assert_eq!(check_endpoint(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn defaults_are_well_formed_and_round_trip() {
        let policy = Policy::default();
        let json = serde_json::to_value(&policy).unwrap();
        assert_eq!(Policy::from_value(json).unwrap(), policy);
        assert!(Policy::new(PolicySpec::default()).is_ok());
        assert!(policy.not_implemented().is_empty());
    }

    #[test]
    fn narrowing_passes_and_widening_is_found() {
        let old = Policy::default();
        let narrow = PolicySpec {
            memory_mb: Some(256),
            timeout_seconds: Some(5.0),
            ..PolicySpec::default()
        };
        assert!(Policy::new(narrow).unwrap().widened_fields(&old).is_empty());
        let wide = PolicySpec {
            memory_mb: None,
            read_only_rootfs: false,
            base_image: "other".to_owned(),
            cap_add: vec!["NET_RAW".to_owned()],
            ..PolicySpec::default()
        };
        let widened = Policy::new(wide).unwrap().widened_fields(&old);
        assert_eq!(widened, ["base_image", "cap_add", "memory_mb", "read_only_rootfs"]);
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let policy = Policy::from_value(json!({"pip_packages": ["x"], "network": {"grpc": true}})).unwrap();
        let paths: Vec<_> = policy
            .not_implemented()
            .into_iter()
            .map(|finding| finding.path)
            .collect();
        assert_eq!(paths, ["pip_packages", "network.grpc"]);
    }

    #[test]
    fn mounts_split_at_the_last_colon() {
        assert_eq!(split_mount("/a"), Ok(("/a", "/a")));
        assert_eq!(split_mount("/a:/b"), Ok(("/a", "/b")));
        assert_eq!(split_mount("/a:b:/c"), Ok(("/a:b", "/c")));
        assert!(split_mount("a:/b").is_err());
    }
}
