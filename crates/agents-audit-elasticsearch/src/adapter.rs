//! The adapter.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use agents_audit_remote::{Batch, again, closed, not_tried, places, unavailable};
use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Error, ErrorKind,
    EventType, Result,
};
use async_trait::async_trait;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::{OnceCell, RwLock};

use crate::{
    Credentials, IndexLayout, bulk,
    client::{Call, Client},
    config::ElasticsearchAuditConfig,
    cursor::Cursor,
    document::Document,
    search::{self, Hit},
    template,
};

/// The most events that a search asks for.
const READ: usize = 500;

/// The audit trail in a data stream, or in daily indices, of Elasticsearch or OpenSearch.
///
/// Nothing is connected before the first operation. Any number of processes, and of values of this type, may share a trail.
pub struct ElasticsearchAudit {
    client: Client,
    config: ElasticsearchAuditConfig,
    template: OnceCell<()>,
    /// Read by whoever writes, so that `flush` can wait for them.
    writers: RwLock<()>,
    closed: AtomicBool,
}

impl fmt::Debug for ElasticsearchAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds the credentials.
        f.debug_struct("ElasticsearchAudit")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ElasticsearchAudit {
    /// Takes a configuration, and the credentials that it refers to.
    ///
    /// # Errors
    ///
    /// `ConfigInvalid` that names the key; what reading `tls_ca_file` gives.
    pub fn new(config: ElasticsearchAuditConfig, credentials: Credentials) -> Result<Self> {
        config.check()?;
        Ok(Self {
            client: Client::new(&config, credentials)?,
            config,
            template: OnceCell::new(),
            writers: RwLock::new(()),
            closed: AtomicBool::new(false),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        Ok(())
    }

    /// Creates the template once, if that is wanted and there is none.
    async fn template(&self) -> Result<()> {
        if !self.config.create_template {
            return Ok(());
        }
        let create = || async {
            let path = format!("_index_template/{}", template::name(&self.config));
            match self.client.send(&Call::get(&path)).await {
                // It may have been changed on purpose.
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let body = template::body(&self.config).to_string();
            let call = Call::new(Method::PUT, &path, Some(body.as_bytes()));
            self.client.send(&call).await.map(|_| ())
        };
        self.template.get_or_try_init(create).await.copied()
    }

    /// One bulk request, tried again for those events that may still be stored. Gives what became of each.
    ///
    /// # Errors
    ///
    /// When nothing is known of any event.
    async fn bulk(&self, documents: &[Document]) -> Result<Vec<Result<()>>> {
        let mut outcomes: Vec<Option<Result<()>>> = documents.iter().map(|_| None).collect();
        let mut todo: Vec<usize> = (0..documents.len()).collect();
        let mut retry = self.client.retry();
        loop {
            let body = bulk::request(todo.iter().map(|n| &documents[*n]));
            let mut call = Call::new(Method::POST, "_bulk", Some(&body));
            call.content_type = "application/x-ndjson";
            let answer = self.client.once(&call, retry.attempt()).await;
            let results = answer.and_then(|answer| bulk::results(&answer, todo.len()));
            let mut cause = None;
            match results {
                Ok(results) => {
                    let mut left = Vec::new();
                    for (n, result) in todo.into_iter().zip(results) {
                        match result {
                            Some(error) if error.is_temporary() => {
                                left.push(n);
                                outcomes[n] = Some(Err(again(&error)));
                                cause = Some(error);
                            }
                            result => outcomes[n] = Some(result.map_or(Ok(()), Err)),
                        }
                    }
                    todo = left;
                }
                // What was stored before is known; the rest is not.
                Err(error) if todo.len() < documents.len() && !error.is_temporary() => return Ok(known(outcomes)),
                Err(error) => cause = Some(error),
            }
            let Some(error) = cause else {
                return Ok(known(outcomes));
            };
            if let Err(error) = retry.wait(error).await {
                if todo.len() == documents.len() && outcomes.iter().all(Option::is_none) {
                    return Err(error);
                }
                return Ok(known(outcomes));
            }
        }
    }

    /// Writes documents, and puts what became of each into `outcomes`, which has one for each document.
    async fn write(&self, documents: &[Document], outcomes: &mut [Result<()>]) {
        // A stack, with the first on top.
        let mut todo = bulk::requests(documents);
        todo.reverse();
        while let Some(range) = todo.pop() {
            let error = match self.bulk(&documents[range.clone()]).await {
                Ok(results) => {
                    let failed = results
                        .iter()
                        .any(|result| result.as_ref().is_err_and(Error::is_temporary));
                    for (n, result) in range.zip(results) {
                        outcomes[n] = result;
                    }
                    if failed {
                        return;
                    }
                    continue;
                }
                Err(error) => error,
            };
            let too_large = error.context().contains(&("status", "413".to_owned()));
            if too_large && range.len() > 1 {
                let middle = range.start + range.len() / 2;
                todo.push(middle..range.end);
                todo.push(range.start..middle);
                continue;
            }
            outcomes[range.start] = Err(error);
            if !too_large {
                return;
            }
        }
    }

    /// Makes visible what was written.
    async fn refresh(&self) -> Result<()> {
        let path = format!(
            "{}/_refresh?ignore_unavailable=true&allow_no_indices=true",
            template::pattern(&self.config)
        );
        let refreshed = self.client.send(&Call::new(Method::POST, &path, None)).await;
        match refreshed {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(Error::new(
                ErrorKind::PermissionDenied,
                "the search server does not let this user refresh; grant maintenance on the index, or set \
                 refresh_on_query: false and wait a second before a query",
            )
            .with_source(error)),
            // There is no data stream before the first event.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn search(&self, body: &Value) -> Result<Value> {
        let path = format!(
            "{}/_search?ignore_unavailable=true&allow_no_indices=true&allow_partial_search_results=false",
            template::pattern(&self.config)
        );
        let body = body.to_string();
        let call = Call::new(Method::POST, &path, Some(body.as_bytes()));
        self.client.send(&call).await
    }

    async fn hits(&self, query: &AuditQuery, after: Option<&Cursor>, size: usize) -> Result<Vec<Hit>> {
        match self.search(&search::request(query, after, size)?).await {
            Ok(answer) => search::hits(answer),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// What the server is, and that it would store an event.
    async fn probe(&self) -> Result<String> {
        let limit = self.client.retry().attempt();
        let about = self.client.once(&Call::get(""), limit).await?;
        let number = about["version"]["number"].as_str().unwrap_or("of unknown version");
        let server = match about["version"]["distribution"].as_str() {
            Some("opensearch") => "OpenSearch",
            _ => "Elasticsearch",
        };
        self.template().await?;
        // An event that the mapping refuses: rights and blocks come before that, and nothing is left behind.
        let mut document = Document::new(&AuditEvent::now(EventType::SystemWarning), 0, &self.config)?;
        document.json = "{\"@timestamp\": \"never\"}".to_owned();
        // It may be throttled, which is no reason to doubt the sink.
        match self.bulk(&[document]).await?.pop() {
            Some(Err(error)) if error.kind() != ErrorKind::DataInvalid => Err(error),
            Some(Err(_)) => Ok(format!("{server} {number}")),
            _ => Err(Error::new(
                ErrorKind::Conflict,
                "the index takes @timestamp for no time; delete it, or give it the template's mapping",
            )),
        }
    }
}

/// The outcomes, each known.
fn known(outcomes: Vec<Option<Result<()>>>) -> Vec<Result<()>> {
    let outcome = |outcome: Option<_>| outcome.unwrap_or_else(|| Err(not_tried()));
    outcomes.into_iter().map(outcome).collect()
}

#[async_trait]
impl AuditLogger for ElasticsearchAudit {
    fn info(&self) -> AdapterInfo {
        AdapterInfo::new("elasticsearch", env!("CARGO_PKG_VERSION")).with_name(self.location())
    }

    fn capabilities(&self) -> AuditCapabilities {
        AuditCapabilities::none().with_query(true).with_durable(true)
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.check_open()?;
        match self.probe().await {
            Ok(server) => {
                let fact = format!("writes to {}", self.location());
                Ok(Availability::ready().with_fact(fact).with_fact(server))
            }
            Err(error) => Ok(unavailable(&self.location(), &error)),
        }
    }

    fn location(&self) -> String {
        let endpoint = self.config.endpoint.trim_end_matches('/');
        format!("{endpoint}/{}", template::pattern(&self.config))
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        let mut outcomes = self.emit_batch(vec![event]).await?;
        outcomes.pop().unwrap_or_else(|| Err(not_tried()))
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        self.check_open()?;
        let _writer = self.writers.read().await;
        self.check_open()?;
        let first = places(events.len());
        let documents = (first..)
            .zip(&events)
            .map(|(place, event)| Document::new(event, place, &self.config));
        let batch = Batch::new(documents);
        let mut written = batch.untried();
        if !written.is_empty() {
            self.template().await?;
            self.write(batch.items(), &mut written).await;
        }
        batch.settle(written)
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.check_open()?;
        if query.limit == 0 {
            return Err(Error::invalid("limit is 0; ask for at least one event"));
        }
        let mut after = query.cursor.as_deref().map(Cursor::parse).transpose()?;
        if self.config.refresh_on_query {
            self.refresh().await?;
        }
        let mut page = AuditPage::default();
        let mut skipped = 0_u64;
        loop {
            // One more than wanted tells whether there is a next page.
            let size = (query.limit - page.events.len()).saturating_add(1).min(READ);
            let mut hits = self.hits(&query, after.as_ref(), size).await?;
            let last = hits.len() < size;
            let end = hits.last().map(|hit| hit.at.clone());
            if self.config.layout == IndexLayout::DataStream && !hits.is_empty() {
                let firsts = self.search(&search::first_places(&hits)).await?;
                search::drop_repeats(&mut hits, &firsts);
            }
            for hit in hits {
                match hit.event {
                    Some(event) if !query.matches(&event) => {}
                    Some(_) if page.events.len() == query.limit => {
                        page.next = after.map(|after| after.to_string());
                        warn_of(skipped);
                        return Ok(page);
                    }
                    Some(event) => page.events.push(event),
                    None => skipped += 1,
                }
                after = Some(hit.at);
            }
            if last {
                warn_of(skipped);
                return Ok(page);
            }
            after = end;
        }
    }

    async fn flush(&self) -> Result<()> {
        self.check_open()?;
        drop(self.writers.write().await);
        self.check_open()
    }

    async fn shutdown(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(closed());
        }
        drop(self.writers.write().await);
        Ok(())
    }
}

fn warn_of(skipped: u64) {
    if skipped > 0 {
        tracing::warn!(
            skipped,
            "documents of the audit index are no events of this version and were skipped"
        );
    }
}
