//! The part of Datadog's search syntax that the fake knows: terms that must all match.

use serde_json::Value;

use super::datadog::Log;

/// `KEY:VALUE`, `KEY:"VALUE"` and `KEY:(VALUE OR VALUE)`, all of which must match.
pub(super) struct Query(Vec<Term>);

struct Term {
    key: String,
    any_of: Vec<String>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() && rest != "*" {
            let (key, behind) = rest.split_once(':').ok_or_else(|| format!("no term: {rest}"))?;
            if key.is_empty() || key.contains([' ', '"', '(']) {
                return Err(format!("no key: {key}"));
            }
            let (any_of, left) = values(behind)?;
            terms.push(Term {
                key: key.to_owned(),
                any_of,
            });
            rest = left.trim_start();
        }
        Ok(Self(terms))
    }

    pub(super) fn matches(&self, log: &Log) -> bool {
        self.0.iter().all(|term| {
            let is = |value: &str| term.any_of.iter().any(|wanted| wanted == value);
            match term.key.as_str() {
                "source" => is(&log.source),
                "service" => is(&log.service),
                "host" => is(&log.host),
                "status" => is(&log.status),
                key => match key.strip_prefix('@') {
                    Some(path) => path
                        .split('.')
                        .try_fold(None, |value: Option<&Value>, name| match value {
                            None => log.attributes.get(name).map(Some),
                            Some(value) => value.get(name).map(Some),
                        })
                        .flatten()
                        .and_then(Value::as_str)
                        .is_some_and(is),
                    None => term
                        .any_of
                        .iter()
                        .any(|value| log.tags.contains(&format!("{key}:{value}"))),
                },
            }
        })
    }
}

/// The values behind a key, and what is behind them.
fn values(text: &str) -> Result<(Vec<String>, &str), String> {
    if let Some(list) = text.strip_prefix('(') {
        let (list, rest) = list.split_once(')').ok_or("no end of a list")?;
        return Ok((list.split(" OR ").map(|value| value.trim().to_owned()).collect(), rest));
    }
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, rest) = quoted.split_once('"').ok_or("no end of a quotation")?;
        return Ok((vec![value.to_owned()], rest));
    }
    let end = text.find(' ').unwrap_or(text.len());
    match &text[..end] {
        "" => Err("no value".to_owned()),
        value => Ok((vec![value.to_owned()], &text[end..])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terms_are_read_and_must_all_match() {
        let log = Log {
            sequence: 0,
            millisecond: 0,
            attributes: json!({"audit": {"id": "a-1"}}).as_object().cloned().unwrap_or_default(),
            message: String::new(),
            status: String::new(),
            source: "src".to_owned(),
            service: "svc".to_owned(),
            host: String::new(),
            tags: vec!["env:prod".to_owned()],
        };
        for (query, expected) in [
            ("*", true),
            ("source:src service:svc", true),
            ("source:src service:other", false),
            ("@audit.id:\"a-1\" env:prod", true),
            ("@audit.id:(b OR a-1) source:src", true),
            ("@audit.id:(b OR c)", false),
            ("@audit.none:x", false),
            ("env:dev", false),
        ] {
            assert_eq!(
                Query::parse(query).map(|query| query.matches(&log)),
                Ok(expected),
                "{query}"
            );
        }
        for query in ["words", "a:(b", "a:\"b", ":x", "a: b"] {
            assert!(Query::parse(query).is_err(), "{query}");
        }
    }
}
