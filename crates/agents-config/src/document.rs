//! Reading YAML, TOML and JSON into one form, strictly.

use std::{fmt, io::Read, path::Path};

use agents_core::{Error, Result};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// Nothing that a person writes is larger.
const MAX_SIZE: u64 = 4 << 20;

/// Reads a YAML, TOML or JSON file, chosen by the extension (`.json`, `.toml`, anything else is YAML, of which JSON is a
/// part). A key that is given twice and a number that is not finite are errors, since JSON has no way to keep them.
///
/// # Errors
///
/// What `read` says, or `ConfigInvalid` with the place of the fault; both name the file.
pub fn read_document(path: &Path) -> Result<Value> {
    let cannot = |error| Error::io(format!("cannot read {}", path.display()), error);
    let mut file = std::fs::File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    file.by_ref()
        .take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Error::invalid(format!(
            "{} is larger than 4 MiB, so it is not a configuration or a policy",
            path.display()
        )));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::invalid(format!("{} is not UTF-8 text", path.display())))?;
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or("yaml");
    parse_document(&text, extension).map_err(|error| Error::invalid(format!("{}: {}", path.display(), error.message())))
}

/// Parses text in the format that a file extension names, as [`read_document`] does.
///
/// # Errors
///
/// `ConfigInvalid` with the place of the fault.
pub fn parse_document(text: &str, extension: &str) -> Result<Value> {
    let parsed: Result<Document, String> = match extension {
        "json" => serde_json::from_str(text).map_err(|error| error.to_string()),
        "toml" => toml::from_str(text).map_err(|error| toml_fault(text, &error)),
        _ => serde_saphyr::from_str(text).map_err(|error| yaml_fault(&error)),
    };
    parsed
        .map(|document| document.0)
        .map_err(|fault| Error::invalid(fault.trim().replace('\n', " ")))
}

/// The parser's message without its advice, which is about its own options and for programmers.
fn yaml_fault(error: &serde_saphyr::Error) -> String {
    error
        .without_snippet()
        .to_string()
        .replace(", set DuplicateKeyPolicy in Options if acceptable", "")
        .replace(" rejected by the configured policy", " is not allowed")
        .replace(" not allowed by configured policy", " not allowed")
}

fn toml_fault(text: &str, error: &toml::de::Error) -> String {
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            format!("{} at line {line}", error.message())
        }
        None => error.message().to_owned(),
    }
}

/// A JSON value that was read strictly.
struct Document(Value);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strict).map(Self)
    }
}

struct Strict;

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is not a finite number")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Document>()? {
            items.push(item.0);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("the key {key:?} is given twice")));
            }
            let value = access.next_value::<Document>()?;
            map.insert(key, value.0);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_three_formats_read_alike() {
        let expected = json!({"a": {"b": [1, 2.5, "x", true]}, "c": "12345"});
        for (extension, text) in [
            ("yaml", "a:\n  b: [1, 2.5, x, true]\nc: \"12345\"\n"),
            ("toml", "c = \"12345\"\n[a]\nb = [1, 2.5, \"x\", true]\n"),
            ("json", r#"{"a": {"b": [1, 2.5, "x", true]}, "c": "12345"}"#),
        ] {
            assert_eq!(parse_document(text, extension).unwrap(), expected, "{extension}");
        }
        assert_eq!(parse_document("", "yaml").unwrap(), Value::Null);
    }

    #[test]
    fn a_key_given_twice_and_a_number_without_end_are_refused() {
        for (extension, text) in [
            ("yaml", "a: 1\na: 2\n"),
            ("json", r#"{"a": 1, "a": 2}"#),
            ("toml", "a = 1\na = 2\n"),
            ("yaml", "cpu_cores: .inf"),
            ("yaml", "cpu_cores: .nan"),
            ("toml", "cpu_cores = inf"),
        ] {
            let error = parse_document(text, extension).unwrap_err();
            assert!(!error.message().contains('\n'), "{error}");
            // Those who wrote the file cannot set an option of the parser, and a policy is something else here.
            assert!(!error.message().contains("olicy"), "{error}");
        }
    }

    #[test]
    fn a_fault_names_its_line() {
        for (extension, text) in [
            ("yaml", "a: 1\nb: [1\n"),
            ("json", "{\"a\": 1,\n\"b\": [1\n}"),
            ("toml", "a = 1\nb = [1\nc = 2"),
        ] {
            let error = parse_document(text, extension).unwrap_err();
            assert!(error.message().contains("line"), "{extension}: {error}");
        }
    }
}
