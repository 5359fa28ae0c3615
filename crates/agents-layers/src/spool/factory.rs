//! How a sink with a spool is made from a configuration.

use std::{fmt, marker::PhantomData, path::PathBuf, sync::Arc};

use agents_core::{AuditLogger, BuildContext, Factory, Result};
use agents_journal::ChainKey;
use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error as _};
use serde_json::{Value, json};

use super::{Spool, SpoolConfig, SpoolSetting, intercept::with_key};

/// The key beside those of the sink.
const KEY: &str = "spool";

/// Whether a spool stands in front of a sink whose configuration does not say.
pub trait SpoolByDefault<C>: Send + Sync + 'static {
    /// Whether it does, for this configuration.
    fn spools(config: &C) -> bool;
}

/// A spool stands in front, as is right for what is reached over a network.
#[derive(Clone, Copy, Debug)]
pub struct Always;

/// No spool stands in front unless it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Never;

impl<C> SpoolByDefault<C> for Always {
    fn spools(_: &C) -> bool {
        true
    }
}

impl<C> SpoolByDefault<C> for Never {
    fn spools(_: &C) -> bool {
        false
    }
}

/// The factory of a sink, whose configuration takes the key `spool` besides its own: `true`, `false`, or a
/// [`SpoolConfig`].
///
/// `registry.register_audit::<Spooled<AcmeFactory>>()` is all that a sink needs.
pub struct Spooled<F, R = Always>(PhantomData<fn() -> (F, R)>);

impl<F: Factory, R> fmt::Debug for Spooled<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spooled({})", F::TYPE)
    }
}

/// The configuration of a sink, and of the spool in front of it.
pub struct SpooledConfig<C, R> {
    /// That of the sink.
    pub sink: C,
    /// What the key `spool` says, if it is there.
    pub spool: Option<SpoolSetting>,
    default: PhantomData<fn() -> R>,
}

impl<C: fmt::Debug, R> fmt::Debug for SpooledConfig<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpooledConfig")
            .field("sink", &self.sink)
            .field("spool", &self.spool)
            .finish()
    }
}

impl<C, R: SpoolByDefault<C>> SpooledConfig<C, R> {
    /// What holds, whether it was said or not.
    pub fn setting(&self) -> SpoolSetting {
        match &self.spool {
            Some(setting) => setting.clone(),
            None if R::spools(&self.sink) => SpoolSetting::On(SpoolConfig::default()),
            None => SpoolSetting::Off,
        }
    }
}

impl<C: Serialize, R: SpoolByDefault<C>> Serialize for SpooledConfig<C, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut keys = serde_json::to_value(&self.sink).map_err(S::Error::custom)?;
        if let Value::Object(keys) = &mut keys {
            keys.insert(KEY.to_owned(), json!(self.setting()));
        }
        keys.serialize(serializer)
    }
}

impl<'de, C: Deserialize<'de>, R> Deserialize<'de> for SpooledConfig<C, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (sink, spool) = with_key(KEY, deserializer)?;
        Ok(Self {
            sink,
            spool,
            default: PhantomData,
        })
    }
}

#[async_trait]
impl<F: Factory<Adapter = dyn AuditLogger>, R: SpoolByDefault<F::Config>> Factory for Spooled<F, R> {
    const TYPE: &'static str = F::TYPE;

    type Config = SpooledConfig<F::Config, R>;
    type Adapter = dyn AuditLogger;

    fn validate(config: &Self::Config) -> Result<()> {
        F::validate(&config.sink)?;
        match config.setting() {
            SpoolSetting::On(spool) => spool.check(),
            SpoolSetting::Off => Ok(()),
        }
    }

    async fn build(config: Self::Config, context: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
        let setting = config.setting();
        let sink = F::build(config.sink, context).await?;
        let SpoolSetting::On(spool) = setting else {
            return Ok(sink);
        };
        spool.check()?;
        let key = match &spool.chain_key {
            Some(reference) => {
                let secret = context.secrets.resolve(reference).await?;
                ChainKey::hmac(secret.expose()).map_err(|error| error.with_context("spool.chain_key", reference))?
            }
            None => ChainKey::none(),
        };
        let folder = spool.folder.clone();
        let folder = folder.unwrap_or_else(|| context.state_dir.join(folder_of(F::TYPE, &sink.location())));
        Ok(Arc::new(Spool::new(sink, spool.options(folder, key))?))
    }
}

