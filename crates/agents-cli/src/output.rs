//! What is printed, and where.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table};
use owo_colors::OwoColorize;
use serde::Serialize;

use crate::failure::Failure;

/// One line on standard error that begins with `error:`.
pub(crate) fn error(text: &str) {
    let text = one_line(text);
    let _ = writeln!(anstream::stderr(), "{} {text}", "error:".red().bold());
}

/// One line on standard error that begins with `warning:`.
pub(crate) fn warning(text: &str) {
    let text = one_line(text);
    let _ = writeln!(anstream::stderr(), "{} {text}", "warning:".yellow().bold());
}

/// A line on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// What comes from elsewhere may hold line breaks and escape sequences; neither belongs on a line of ours.
pub(crate) fn one_line(text: &str) -> String {
    text.trim_end()
        .chars()
        .flat_map(|c| match c {
            '\n' | '\r' | '\t' => vec![' '],
            c if c.is_control() => c.escape_default().collect(),
            c => vec![c],
        })
        .collect()
}

/// Text on standard output.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout();
    finish(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Bytes on standard output, as they are.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    finish(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// One JSON value on one line of standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_vec(value)
        .map_err(|error| agents_sdk::core::Error::unexpected("cannot write JSON").with_source(error))?;
    line.push(b'\n');
    bytes(&line)
}

/// One JSON value for people.
pub(crate) fn pretty_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| agents_sdk::core::Error::unexpected("cannot write JSON").with_source(error))?;
    text.push(b'\n');
    bytes(&text)
}

fn finish(written: std::io::Result<()>) -> Result<(), Failure> {
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Pipe,
        _ => agents_sdk::core::Error::io("cannot write to standard output", error).into(),
    })
}

/// A table without lines that fits the terminal. Says `nothing` instead of printing an empty one.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>, nothing: &str) -> Result<(), Failure> {
    if rows.is_empty() {
        note(nothing);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if std::io::stdout().is_terminal()
        && let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout())
        && size.ws_col > 0
    {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(size.ws_col);
    }
    table.set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| one_line(&cell)));
    }
    let mut lines = table.lines().map(|line| line.trim_end().to_owned());
    let mut all = String::new();
    if let Some(header) = lines.next() {
        all.push_str(&format!("{}\n", header.bold()));
    }
    for line in lines {
        all.push_str(&line);
        all.push('\n');
    }
    text(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_on_its_line() {
        assert_eq!(one_line("a\nb\x1b[2Jc\r\n"), "a b\\u{1b}[2Jc");
    }
}
