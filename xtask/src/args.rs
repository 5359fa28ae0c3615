//! Command-line arguments: flags, `--key value` or `--key=value`, and the words that remain.

use crate::error::{Context, Result, fail};

/// The words after a sub-command, taken away one kind at a time.
#[derive(Debug)]
pub(crate) struct Args {
    words: Vec<String>,
}

impl Args {
    pub(crate) fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    pub(crate) fn wants_help(&mut self) -> bool {
        self.flag("-h") | self.flag("--help")
    }

    /// True when `name` was given; takes it away.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|word| word != name);
        self.words.len() != before
    }

    /// The value of `name VALUE` or `name=VALUE`; takes both words away.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        let prefix = format!("{name}=");
        let Some(at) = self
            .words
            .iter()
            .position(|word| word == name || word.starts_with(&prefix))
        else {
            return Ok(None);
        };
        let word = self.words.remove(at);
        if let Some(value) = word.strip_prefix(&prefix) {
            return Ok(Some(value.to_owned()));
        }
        if at == self.words.len() {
            return fail(format!("{name} needs a value"));
        }
        Ok(Some(self.words.remove(at)))
    }

    /// The value of `name` as a number.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>> {
        self.value(name)?
            .map(|text| text.parse().context(|| format!("{name} wants a number, not `{text}`")))
            .transpose()
    }

    /// The next word that is not an option.
    pub(crate) fn word(&mut self) -> Option<String> {
        let at = self.words.iter().position(|word| !word.starts_with('-'))?;
        Some(self.words.remove(at))
    }

    /// What is left, none of which may be an option.
    pub(crate) fn rest(self) -> Result<Vec<String>> {
        match self.words.iter().find(|word| word.starts_with('-')) {
            Some(option) => fail(format!("unknown option `{option}`; see --help")),
            None => Ok(self.words),
        }
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<()> {
        match self.rest()?.first() {
            Some(word) => fail(format!("unexpected argument `{word}`; see --help")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Args {
        Args::new(words.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn values_come_in_both_spellings() {
        let mut args = args(&["--json=a", "-n", "30", "x", "--check"]);
        assert_eq!(args.value("--json").unwrap().as_deref(), Some("a"));
        assert_eq!(args.number("-n").unwrap(), Some(30));
        assert!(args.flag("--check"));
        assert_eq!(args.rest().unwrap(), ["x"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(args(&["--nope"]).rest().is_err());
        assert!(args(&["word"]).finish().is_err());
        assert!(args(&["-n"]).value("-n").is_err());
        assert!(args(&["-n", "many"]).number("-n").is_err());
    }
}
