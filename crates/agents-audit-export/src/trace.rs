//! W3C trace context: which trace an event belongs to.

use std::sync::Arc;

use agents_core::{
    AdapterInfo, AuditCapabilities, AuditEvent, AuditLogger, AuditPage, AuditQuery, Availability, Layer, Result,
};
use async_trait::async_trait;

/// The trace and the span that something is a part of, as a `traceparent` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: String,
    span_id: String,
}

impl TraceContext {
    /// Reads a `traceparent` of the W3C recommendation; `None` for what is none, which is to be ignored.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // A later version may have more parts, and ff is none.
        let version_is_known = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        (version_is_known && hex(flags, 2))
            .then(|| Self::new(trace_id, span_id))
            .flatten()
    }

    /// From its two identifiers in lower-case hexadecimal, 32 and 16 digits, neither all zeros.
    pub fn new(trace_id: &str, span_id: &str) -> Option<Self> {
        let valid = |id: &str, digits| hex(id, digits) && id.bytes().any(|digit| digit != b'0');
        (valid(trace_id, 32) && valid(span_id, 16)).then(|| Self {
            trace_id: trace_id.to_owned(),
            span_id: span_id.to_owned(),
        })
    }

    /// The trace that an event's payload names.
    pub fn of(event: &AuditEvent) -> Option<Self> {
        let text = |key: &str| event.payload.get(key)?.as_str();
        Self::new(text("trace_id")?, text("span_id")?)
    }

    /// The trace, 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        &self.trace_id
    }

    /// The span, 16 hexadecimal digits.
    pub fn span_id(&self) -> &str {
        &self.span_id
    }
}

fn hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Puts a trace into the payload of every event, as `trace_id` and `span_id`, unless the event has one.
#[derive(Clone, Debug)]
pub struct TraceLayer(TraceContext);

impl TraceLayer {
    /// Puts this trace.
    pub fn new(trace: TraceContext) -> Self {
        Self(trace)
    }
}

impl Layer for TraceLayer {
    fn wrap_audit(&self, inner: Arc<dyn AuditLogger>) -> Arc<dyn AuditLogger> {
        Arc::new(Traced {
            inner,
            trace: self.0.clone(),
        })
    }
}

#[derive(Debug)]
struct Traced {
    inner: Arc<dyn AuditLogger>,
    trace: TraceContext,
}

impl TraceContext {
    fn put_into(&self, event: AuditEvent) -> AuditEvent {
        if event.payload.contains_key("trace_id") {
            return event;
        }
        event
            .with_fact("trace_id", self.trace_id())
            .with_fact("span_id", self.span_id())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl AuditLogger for Traced {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    fn capabilities(&self) -> AuditCapabilities {
        self.inner.capabilities()
    }

    async fn check_availability(&self) -> Result<Availability> {
        self.inner.check_availability().await
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    async fn emit(&self, event: AuditEvent) -> Result<()> {
        self.inner.emit(self.trace.put_into(event)).await
    }

    async fn emit_batch(&self, events: Vec<AuditEvent>) -> Result<Vec<Result<()>>> {
        let events = events.into_iter().map(|event| self.trace.put_into(event)).collect();
        self.inner.emit_batch(events).await
    }

    async fn query(&self, query: AuditQuery) -> Result<AuditPage> {
        self.inner.query(query).await
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn shutdown(&self) -> Result<()> {
        self.inner.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use agents_core::EventType;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn only_a_traceparent_of_the_recommendation_is_read() {
        for good in [
            format!("00-{TRACE}-{SPAN}-01"),
            format!(" 00-{TRACE}-{SPAN}-00\n"),
            format!("cc-{TRACE}-{SPAN}-01-what-the-future-brings"),
        ] {
            let trace = TraceContext::parse(&good).expect(&good);
            assert_eq!((trace.trace_id(), trace.span_id()), (TRACE, SPAN));
        }
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}x-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-1"),
        ] {
            assert_eq!(TraceContext::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn an_event_is_traced_once() {
        let trace = TraceContext::new(TRACE, SPAN).unwrap();
        let event = trace.put_into(AuditEvent::now(EventType::SystemWarning));
        assert_eq!(TraceContext::of(&event), Some(trace.clone()));
        let own = AuditEvent::now(EventType::SystemWarning).with_fact("trace_id", "own");
        assert_eq!(trace.put_into(own.clone()), own);
        assert_eq!(TraceContext::of(&own), None);
    }
}
