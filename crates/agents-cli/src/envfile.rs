//! Environment on the command line and in files, as `docker run` reads it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use agents_sdk::core::{Error, Result};

type Variables = Vec<(String, String)>;

/// The variables of the files of `--env-file`, in their order.
pub(crate) fn read_files(files: &[PathBuf]) -> Result<Variables> {
    let mut variables = Vec::new();
    for file in files {
        read_file(file, &|name| std::env::var_os(name), &mut variables)?;
    }
    Ok(variables)
}

/// The variables of `--env`.
pub(crate) fn parse_flags(flags: &[String]) -> Result<Variables> {
    let mut variables = Vec::new();
    for flag in flags {
        add(flag, &|name| std::env::var_os(name), &mut variables)
            .map_err(|fault| Error::invalid(format!("--env {fault}")))?;
    }
    Ok(variables)
}

/// A `K=V` or a `K` a line, taken literally: no quotes, no escapes. Blank lines and lines that begin with `#` are skipped.
fn read_file(path: &Path, host: &impl Fn(&str) -> Option<OsString>, variables: &mut Variables) -> Result<()> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io(format!("cannot read the environment file {}", path.display()), error))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        add(line, host, variables)
            .map_err(|fault| Error::invalid(format!("{} line {}: {fault}", path.display(), number + 1)))?;
    }
    Ok(())
}

fn add(text: &str, host: &impl Fn(&str) -> Option<OsString>, variables: &mut Variables) -> Result<(), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text.trim_end(), None),
    };
    // The value is not quoted: it may be a secret.
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '\0') {
        return Err(format!(
            "{name:?} is not a variable's name; write K=V, or K to forward it"
        ));
    }
    let value = match value {
        Some(value) => value,
        // As in Docker, a variable that is not set here is not set there.
        None => match host(name).map(OsString::into_string) {
            None => return Ok(()),
            Some(Ok(value)) => value,
            Some(Err(_)) => return Err(format!("{name} is not UTF-8 here, so it cannot be forwarded")),
        },
    };
    if value.contains('\0') {
        return Err(format!("the value of {name} holds NUL"));
    }
    variables.push((name.to_owned(), value));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Option<OsString> {
        (name == "HERE").then(|| "from host".into())
    }

    fn read(text: &str) -> Result<Variables> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        std::fs::write(&file, text).unwrap();
        let mut variables = Vec::new();
        read_file(&file, &host, &mut variables).map(|()| variables)
    }

    #[test]
    fn lines_are_taken_literally() {
        let found =
            read("\u{feff}# comment\n\n  A=1 # not a comment\nB=\"quoted\"\nHERE\nABSENT\nC=\nD=x=y\n").unwrap();
        let expected = [
            ("A", "1 # not a comment"),
            ("B", "\"quoted\""),
            ("HERE", "from host"),
            ("C", ""),
            ("D", "x=y"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_bad_line_is_named_and_its_value_is_not_shown() {
        let error = read("A=1\n=s3cret\n").unwrap_err();
        assert!(
            error.message().contains("line 2") && !error.message().contains("s3cret"),
            "{error}"
        );
        for bad in ["A B=1", "", "=x"] {
            assert!(parse_flags(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(read_files(&["/no/such/file".into()]).is_err());
    }
}
