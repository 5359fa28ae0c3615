//! The course of a session, drawn.

use agents_core::Severity;
use serde_json::Value;

use super::{
    SessionReport,
    html::{Html, between, duration},
};

/// Each phase, its class in the style, and what it is.
const PHASES: [(&str, &str, &str); 5] = [
    ("validate", "p0", "the policy was decided"),
    ("provision", "p1", "the container was made and checked"),
    ("run", "p2", "the agent ran"),
    ("collect", "p3", "the output was taken"),
    ("destroy", "p4", "the container was removed"),
];

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
/// Marks that are nearer than this are one.
const NEAR: f64 = 7.0;

impl SessionReport {
    pub(super) fn timeline(&self, page: &mut Html) {
        page.raw("<section id=\"timeline\" aria-labelledby=\"h-timeline\">\n<h2 id=\"h-timeline\">Timeline</h2>\n");
        let timings = self.of_result("timings_ms").and_then(Value::as_object);
        let time = |name: &str| timings.and_then(|timings| timings.get(name)?.as_f64());
        let phases: Vec<_> = PHASES
            .iter()
            .filter_map(|phase| Some((phase, time(phase.0)?)))
            .collect();
        let start = self.started();
        let offset = |event: &agents_core::AuditEvent| start.map_or(0.0, |start| between(start, event.timestamp));
        let recorded = self.events.iter().map(&offset).fold(0.0, f64::max);
        let span = phases.iter().map(|(_, ms)| ms).sum::<f64>();
        let whole = time("total").unwrap_or(0.0).max(recorded).max(span).max(0.001);
        let x = |ms: f64| LEFT + (ms / whole).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);

        page.raw("<div class=\"scroll\"><svg class=\"timeline\" viewBox=\"0 0 1000 132\" role=\"img\" aria-label=\"");
        page.text(&format!(
            "{} from the beginning to the end, {} events",
            duration(whole),
            self.events.len()
        ));
        page.raw("\">\n");
        for tick in ticks(whole) {
            page.raw("<line class=\"grid\" y1=\"10\" y2=\"104\" x1=\"")
                .number(x(tick))
                .raw("\" x2=\"");
            page.number(x(tick))
                .raw("\"/><text class=\"tick\" y=\"122\" x=\"")
                .number(x(tick))
                .raw("\" text-anchor=\"");
            page.raw(if tick == 0.0 { "start" } else { "middle" })
                .raw("\">")
                .text(&axis(tick))
                .raw("</text>\n");
        }
        page.raw(
            "<text class=\"lane\" x=\"0\" y=\"37\">phases</text><text class=\"lane\" x=\"0\" y=\"81\">events</text>\n",
        );
        let mut at = 0.0;
        for ((name, class, what), ms) in &phases {
            let (from, to) = (x(at), x(at + ms));
            page.raw("<rect class=\"")
                .raw(class)
                .raw("\" y=\"20\" height=\"26\" rx=\"2\" x=\"")
                .number(from);
            // A gap tells neighbours apart, and the shortest can still be seen.
            page.raw("\" width=\"")
                .number((to - from - 1.5).max(1.5))
                .raw("\"><title>");
            page.text(&format!("{name}: {} ({what})", duration(*ms)))
                .raw("</title></rect>\n");
            if to - from > 64.0 {
                page.raw("<text class=\"label\" y=\"37\" x=\"")
                    .number(from + 8.0)
                    .raw("\">")
                    .text(name)
                    .raw("</text>\n");
            }
            at += ms;
        }
        page.raw("<line class=\"axis\" y1=\"76\" y2=\"76\" x1=\"")
            .number(LEFT)
            .raw("\" x2=\"")
            .number(WIDTH - RIGHT)
            .raw("\"/>\n");
        self.marks(page, &|ms| x(ms), &offset);
        page.raw("</svg></div>\n");

