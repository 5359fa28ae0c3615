//! Which sinks have a spool in front of them.

#[cfg(feature = "audit-cloudwatch")]
pub(crate) type CloudWatch = agents_layers::spool::Spooled<agents_audit_cloudwatch::CloudWatchAuditFactory>;
#[cfg(feature = "audit-database")]
pub(crate) type Database = agents_layers::spool::Spooled<agents_audit_sql::DatabaseAuditFactory, OverNetwork>;
#[cfg(feature = "audit-datadog")]
pub(crate) type Datadog = agents_layers::spool::Spooled<agents_audit_datadog::DatadogAuditFactory>;
#[cfg(feature = "audit-elasticsearch")]
pub(crate) type Elasticsearch = agents_layers::spool::Spooled<agents_audit_elasticsearch::ElasticsearchAuditFactory>;
#[cfg(feature = "audit-otlp")]
pub(crate) type Otlp = agents_layers::spool::Spooled<agents_audit_otlp::OtlpAuditFactory>;

/// A server may be away; a file of SQLite is on local disk itself.
#[cfg(feature = "audit-database")]
#[derive(Debug)]
pub(crate) struct OverNetwork;

#[cfg(feature = "audit-database")]
impl agents_layers::spool::SpoolByDefault<agents_audit_sql::DatabaseAuditConfig> for OverNetwork {
    fn spools(config: &agents_audit_sql::DatabaseAuditConfig) -> bool {
        config.url.is_some()
    }
}
