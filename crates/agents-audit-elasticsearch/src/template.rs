//! The index template: how events are indexed.

use serde_json::{Value, json};

use crate::{
    config::{ElasticsearchAuditConfig, IndexLayout},
    document::MAX_USER,
};

/// The template's name.
pub(crate) fn name(config: &ElasticsearchAuditConfig) -> String {
    match config.layout {
        IndexLayout::DataStream => config.index.clone(),
        IndexLayout::Daily => format!("{}-daily", config.index),
    }
}

/// Where events are found.
pub(crate) fn pattern(config: &ElasticsearchAuditConfig) -> String {
    match config.layout {
        IndexLayout::DataStream => config.index.clone(),
        IndexLayout::Daily => format!("{}-*", config.index),
    }
}

/// The template. The mapping is closed: what is not named is kept, and not indexed. So no payload can clash with another's
/// types or make the mapping grow.
pub(crate) fn body(config: &ElasticsearchAuditConfig) -> Value {
    let keyword = json!({"type": "keyword"});
    let mut template = json!({
        "index_patterns": [pattern(config)],
        "priority": 500,
        "_meta": {"description": "the audit trail of the Isolated Agents SDK", "version": 1},
        "template": {
            "mappings": {
                "dynamic": false,
                "properties": {
                    "@timestamp": {"type": "date_nanos"},
                    "event_id": keyword,
                    "event_type": keyword,
                    "session_id": keyword,
                    "agent_id": keyword,
                    "user_id": {"type": "keyword", "ignore_above": MAX_USER},
                    "payload": {"type": "object", "enabled": false},
                    "severity": keyword,
                    "severity_rank": {"type": "byte"},
                    "tags": {"type": "keyword", "ignore_above": 1024},
                    "place": {"type": "long"},
                },
            },
        },
    });
    if config.layout == IndexLayout::DataStream {
        template["data_stream"] = json!({});
    }
    template
}
