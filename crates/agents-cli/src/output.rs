//! What is printed, and where.

use std::io::{IsTerminal, Write};

use comfy_table::{ColumnConstraint, ContentArrangement, Table};
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

/// A table without rules. On a terminal it fits: the last column gives way, by wrapping or, with `cut`, by losing its
/// end. Elsewhere every row is one whole line. Says `nothing` instead of printing an empty one.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: Vec<[String; N]>,
    cut: bool,
    nothing: &str,
) -> Result<(), Failure> {
    if rows.is_empty() {
        note(nothing);
        return Ok(());
    }
    let width = rustix::termios::tcgetwinsize(std::io::stdout())
        .ok()
        .map(|size| size.ws_col)
        .filter(|columns| *columns > 0 && std::io::stdout().is_terminal());
    let text = render(header, rows, cut, width);
    let (header, rest) = text.split_once('\n').unwrap_or((&text, ""));
    self::text(&format!("{}\n{rest}", header.bold()))
}

fn render<const N: usize>(header: [&str; N], rows: Vec<[String; N]>, cut: bool, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header);
    for row in rows {
        let mut row = comfy_table::Row::from(row.map(|cell| one_line(&cell)));
        if cut {
            row.max_height(1);
        }
        table.add_row(row);
    }
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
    let fixed: u16 = table.column_max_content_widths()[..N - 1]
        .iter()
        .map(|width| width + 2)
        .sum();
    // When even the other columns do not fit, all of them have to give way.
    let last_gives_way = width.is_none_or(|width| width > fixed + 8);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if i + 1 < N { 2 } else { 0 }));
        if i + 1 < N && last_gives_way {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_on_its_line() {
        assert_eq!(one_line("a\nb\x1b[2Jc\r\n"), "a b\\u{1b}[2Jc");
    }

    #[test]
    fn a_table_fits_and_its_last_column_gives_way() {
        let rows = || vec![["0123456789".to_owned(), "one two three four five six".to_owned()]];
        let whole = render(["ID", "WORDS"], rows(), true, None);
        assert_eq!(whole, "ID          WORDS\n0123456789  one two three four five six\n");
        let cut = render(["ID", "WORDS"], rows(), true, Some(26));
        assert!(
            cut.lines().count() == 2 && cut.lines().all(|line| line.chars().count() <= 26),
            "{cut}"
        );
        assert!(cut.contains("0123456789  one"), "{cut}");
        let wrapped = render(["ID", "WORDS"], rows(), false, Some(26));
        assert!(wrapped.lines().all(|line| line.chars().count() <= 26), "{wrapped}");
        assert!(wrapped.split_whitespace().any(|word| word == "six"), "{wrapped}");
    }
}
