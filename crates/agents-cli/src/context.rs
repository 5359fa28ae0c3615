//! What every command needs: the common flags, the configuration, the engine.

use std::sync::{Arc, Mutex, PoisonError};

use agents_sdk::{
    Configure, Loaded,
    audit_export::{TraceContext, TraceLayer},
    configure_adapters,
    core::{Error, ErrorKind, Result, SessionId},
    session::Engine,
};

use crate::{
    args::{Adapters, Common},
    output,
};

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) common: Common,
    engines: Mutex<Vec<Engine>>,
}

impl Context {
    pub(crate) fn new(common: Common) -> Self {
        Self {
            common,
            engines: Mutex::default(),
        }
    }

    pub(crate) fn json(&self) -> bool {
        self.common.json
    }

    /// Loads the configuration and tells its warnings.
    pub(crate) fn load(&self, adapters: &Adapters) -> Result<Loaded> {
        let loaded = self.configure(adapters).load()?;
        if !self.common.quiet {
            for warning in loaded.config.warnings() {
                output::warning(warning);
            }
        }
        if self.common.verbose {
            for note in loaded.config.notes() {
                output::note(note);
            }
        }
        Ok(loaded)
    }

    pub(crate) fn configure(&self, adapters: &Adapters) -> Configure {
        let mut configure = configure_adapters()
            .with_file(self.common.config.clone())
            .with_state_dir(self.common.state_dir.clone());
        // Of whoever called us. As the recommendation wants it, what is no trace is ignored.
        let traceparent = std::env::var("TRACEPARENT").ok();
        if let Some(trace) = traceparent.and_then(|text| TraceContext::parse(&text)) {
            configure = configure.with_layer(Arc::new(TraceLayer::new(trace)));
        }
        if let Some(name) = &adapters.runtime {
            configure = configure.with_container_runtime(name.as_str());
        }
        if let Some(name) = &adapters.storage {
            configure = configure.with_storage_backend(name.as_str());
        }
        if let Some(name) = &adapters.audit {
            configure = configure.with_audit_logger(name.as_str());
        }
        configure
    }

    pub(crate) async fn engine(&self, adapters: &Adapters) -> Result<Engine> {
        self.build(self.load(adapters)?).await
    }

    /// Builds an engine, which [`Self::close`] closes.
    pub(crate) async fn build(&self, loaded: Loaded) -> Result<Engine> {
        let engine = loaded.build().await?;
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.push(engine.clone());
        Ok(engine)
    }

    /// Lets what waits in a spool go before the process ends.
    pub(crate) async fn close(&self) {
        let engines = std::mem::take(&mut *self.engines.lock().unwrap_or_else(PoisonError::into_inner));
        for engine in engines {
            agents_sdk::close(&engine).await;
        }
    }
}

/// The session whose id this is, or begins with this.
pub(crate) async fn find_session(engine: &Engine, text: &str) -> Result<SessionId> {
    let id = SessionId::new(text)?;
    match engine.inspect(&id).await {
        Ok(_) => return Ok(id),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut matching: Vec<_> = engine
        .list(true)
        .await?
        .into_iter()
        .map(|info| info.session_id)
        .filter(|id| id.as_str().starts_with(text))
        .collect();
    match (matching.pop(), matching.len()) {
        (Some(id), 0) => Ok(id),
        (Some(_), more) => Err(Error::invalid(format!(
            "{} sessions begin with {text:?}; write more of the id",
            more + 1
        ))),
        (None, _) => Err(Error::not_found(format!(
            "there is no session {text:?} in {}; agents ps -a lists what there is",
            engine.config().state_dir.display()
        ))),
    }
}
