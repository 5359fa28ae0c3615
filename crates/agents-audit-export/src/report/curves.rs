//! What a session used over time, drawn.

use agents_core::EventType;
use serde_json::Value;

use super::{
    SessionReport,
    html::{Html, bytes, duration},
};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 120.0;
/// Room for the axis below.
const FOOT: f64 = 20.0;
const HEAD: f64 = 8.0;
/// Room for the mark of the first and the last reading.
const EDGE: f64 = 5.0;

/// One quantity over time.
struct Curve {
    title: &'static str,
    class: &'static str,
    /// Milliseconds since the session began, and the value then.
    points: Vec<(f64, f64)>,
    /// What the policy allows.
    limit: Option<f64>,
    words: fn(f64) -> String,
}

impl SessionReport {
    /// The readings on record: written with the end of the session, at the policy's `resource_monitor_interval`.
    fn samples(&self, key: &str) -> Vec<(f64, f64)> {
        let rows = self
            .last(EventType::SessionClosed)
            .and_then(|event| event.payload.get("resource_samples")?.as_array());
        let number = |row: &Value, key: &str| row.get(key)?.as_f64().filter(|number| *number >= 0.0);
        let mut points: Vec<_> = rows
            .into_iter()
            .flatten()
            .filter_map(|row| Some((number(row, "at_ms")?, number(row, key)?)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    pub(super) fn curves(&self, page: &mut Html) {
        let limit = |key: &str| self.policy().and_then(|policy| policy.get(key)?.as_f64());
        let curves = [
            Curve {
                title: "CPU",
                class: "p1",
                points: self.samples("cpu_percent"),
                limit: limit("cpu_cores").map(|cores| cores * 100.0),
                words: |percent| format!("{percent:.0} % of a core"),
            },
            Curve {
                title: "Memory",
                class: "p2",
                points: self.samples("memory_mb"),
                limit: limit("memory_mb"),
                words: |mib| bytes(mib * 1048576.0),
            },
            Curve {
                title: "Processes and threads",
                class: "p0",
                points: self.samples("pids"),
                limit: limit("pids_limit"),
                words: |count| format!("{count:.0}"),
            },
        ];
        if curves.iter().all(|curve| curve.points.is_empty()) {
            page.raw(
                "<p class=\"note\">Totals of the whole session, which left no readings over time: it ended before the ",
            );
            page.raw("first one was due, or its end is not on record.</p>\n");
            return;
        }
        for curve in curves.iter().filter(|curve| !curve.points.is_empty()) {
            curve.draw(page);
        }
    }
}

impl Curve {
    fn draw(&self, page: &mut Html) {
        let most = self.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let last = self.points.iter().map(|(at, _)| *at).fold(1.0, f64::max);
        // A limit that is far away would press the curve flat.
        let limit = self.limit.filter(|limit| *limit > 0.0 && *limit <= most * 4.0);
        let top = most.max(limit.unwrap_or(0.0)).max(f64::MIN_POSITIVE) * 1.05;
        let x = |at: f64| at / last * (WIDTH - 2.0 * EDGE) + EDGE;
        let y = |value: f64| HEAD + (1.0 - value / top) * (HEIGHT - HEAD - FOOT);
        page.element("h3", "", self.title);
        page.raw("<div class=\"scroll\"><svg class=\"curve\" viewBox=\"0 0 1000 120\" role=\"img\" aria-label=\"");
        let allowed = self.limit.map(|limit| format!(", {} allowed", (self.words)(limit)));
        let most = format!(
            "at most {}{}",
            (self.words)(most),
            allowed.unwrap_or_else(|| ", no limit".to_owned())
        );
        page.text(&format!("{} over {}: {most}", self.title, duration(last)))
            .raw("\">\n");
        page.raw("<line class=\"grid\" x1=\"0\" x2=\"1000\" y1=\"");
        page.number(y(0.0)).raw("\" y2=\"").number(y(0.0)).raw("\"/>\n");
        if let Some(limit) = limit {
            page.raw("<line class=\"limit\" x1=\"0\" x2=\"1000\" y1=\"");
            page.number(y(limit)).raw("\" y2=\"").number(y(limit)).raw("\"/>\n");
        }
        page.raw("<polyline class=\"").raw(self.class).raw("\" points=\"");
        for (at, value) in &self.points {
            page.number(x(*at)).raw(",").number(y(*value)).raw(" ");
        }
        page.raw("\"/>\n");
        for (at, value) in &self.points {
            page.raw("<circle class=\"").raw(self.class).raw("\" r=\"4\" cx=\"");
            page.number(x(*at)).raw("\" cy=\"").number(y(*value)).raw("\"><title>");
            page.text(&format!("{} after {}", (self.words)(*value), duration(*at)))
                .raw("</title></circle>\n");
        }
        page.raw("<text y=\"116\" x=\"0\">").text(&most).raw("</text>");
        page.raw("<text y=\"116\" x=\"1000\" text-anchor=\"end\">")
            .text(&duration(last))
            .raw("</text>\n</svg></div>\n");
    }
}
