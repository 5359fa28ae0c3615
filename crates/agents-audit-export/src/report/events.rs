//! The list of events.

use agents_core::{AuditEvent, Severity};
use serde_json::Value;

use super::{
    SessionReport,
    html::{Html, between, duration},
    sections::plain,
};

/// More than these are cut in the middle, so that the page opens.
const EVENTS: usize = 5000;
/// A longer fact is only shown as a whole.
const LONGEST: usize = 80;

impl SessionReport {
    pub(super) fn event_list(&self, page: &mut Html) {
        page.raw("<section id=\"events\" aria-labelledby=\"h-events\">\n<h2 id=\"h-events\">Events <span class=\"dim\" id=\"count\">");
        page.text(&self.events.len().to_string()).raw("</span></h2>\n");
        // Of use only with the script, which shows it.
        page.raw("<form class=\"filter\" id=\"filter\" hidden role=\"search\"><label>Find <input type=\"search\" id=\"words\" ");
        page.raw(
            "placeholder=\"type, name, hash …\" autocomplete=\"off\"></label><label>At least <select id=\"least\">",
        );
        page.raw(
            "<option value=\"0\">debug</option><option value=\"1\">info</option><option value=\"2\">warning</option>",
        );
        page.raw("<option value=\"3\">error</option><option value=\"4\">critical</option></select></label>");
        page.raw("<span class=\"dim hint\"><kbd>/</kbd> to find, <kbd>Esc</kbd> to clear</span></form>\n");
        page.raw("<div class=\"scroll\"><table class=\"events\"><thead><tr><th class=\"num\">after</th><th>event</th>");
        page.raw("<th>facts</th></tr></thead><tbody id=\"rows\">\n");
        let start = self.started();
        let total = self.events.len();
        for (index, event) in self.events.iter().enumerate() {
            let cut = total > EVENTS && (EVENTS / 2..total - EVENTS / 2).contains(&index);
            if cut {
                if index == EVENTS / 2 {
                    page.raw("<tr class=\"gap\"><td colspan=\"3\">");
                    page.text(&format!(
                        "{} events are left out here; the trail has all of them",
                        total - EVENTS
                    ));
                    page.raw("</td></tr>\n");
                }
                continue;
            }
            let after = start.map(|start| duration(between(start, event.timestamp)));
            row(page, index, event, &after.unwrap_or_default());
        }
        page.raw("</tbody></table></div>\n<p class=\"note\" id=\"none\" hidden>No event matches.</p>\n</section>\n");
    }
}

fn row(page: &mut Html, index: usize, event: &AuditEvent, after: &str) {
    let (level, class) = match event.severity {
        Severity::Debug => ("0", "s-debug"),
        Severity::Info => ("1", "s-info"),
        Severity::Warning => ("2", "s-warning"),
        Severity::Error => ("3", "s-error"),
        Severity::Critical => ("4", "s-error"),
    };
    page.raw("<tr id=\"e")
        .text(&index.to_string())
        .raw("\" class=\"")
        .raw(class)
        .raw("\" data-level=\"")
        .raw(level);
    page.raw("\"><td class=\"num\" title=\"")
        .text(&event.timestamp.to_string())
        .raw("\">")
        .text(after)
        .raw("</td><th>");
    page.text(event.event_type.as_str());
    if event.severity >= Severity::Warning {
        page.raw(" <span class=\"level\">")
            .text(event.severity.as_str())
            .raw("</span>");
    }
    page.raw("</th><td>");
    let (short, long): (Vec<_>, Vec<_>) = event
        .payload
        .iter()
        .filter(|(_, value)| !value.is_null())
        .partition(|(_, value)| !value.is_object() && plain(value).chars().count() <= LONGEST);
    for (key, value) in short {
        page.raw("<span class=\"fact\"><span class=\"dim\">")
            .text(key)
            .raw("</span> ")
            .text(&plain(value))
            .raw("</span> ");
    }
    for (key, value) in long {
        let whole = match value {
            Value::String(text) => text.clone(),
            other => serde_json::to_string_pretty(other).unwrap_or_default(),
        };
        page.raw("<details><summary>")
            .text(key)
            .raw("</summary><pre>")
            .text(&whole)
            .raw("</pre></details>");
    }
    page.raw("<details class=\"record\"><summary>record</summary><pre>");
    page.text(&format!(
        "event_id   {}\ntimestamp  {}",
        event.event_id, event.timestamp
    ));
    if let Some(chain) = &event.chain {
        page.text(&format!(
            "\nwriter     {}\nsequence   {}\nprevious   {}\nhash       {}",
            chain.writer, chain.sequence, chain.previous, chain.hash
        ));
    }
    page.raw("</pre></details></td></tr>\n");
}
