//! A line of JSON for everything that happens.

use std::{fmt, fs::File, io::Write, path::Path, time::Instant};

/// A value that ends up in JSON.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    Number(u64),
    Bool(bool),
    List(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => quote(f, text),
            Self::Number(number) => number.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    f.write_str(if index > 0 { ", " } else { "" })?;
                    quote(f, item)?;
                }
                f.write_str("]")
            }
        }
    }
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

/// An object of these members.
pub(crate) fn object(members: &[(&str, Value)]) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|(key, value)| format!("\"{key}\": {value}"))
        .collect();
    format!("{{{}}}", members.join(", "))
}

/// The trace, in a file and on standard output.
#[derive(Debug)]
pub(crate) struct Trace {
    file: File,
    begin: Instant,
}

impl Trace {
    pub(crate) fn create(path: &Path) -> Result<Self, String> {
        let file = File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(Self {
            file,
            begin: Instant::now(),
        })
    }

    /// Notes an event.
    pub(crate) fn note(&mut self, event: &str, members: &[(&str, Value)]) -> Result<(), String> {
        let at = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut all = vec![("at_ms", Value::Number(at)), ("event", Value::Text(event.to_owned()))];
        all.extend_from_slice(members);
        let words: Vec<_> = members.iter().map(|(key, value)| format!("{key} {value}")).collect();
        println!("{event:8} {}", words.join(", "));
        writeln!(self.file, "{}", object(&all)).map_err(|error| format!("cannot write the trace: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_json() {
        let text = object(&[
            ("a", Value::Text("x\"\\\n".to_owned())),
            ("b", Value::List(vec!["1".to_owned(), "2".to_owned()])),
            ("c", Value::Bool(true)),
            ("d", Value::Number(7)),
        ]);
        assert_eq!(text, r#"{"a": "x\"\\\u000a", "b": ["1", "2"], "c": true, "d": 7}"#);
    }
}
