//! The configuration.

use std::time::Duration;

use agents_core::{Error, Result, SecretRef};
use serde::{Deserialize, Serialize};

/// The configuration of a [`CloudWatchAudit`](crate::CloudWatchAudit).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CloudWatchAuditConfig {
    /// The log group. Default: `/isolated-agents/audit`.
    pub log_group: String,
    /// What the names of log streams begin with; the session follows. Default: `session-`.
    pub stream_prefix: String,
    /// Whether a missing log group is created. Default: `true`.
    pub create_log_group: bool,
    /// After how many days a log group that is created here forgets events. Default: never. Example: `365`.
    pub retention_days: Option<i32>,
    /// The region. Default: that of the environment or the profile, and `us-east-1` for an `endpoint`.
    /// Example: `eu-central-1`.
    pub region: Option<String>,
    /// The profile of `~/.aws/config`. Default: `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// The access key's id, as a reference. Default: where every program of AWS looks. Example: `env:AUDIT_KEY_ID`.
    pub access_key_id: Option<SecretRef>,
    /// The secret access key, as a reference; goes with `access_key_id`.
    pub secret_access_key: Option<SecretRef>,
    /// The session token, as a reference, for temporary credentials. Default: none.
    pub session_token: Option<SecretRef>,
    /// Another address of the service, such as that of a VPC endpoint. Default: the region's.
    /// Example: `https://vpce-1.logs.eu-central-1.vpce.amazonaws.com`.
    pub endpoint: Option<String>,
    /// How long an operation may take, with everything that is tried again. Default: `30`.
    pub timeout_seconds: u64,
}

/// The retention periods that the service knows.
const RETENTION: [i32; 22] = [
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
];

impl Default for CloudWatchAuditConfig {
    fn default() -> Self {
        Self {
            log_group: "/isolated-agents/audit".to_owned(),
            stream_prefix: "session-".to_owned(),
            create_log_group: true,
            retention_days: None,
            region: None,
            profile: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            endpoint: None,
            timeout_seconds: 30,
        }
    }
}

impl CloudWatchAuditConfig {
    /// A log group.
    pub fn new(log_group: impl Into<String>) -> Self {
        Self {
            log_group: log_group.into(),
            ..Self::default()
        }
    }

