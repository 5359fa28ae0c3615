//! Writes HTML. What is not a literal of ours is escaped, which the types see to.

use std::fmt::Write;

#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Markup, which only a literal can be.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text between tags or in an attribute with double quotes.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                // Written out, so that nobody is misled by what a terminal or a browser would make of it.
                c if c.is_control() || misleads(c) => {
                    let _ = write!(self.0, "\\u{{{:x}}}", c as u32);
                }
                c => self.0.push(c),
            }
        }
        self
    }

    /// A number in an attribute of a drawing.
    pub(super) fn number(&mut self, number: f64) -> &mut Self {
        let _ = write!(self.0, "{:.1}", if number.is_finite() { number } else { 0.0 });
        self
    }

    /// `<tag class="class">text</tag>`.
    pub(super) fn element(&mut self, tag: &'static str, class: &'static str, text: &str) -> &mut Self {
        self.raw("<").raw(tag);
        if !class.is_empty() {
            self.raw(" class=\"").raw(class).raw("\"");
        }
        self.raw(">").text(text).raw("</").raw(tag).raw(">")
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Turns the direction of the text around it, or is not seen.
fn misleads(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A time for people.
pub(super) fn duration(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms < 0.0 => format!("−{}", duration(-ms)),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 60_000.0 => format!("{:.2} s", ms / 1000.0),
        ms if ms < 3_600_000.0 => format!(
            "{:.0} min {:02.0} s",
            (ms / 60_000.0).floor(),
            (ms % 60_000.0 / 1000.0).floor()
        ),
        ms => format!(
            "{:.0} h {:02.0} min",
            (ms / 3_600_000.0).floor(),
            (ms % 3_600_000.0 / 60_000.0).floor()
        ),
    }
}

/// A size for people.
pub(super) fn bytes(size: f64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if size < 1024.0 {
        return format!("{size:.0} B");
    }
    let (mut size, mut unit) = (size / 1024.0, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// Milliseconds from one time to another.
pub(super) fn between(from: jiff::Timestamp, to: jiff::Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let mut html = Html::new();
        html.element("td", "a", "<script>\"x\" & 'y'</script>\n\u{1b}[2J\u{202e}é\u{0}");
        assert_eq!(
            html.finish(),
            "<td class=\"a\">&lt;script&gt;&quot;x&quot; &amp; &#39;y&#39;&lt;/script&gt;\n\\u{1b}[2J\\u{202e}é\\u{0}</td>"
        );
    }

    #[test]
    fn sizes_and_times_are_for_people() {
        for (size, text) in [(0.0, "0 B"), (1023.0, "1023 B"), (1536.0, "1.5 KiB"), (3e9, "2.8 GiB")] {
            assert_eq!(bytes(size), text);
        }
        for (ms, text) in [
            (0.0, "0.0 ms"),
            (12.3, "12 ms"),
            (1234.0, "1.23 s"),
            (61_000.0, "1 min 01 s"),
            (3_660_000.0, "1 h 01 min"),
            (-5.0, "−5.0 ms"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }
}
