//! The part of CloudWatch's filter patterns for JSON that the proxy knows.

use serde_json::Value;

/// `{ $.a = "x" && ($.b = "y" || $.b = "z") && $.c >= 3 }`.
#[derive(Debug)]
pub(super) enum Pattern {
    And(Vec<Pattern>),
    Or(Vec<Pattern>),
    Equal(String, String),
    AtLeast(String, f64),
}

impl Pattern {
    /// # Errors
    ///
    /// For what is no such pattern.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let inner = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let mut rest = inner.ok_or("no braces")?.trim();
        let pattern = any(&mut rest)?;
        if rest.is_empty() {
            Ok(pattern)
        } else {
            Err(format!("left over: {rest}"))
        }
    }

    pub(super) fn matches(&self, message: &Value) -> bool {
        match self {
            Self::And(terms) => terms.iter().all(|term| term.matches(message)),
            Self::Or(terms) => terms.iter().any(|term| term.matches(message)),
            Self::Equal(key, value) => message[key.as_str()].as_str() == Some(value),
            Self::AtLeast(key, number) => message[key.as_str()].as_f64().is_some_and(|found| found >= *number),
        }
    }
}

/// Takes what the text starts with, and the space behind.
fn take(rest: &mut &str, what: &str) -> bool {
    match rest.strip_prefix(what) {
        Some(left) => {
            *rest = left.trim_start();
            true
        }
        None => false,
    }
}

fn any(rest: &mut &str) -> Result<Pattern, String> {
    let mut terms = vec![all(rest)?];
    while take(rest, "||") {
        terms.push(all(rest)?);
    }
    Ok(Pattern::Or(terms))
}

fn all(rest: &mut &str) -> Result<Pattern, String> {
    let mut terms = vec![term(rest)?];
    while take(rest, "&&") {
        terms.push(term(rest)?);
    }
    Ok(Pattern::And(terms))
}

fn term(rest: &mut &str) -> Result<Pattern, String> {
    if take(rest, "(") {
        let inner = any(rest)?;
        return if take(rest, ")") {
            Ok(inner)
        } else {
            Err("no end of a parenthesis".to_owned())
        };
    }
    if !take(rest, "$.") {
        return Err(format!("no selector: {rest}"));
    }
    let end = rest
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(rest.len());
    let key = rest[..end].to_owned();
    *rest = rest[end..].trim_start();
    if take(rest, ">=") {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[..end].parse().map_err(|_| "no number".to_owned())?;
        *rest = rest[end..].trim_start();
        return Ok(Pattern::AtLeast(key, number));
    }
    if !take(rest, "=") || !rest.starts_with('"') {
        return Err(format!("no comparison: {rest}"));
    }
    let value = rest[1..].split_once('"').ok_or("no end of a text")?.0;
    if value.is_empty() || value.contains(['*', '%', '\\']) {
        return Err(format!("{value} has a meaning of its own"));
    }
    *rest = rest[value.len() + 2..].trim_start();
    Ok(Pattern::Equal(key, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patterns_are_read_and_matched() {
        let message = json!({"a": "x", "b": "z", "c": 3});
        for (pattern, expected) in [
            (r#"{ $.a = "x" }"#, true),
            (r#"{ $.a = "y" }"#, false),
            (r#"{ $.a = "x" && ($.b = "y" || $.b = "z") && $.c >= 3 }"#, true),
            (r#"{ $.a = "x" && ($.b = "y" || $.b = "w") }"#, false),
            (r#"{$.a = "y" || $.c >= 2}"#, true),
            (r#"{ $.none >= 0 }"#, false),
        ] {
            assert_eq!(
                Pattern::parse(pattern).map(|pattern| pattern.matches(&message)),
                Ok(expected),
                "{pattern}"
            );
        }
        for pattern in [
            "",
            "words",
            "{ $.a }",
            r#"{ $.a = "x" } more"#,
            r#"{ $.a = "x*" }"#,
            r#"{ ($.a = "x" }"#,
        ] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }
}