    /// Sets what the names of log streams begin with.
    #[must_use]
    pub fn with_stream_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.stream_prefix = prefix.into();
        self
    }

    /// Sets whether a missing log group is created.
    #[must_use]
    pub fn with_create_log_group(mut self, create: bool) -> Self {
        self.create_log_group = create;
        self
    }

    /// Sets after how many days a log group that is created here forgets events.
    #[must_use]
    pub fn with_retention_days(mut self, days: Option<i32>) -> Self {
        self.retention_days = days;
        self
    }

    /// Sets the region.
    #[must_use]
    pub fn with_region(mut self, region: Option<String>) -> Self {
        self.region = region;
        self
    }

    /// Sets another address of the service.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: Option<String>) -> Self {
        self.endpoint = endpoint;
        self
    }

    /// Sets how long an operation may take.
    #[must_use]
    pub fn with_timeout_seconds(mut self, seconds: u64) -> Self {
        self.timeout_seconds = seconds;
        self
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// Checks the values without any I/O.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::invalid(text));
        let group = &self.log_group;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-/.#".contains(&byte);
        if group.is_empty() || group.len() > 512 || !group.bytes().all(plain) {
            return invalid(format!(
                "log_group {group:?} must have 1 to 512 of letters, digits, '_', '-', '/', '.' and '#'"
            ));
        }
        // A stream's name has at most 512 characters, and a session at most 64.
        let prefix = &self.stream_prefix;
        if prefix.len() > 400 || prefix.contains([':', '*']) || prefix.contains(char::is_control) {
            return invalid(format!(
                "stream_prefix {prefix:?} must have at most 400 characters, and no ':', '*' or control character"
            ));
        }
        if let Some(days) = self.retention_days
            && !RETENTION.contains(&days)
        {
            let known: Vec<_> = RETENTION.iter().map(i32::to_string).collect();
            return invalid(format!("retention_days is {days}; write one of {}", known.join(", ")));
        }
        if let Some(region) = &self.region
            && (region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
        {
            return invalid(format!("region {region:?} is none; write one such as eu-central-1"));
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return invalid("access_key_id and secret_access_key go together; set both or none".to_owned());
        }
        if self.session_token.is_some() && self.access_key_id.is_none() {
            return invalid("session_token needs access_key_id and secret_access_key".to_owned());
        }
        if self.profile.is_some() && self.access_key_id.is_some() {
            return invalid("profile and access_key_id exclude each other; keep one of them".to_owned());
        }
        if let Some(endpoint) = &self.endpoint {
            let rest = endpoint
                .strip_prefix("https://")
                .or_else(|| endpoint.strip_prefix("http://"));
            match rest {
                Some(rest) if !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']) => {}
                // Not quoted: it may hold a password.
                _ => {
                    return invalid(
                        "endpoint must be http:// or https:// with a host, and no user or query".to_owned(),
                    );
                }
            }
        }
        if !(1..=3600).contains(&self.timeout_seconds) {
            return invalid(format!("timeout_seconds is {}; write 1 to 3600", self.timeout_seconds));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use agents_core::ErrorKind;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_key_is_read_and_judged() {
        let all: CloudWatchAuditConfig = serde_json::from_value(json!({
            "log_group": "/a", "stream_prefix": "s-", "create_log_group": false, "retention_days": 365,
            "region": "eu-central-1", "endpoint": "http://127.0.0.1:1", "timeout_seconds": 8,
        }))
        .unwrap();
        let built = CloudWatchAuditConfig::new("/a")
            .with_stream_prefix("s-")
            .with_create_log_group(false)
            .with_retention_days(Some(365))
            .with_region(Some("eu-central-1".to_owned()))
            .with_endpoint(Some("http://127.0.0.1:1".to_owned()))
            .with_timeout_seconds(8);
        assert_eq!(all, built);
        all.check().unwrap();
        CloudWatchAuditConfig::default().check().unwrap();
        for value in [json!({"group": "x"}), json!({"secret_access_key": "hunter2"})] {
            let error = serde_json::from_value::<CloudWatchAuditConfig>(value).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let bad: [(Value, &str); 10] = [
            (json!({"log_group": ""}), "log_group \"\" must have"),
            (json!({"log_group": "a b"}), "log_group \"a b\""),
            (json!({"stream_prefix": "a:b"}), "stream_prefix \"a:b\""),
            (json!({"retention_days": 2}), "retention_days is 2"),
            (json!({"region": "eu central"}), "region \"eu central\""),
            (json!({"access_key_id": "env:A"}), "go together"),
            (json!({"session_token": "env:A"}), "session_token needs"),
            (
                json!({"profile": "p", "access_key_id": "env:A", "secret_access_key": "env:S"}),
                "exclude each other",
            ),
            (json!({"endpoint": "https://u:hunter2@h"}), "endpoint must be"),
            (json!({"timeout_seconds": 0}), "timeout_seconds is 0"),
        ];
        for (value, words) in bad {
            let config: CloudWatchAuditConfig = serde_json::from_value(value.clone()).unwrap();
            let error = config.check().expect_err(&value.to_string());
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{value}");
            assert!(error.message().contains(words), "{value}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_example_is_read() {
        let file: Value = serde_saphyr::from_str(include_str!("../example.yaml")).unwrap();
        let logger = &file["adapters"]["audit_logger"];
        assert_eq!(logger["type"], "cloudwatch");
        let config: CloudWatchAuditConfig = serde_json::from_value(logger["config"].clone()).unwrap();
        config.check().unwrap();
        assert_eq!(
            (config.log_group.as_str(), config.retention_days),
            ("/isolated-agents/audit", Some(365))
        );
    }
}
