//! The configuration.

use std::{fmt, path::PathBuf, time::Duration};

use agents_core::{Error, Result, SecretRef};
use agents_journal::ChainKey;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::SpoolOptions;

/// The configuration of a spool: the key `spool` of a sink's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SpoolConfig {
    /// The folder, which belongs to this sink alone. Default: one for each sink, below `audit/spool` in the state folder.
    /// Example: `/var/spool/agents`.
    pub folder: Option<PathBuf>,
    /// The most that events of one process may take on disk, in MiB; what does not fit is refused. Default: `256`.
    pub max_mb: u64,
    /// New events are refused while the oldest that waits is older than this. Default: none. Example: `86400`.
    pub max_age_seconds: Option<u64>,
    /// The secret with which the hash chain is sealed, at least 16 bytes. Default: none, a plain chain.
    /// Example: `file:/etc/agents/audit.key`.
    pub chain_key: Option<SecretRef>,
    /// How long a flush waits for delivery. Default: `30`.
    pub flush_seconds: u64,
    /// How long the end of a process waits for delivery, and a query for what was emitted before. Default: `5`.
    pub shutdown_seconds: u64,
    /// The longest pause between two attempts, unless the sink asks for a longer one. Default: `30`.
    pub max_delay_seconds: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            folder: None,
            max_mb: 256,
            max_age_seconds: None,
            chain_key: None,
            flush_seconds: 30,
            shutdown_seconds: 5,
            max_delay_seconds: 30,
        }
    }
}

impl SpoolConfig {
    /// Checks the values without any I/O.
    pub(super) fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::invalid(text));
        if self.folder.as_ref().is_some_and(|folder| !folder.is_absolute()) {
            return invalid("spool.folder must be an absolute path".to_owned());
        }
        if !(1..=1 << 20).contains(&self.max_mb) {
            return invalid(format!("spool.max_mb is {}; write 1 to 1048576", self.max_mb));
        }
        let seconds = [
            ("max_age_seconds", self.max_age_seconds.unwrap_or(1), 1),
            ("flush_seconds", self.flush_seconds, 0),
            ("shutdown_seconds", self.shutdown_seconds, 0),
            ("max_delay_seconds", self.max_delay_seconds, 1),
        ];
        for (key, value, least) in seconds {
            if value < least || value > 366 * 86_400 {
                return invalid(format!("spool.{key} is {value}; write {least} to {}", 366 * 86_400));
            }
        }
        Ok(())
    }

    /// The options, for a folder and a key that were found.
    pub(super) fn options(&self, folder: PathBuf, key: ChainKey) -> SpoolOptions {
        let seconds = Duration::from_secs;
        SpoolOptions::new(folder)
            .with_max_bytes(self.max_mb << 20)
            .with_max_age(self.max_age_seconds.map(seconds))
            .with_key(key)
            .with_flush_limit(seconds(self.flush_seconds))
            .with_shutdown_limit(seconds(self.shutdown_seconds))
            .with_max_delay(seconds(self.max_delay_seconds))
    }
}

/// What the key `spool` says: `true`, `false`, or how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolSetting {
    /// Each event is sent before it is acknowledged.
    Off,
    /// A spool stands in front of the sink.
    On(SpoolConfig),
}

impl Serialize for SpoolSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On(config) => config.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SpoolSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SettingVisitor)
    }
}

struct SettingVisitor;

impl<'de> Visitor<'de> for SettingVisitor {
    type Value = SpoolSetting;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false or a map")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<SpoolSetting, E> {
        Ok(match on {
            true => SpoolSetting::On(SpoolConfig::default()),
            false => SpoolSetting::Off,
        })
    }

    // A variable of the environment has only text.
    fn visit_str<E: de::Error>(self, text: &str) -> Result<SpoolSetting, E> {
        match text.trim().parse() {
            Ok(on) => self.visit_bool(on),
            Err(_) => Err(E::invalid_type(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SpoolSetting, A::Error> {
        SpoolConfig::deserialize(MapAccessDeserializer::new(map)).map(SpoolSetting::On)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_read_and_judged() {
        let read = |value: Value| serde_json::from_value::<SpoolSetting>(value);
        assert_eq!(read(json!(false)).unwrap(), SpoolSetting::Off);
        assert_eq!(read(json!("false")).unwrap(), SpoolSetting::Off);
        assert_eq!(read(json!(true)).unwrap(), SpoolSetting::On(SpoolConfig::default()));
        let all = json!({
            "folder": "/s", "max_mb": 2, "max_age_seconds": 3, "chain_key": "env:K", "flush_seconds": 4,
            "shutdown_seconds": 5, "max_delay_seconds": 6,
        });
        let setting = read(all.clone()).unwrap();
        assert_eq!(json!(setting), all);
        let SpoolSetting::On(config) = setting else {
            unreachable!()
        };
        config.check().unwrap();
        let options = config.options("/f".into(), ChainKey::none());
        assert_eq!(
            (options.max_bytes, options.max_age),
            (2 << 20, Some(Duration::from_secs(3)))
        );
        for bad in [
            json!("maybe"),
            json!(7),
            json!({"max": 1}),
            json!({"chain_key": "hunter2"}),
        ] {
            let error = read(bad).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        for (bad, word) in [
            (json!({"folder": "s"}), "spool.folder"),
            (json!({"max_mb": 0}), "spool.max_mb"),
            (json!({"max_age_seconds": 0}), "spool.max_age_seconds"),
            (json!({"max_delay_seconds": 0}), "spool.max_delay_seconds"),
            (json!({"flush_seconds": u64::MAX}), "spool.flush_seconds"),
        ] {
            let SpoolSetting::On(config) = read(bad).unwrap() else {
                unreachable!()
            };
            let error = config.check().unwrap_err();
            assert!(error.message().contains(word), "{error}");
        }
    }
}