/// Where the spool of a sink is, in the state folder. What changes how it is reached and not where it is, such as a
/// time-out, must not leave events behind.
fn folder_of(sink_type: &str, location: &str) -> PathBuf {
    let digest = ring::digest::digest(&ring::digest::SHA256, location.as_bytes());
    let short: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("audit/spool/{sink_type}-{short}"))
}

#[cfg(test)]
mod tests {
    use agents_core::{Error, SecretBytes, SecretRef, SecretResolver};
    use agents_testkit::fakes::MemoryAudit;

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct AcmeConfig {
        url: String,
    }

    struct AcmeFactory;

    #[async_trait]
    impl Factory for AcmeFactory {
        const TYPE: &'static str = "acme";
        type Config = AcmeConfig;
        type Adapter = dyn AuditLogger;

        fn validate(config: &AcmeConfig) -> Result<()> {
            match config.url.is_empty() {
                true => Err(Error::invalid("url is empty")),
                false => Ok(()),
            }
        }

        async fn build(_: AcmeConfig, _: &BuildContext) -> Result<Arc<dyn AuditLogger>> {
            Ok(Arc::new(MemoryAudit::new()))
        }
    }

    #[derive(Debug)]
    struct Secrets;

    #[async_trait]
    impl SecretResolver for Secrets {
        async fn resolve(&self, _: &SecretRef) -> Result<SecretBytes> {
            Ok(SecretBytes::new(b"0123456789abcdef".to_vec()))
        }
    }

    type Config<R> = SpooledConfig<AcmeConfig, R>;

    fn read<R>(value: Value) -> Config<R> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_default_is_the_sinks_and_the_key_wins() {
        let unsaid = json!({"url": "u"});
        assert!(matches!(read::<Always>(unsaid.clone()).setting(), SpoolSetting::On(_)));
        assert_eq!(read::<Never>(unsaid.clone()).setting(), SpoolSetting::Off);
        assert_eq!(read::<Always>(json!({"spool": false})).setting(), SpoolSetting::Off);
        assert!(matches!(
            read::<Never>(json!({"spool": true})).setting(),
            SpoolSetting::On(_)
        ));
        assert_eq!(
            json!(read::<Never>(unsaid.clone())),
            json!({"url": "u", "spool": false})
        );
        assert_eq!(json!(read::<Always>(unsaid))["spool"]["max_mb"], 256);
        type Made = Spooled<AcmeFactory>;
        let error = Made::validate(&read(json!({"url": "u", "spool": {"max_mb": 0}}))).unwrap_err();
        assert!(error.message().contains("spool.max_mb"), "{error}");
        assert!(
            Made::validate(&read(json!({})))
                .unwrap_err()
                .message()
                .contains("url is empty")
        );
    }

    #[tokio::test]
    async fn it_stands_where_the_sink_is_and_is_the_sink_when_it_is_off() {
        let state = tempfile::tempdir().unwrap();
        let context = BuildContext::new(state.path(), state.path(), Arc::new(Secrets));
        type Made = Spooled<AcmeFactory>;
        let config = json!({"url": "u", "spool": {"chain_key": "env:K"}});
        let audit = Made::build(read(config), &context).await.unwrap();
        assert!(audit.capabilities().durable);
        audit
            .emit(agents_core::AuditEvent::now(agents_core::EventType::SystemWarning))
            .await
            .unwrap();
        audit.shutdown().await.unwrap();
        assert!(state.path().join(folder_of("acme", "memory")).join("0001").is_dir());
        let plain = Made::build(read(json!({"url": "u", "spool": false})), &context)
            .await
            .unwrap();
        assert!(!plain.capabilities().durable);
    }
}