        if phases.is_empty() {
            page.raw(
                "<p class=\"note\">How long each phase took is not on record, since the session was not closed.</p>\n",
            );
        } else {
            page.raw("<ul class=\"legend\">");
            for ((name, class, what), ms) in &phases {
                page.raw("<li><span class=\"swatch ")
                    .raw(class)
                    .raw("\"></span><b>")
                    .text(name)
                    .raw("</b> <span class=\"num\">");
                page.text(&duration(*ms))
                    .raw("</span> <span class=\"dim\">")
                    .text(what)
                    .raw("</span></li>");
            }
            page.raw("</ul>\n");
            if self.all(agents_core::EventType::AgentRetry).next().is_some() {
                page.raw(
                    "<p class=\"note\">The agent was tried more than once; the phases of all attempts add up.</p>\n",
                );
            }
        }
        page.raw("</section>\n");
    }

    fn marks(&self, page: &mut Html, x: &dyn Fn(f64) -> f64, offset: &dyn Fn(&agents_core::AuditEvent) -> f64) {
        // Neighbours become one mark that is as grave as the gravest and leads to it.
        let mut marks: Vec<(f64, usize, usize)> = Vec::new();
        let mut order: Vec<usize> = (0..self.events.len()).collect();
        order.sort_by(|a, b| offset(&self.events[*a]).total_cmp(&offset(&self.events[*b])));
        for index in order {
            let at = x(offset(&self.events[index]));
            match marks.last_mut() {
                Some((last, gravest, count)) if at - *last < NEAR => {
                    *count += 1;
                    if self.events[index].severity > self.events[*gravest].severity {
                        *gravest = index;
                    }
                }
                _ => marks.push((at, index, 1)),
            }
        }
        for (at, index, count) in marks {
            let event = &self.events[index];
            let more = if count > 1 {
                format!(" and {} more", count - 1)
            } else {
                String::new()
            };
            let title = format!("{}: {}{more}", axis(offset(event)), event.event_type);
            page.raw("<a href=\"#e")
                .text(&index.to_string())
                .raw("\" aria-label=\"")
                .text(&title)
                .raw("\"><title>");
            page.text(&title).raw("</title>");
            // Shape and colour say the same, for those who see no colours.
            match event.severity {
                Severity::Debug | Severity::Info => {
                    page.raw("<circle class=\"m-info\" cy=\"76\" cx=\"")
                        .number(at)
                        .raw("\" r=\"");
                    page.number(if count > 1 { 5.5 } else { 4.0 }).raw("\"/>");
                }
                Severity::Warning => {
                    page.raw("<path class=\"m-warning\" transform=\"translate(").number(at);
                    page.raw(" 76)\" d=\"M0 -8 L8 6 L-8 6 Z\"/>");
                }
                Severity::Error | Severity::Critical => {
                    page.raw("<path class=\"m-error\" transform=\"translate(").number(at);
                    page.raw(" 76)\" d=\"M0 -8 L8 0 L0 8 L-8 0 Z\"/>");
                }
            }
            page.raw("</a>\n");
        }
    }
}

/// Round times along an axis.
fn ticks(whole: f64) -> Vec<f64> {
    const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
    const CLOCK: [f64; 7] = [60e3, 120e3, 300e3, 600e3, 1800e3, 3600e3, 7200e3];
    let rough = whole / 7.0;
    let step = if rough > 30e3 {
        CLOCK
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or_else(|| (rough / 7200e3).ceil() * 7200e3)
    } else {
        let magnitude = 10_f64.powf(rough.log10().floor());
        STEPS
            .into_iter()
            .map(|step| step * magnitude)
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * magnitude)
    };
    let mut ticks = Vec::new();
    let mut at = 0.0;
    while at <= whole && ticks.len() < 50 {
        ticks.push(at);
        at += step;
    }
    ticks
}

fn axis(milliseconds: f64) -> String {
    match milliseconds {
        0.0 => "0".to_owned(),
        ms if ms.abs() >= 1000.0 && ms.abs() < 60_000.0 => format!("{} s", trim(ms / 1000.0)),
        ms if ms.abs() < 1000.0 => format!("{} ms", trim(ms)),
        ms => duration(ms),
    }
}

fn trim(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for whole in [0.001, 0.7, 12.0, 43.0, 999.0, 12_345.0, 700_000.0, 9e7, 4e9] {
            let ticks = ticks(whole);
            assert!((2..=12).contains(&ticks.len()), "{whole}: {ticks:?}");
        }
        assert_eq!(ticks(43.0), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(
            (axis(10.0), axis(1500.0), axis(0.25)),
            ("10 ms".into(), "1.5 s".into(), "0.25 ms".into())
        );
    }
}
