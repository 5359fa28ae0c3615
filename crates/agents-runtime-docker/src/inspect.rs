//! What the engine says of containers and images, read tolerantly: engines of different ages leave fields out or say null.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::null_as_default;

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, Deserialize)]
            #[serde(default, rename_all = "PascalCase")]
            pub(crate) struct $name {
                $($(#[$attr])* #[serde(deserialize_with = "null_as_default")] pub(crate) $field: $type,)*
            }
        )*
    };
}

answers! {
    /// `GET /containers/{id}/json`.
    Inspected {
        id: String,
        name: String,
        created: String,
        state: State,
        host_config: HostConfig,
        config: Config,
        mounts: Vec<MountPoint>,
        network_settings: NetworkSettings,
    }
    /// The state of a container's first process.
    State {
        status: String,
        running: bool,
        #[serde(rename = "OOMKilled")]
        oom_killed: bool,
        pid: u32,
        exit_code: i64,
        error: String,
    }
    /// What was asked for, with the engine's defaults.
    HostConfig {
        memory: u64,
        memory_swap: i64,
        nano_cpus: u64,
        cpu_period: u64,
        cpu_quota: i64,
        pids_limit: i64,
        readonly_rootfs: bool,
        privileged: bool,
        network_mode: String,
        pid_mode: String,
        ipc_mode: String,
        #[serde(rename = "UTSMode")]
        uts_mode: String,
        cap_add: Vec<String>,
        cap_drop: Vec<String>,
        security_opt: Vec<String>,
        runtime: String,
        tmpfs: BTreeMap<String, String>,
        devices: Vec<serde_json::Value>,
    }
    Config {
        user: String,
        image: String,
        labels: BTreeMap<String, String>,
        env: Vec<String>,
        working_dir: String,
        volumes: BTreeMap<String, serde_json::Value>,
    }
    MountPoint {
        #[serde(rename = "Type")]
        kind: String,
        name: String,
        source: String,
        destination: String,
        #[serde(rename = "RW")]
        read_write: bool,
    }
    NetworkSettings {
        networks: BTreeMap<String, serde_json::Value>,
    }
    /// An entry of `GET /containers/json`.
    Listed {
        id: String,
        names: Vec<String>,
        image: String,
        labels: BTreeMap<String, String>,
        state: String,
        created: i64,
    }
    /// `GET /images/{name}/json`.
    Image {
        id: String,
        repo_digests: Vec<String>,
        config: Config,
        os: String,
        architecture: String,
    }
}

impl Inspected {
    /// The name, without the slash that engines put before it.
    pub(crate) fn plain_name(&self) -> &str {
        self.name.trim_start_matches('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_absent_and_unknown_fields_are_no_fault() {
        let text = r#"{"Id":"x","Name":"/n","State":{"OOMKilled":true,"Health":null},"HostConfig":{"PidsLimit":null,
            "CapAdd":null,"NanoCpus":500000000,"Novel":{}},"Config":{"Labels":null,"Entrypoint":["a"],"StopSignal":3},"Mounts":null}"#;
        let inspected: Inspected = serde_json::from_str(text).unwrap();
        assert!(inspected.state.oom_killed);
        assert_eq!(inspected.plain_name(), "n");
        assert_eq!(
            (inspected.host_config.pids_limit, inspected.host_config.nano_cpus),
            (0, 500_000_000)
        );
    }
}
