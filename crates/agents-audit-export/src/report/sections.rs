//! The parts of the page but the timeline and the list of events.

use agents_core::EventType;
use serde_json::{Map, Value};

use super::{
    ChainVerdict, SessionReport,
    html::{Html, between, bytes, duration},
};

/// More rows than anybody reads; the trail has all.
const ROWS: usize = 1000;

impl SessionReport {
    pub(super) fn header(&self, page: &mut Html) {
        let status = self.status();
        let agent = self
            .info_text("agent_id")
            .or_else(|| self.of_result("agent_id")?.as_str());
        let recorded = self.events.iter().find_map(|event| event.agent_id.as_ref());
        let agent = agent.or(recorded.map(AsRef::as_ref)).unwrap_or("unknown agent");
        page.raw("<header>\n<p class=\"eyebrow\">Session report</p>\n<h1>")
            .text(agent)
            .raw("</h1>\n");
        page.raw("<p class=\"ids\"><code>")
            .text(self.session_id.as_str())
            .raw("</code></p>\n");
        page.raw("<p class=\"badges\">");
        let (class, mark) = match status {
            "completed" => ("badge good", "✓"),
            "failed" | "refused" => ("badge bad", "✕"),
            "lost" | "terminated" => ("badge warn", "!"),
            _ => ("badge", "·"),
        };
        badge(page, class, mark, status);
        if let Some(chain) = &self.chain {
            match chain.verdict {
                ChainVerdict::Intact => badge(page, "badge good", "✓", "trail intact"),
                ChainVerdict::Broken => badge(page, "badge bad", "✕", "trail tampered with"),
                ChainVerdict::Unknown => badge(page, "badge warn", "!", "trail not verified"),
            }
        }
        page.raw("</p>\n");
        if let Some(chain) = &self.chain {
            page.element("p", "chain", &chain.summary).raw("\n");
        }
        if let Some(error) = self.of_result("error").and_then(Value::as_str) {
            page.raw("<div class=\"alert\" role=\"note\"><b>What went wrong</b> ")
                .text(error)
                .raw("</div>\n");
        }
        if let Some(command) = self.command() {
            page.raw("<pre class=\"command\" tabindex=\"0\" aria-label=\"command\">")
                .text(&command)
                .raw("</pre>\n");
        }
        page.raw("<dl class=\"facts\">\n");
        for (name, value) in self.facts() {
            page.raw("<div>")
                .element("dt", "", name)
                .element("dd", "", &value)
                .raw("</div>\n");
        }
        page.raw("</dl>\n<nav aria-label=\"Sections\"><a href=\"#timeline\">Timeline</a><a href=\"#resources\">Resources</a>");
        page.raw("<a href=\"#decisions\">Policy</a><a href=\"#artifacts\">Artifacts</a><a href=\"#output\">Output</a>");
        page.raw("<a href=\"#events\">Events</a></nav>\n</header>\n");
    }

    fn info_text(&self, key: &str) -> Option<&str> {
        self.info.get(key)?.as_str()
    }

    fn status(&self) -> &str {
        let of_info = self.info_text("status");
        let of_result = || self.of_result("status")?.as_str();
        // Nobody refuses a session later than its result says.
        match self.result.get("status").and_then(Value::as_str) {
            Some("refused") => "refused",
            _ => of_info.or_else(of_result).unwrap_or("not closed"),
        }
    }

    fn command(&self) -> Option<String> {
        let recorded = || self.first(EventType::SessionCreated)?.payload.get("command");
        match self.info.get("command").or_else(recorded)? {
            Value::Array(words) if !words.is_empty() => {
                let words: Vec<_> = words.iter().filter_map(Value::as_str).map(quoted).collect();
                Some(words.join(" "))
            }
            Value::String(line) => Some(line.clone()),
            _ => None,
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = Vec::new();
        let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
        let ending = self.of_result("ending");
        let code = self.result.get("exit_code").and_then(Value::as_i64);
        let code = code.or_else(|| ending?.get("code")?.as_i64());
        add(
            "exit code",
            Some(code.map_or_else(|| "none".to_owned(), |code| code.to_string())),
        );
        add(
            "ending",
            ending.and_then(|ending| Some(ending.get("kind")?.as_str()?.replace('_', " "))),
        );
        let total = self
            .of_result("timings_ms")
            .and_then(|timings| timings.get("total")?.as_f64());
        let recorded = || Some(between(self.started()?, self.ended()?));
        add("duration", total.or_else(recorded).map(duration));
        add("started", self.started().map(when));
        add("ended", self.ended().map(when));
        let created = self.first(EventType::SessionCreated);
        let fact = |key: &str| created.and_then(|event| event.payload.get(key)?.as_str());
        add(
            "runtime",
            self.info_text("runtime").or_else(|| fact("runtime")).map(str::to_owned),
        );
        add(
            "image",
            self.info_text("image").or_else(|| fact("image")).map(str::to_owned),
        );
        add(
            "asked for by",
            self.events.iter().find_map(|event| event.user_id.clone()),
        );
        let attempts = self.all(EventType::AgentRetry).count() + 1;
        add("attempts", (attempts > 1).then(|| attempts.to_string()));
        let trace = created.and_then(|event| event.payload.get("trace_id")?.as_str());
        add("trace", trace.map(str::to_owned));
        facts
    }

    pub(super) fn resources(&self, page: &mut Html) {
        open(
            page,
            "<section id=\"resources\" aria-labelledby=\"h-resources\">",
            "h-resources",
            "Resources",
        );
        let usage = |key: &str| self.result.get("usage").and_then(|usage| usage.get(key)?.as_f64());
        let policy = self.policy();
        let limit = |key: &str| policy.and_then(|policy| policy.get(key)?.as_f64());
        let ran = self
            .of_result("timings_ms")
            .and_then(|timings| timings.get("run")?.as_f64());
        page.raw("<div class=\"cards\">\n");
        match (usage("cpu_seconds"), limit("cpu_cores")) {
            (Some(seconds), cores) => {
                let average = ran.filter(|ms| *ms > 0.0).map(|ms| seconds * 1000.0 / ms);
                let note = match (average, cores) {
                    (Some(average), Some(cores)) => format!("{average:.2} of {cores} cores on average"),
                    (Some(average), None) => format!("{average:.2} cores on average, no limit"),
                    _ => String::new(),
                };
                let share = average.zip(cores).map(|(average, cores)| average / cores);
                card(page, "CPU time", &duration(seconds * 1000.0), &note, share);
            }
            (None, _) => card(page, "CPU time", "–", "the runtime does not say", None),
        }
        match (usage("memory_peak_bytes"), limit("memory_mb")) {
            (Some(peak), Some(limit)) => {
                let limit = limit * 1048576.0;
                card(
                    page,
                    "Peak memory",
                    &bytes(peak),
                    &format!("of {}", bytes(limit)),
                    Some(peak / limit),
                );
            }
            (Some(peak), None) => card(page, "Peak memory", &bytes(peak), "no limit", None),
            (None, _) => card(page, "Peak memory", "–", "the runtime does not say", None),
        }
        let stored = self.all(EventType::ArtifactStored);
        // Not `sum`, whose nothing is -0.
        let size = stored
            .filter_map(|event| event.payload.get("size")?.as_f64())
            .fold(0.0, |sum, size| sum + size);
        let share = limit("max_output_bytes").map(|limit| size / limit);
        card(
            page,
            "Stored",
            &bytes(size),
            &format!("{} artifacts", self.all(EventType::ArtifactStored).count()),
            share,
        );
        page.raw("</div>\n");
        let exceeded: Vec<_> = self.all(EventType::ResourceLimitExceeded).collect();
        if !exceeded.is_empty() {
            page.raw("<ul class=\"plain\">\n");
            for event in exceeded.iter().take(ROWS) {
                page.raw("<li><span class=\"mark warn\">!</span> ");
                let fact = |key: &str| event.payload.get(key).map(plain).unwrap_or_default();
                page.text(&fact("violation_type").replace('_', " "));
                if let Some(percent) = event.payload.get("percent").and_then(Value::as_f64) {
                    page.text(&format!(
                        " at {percent:.0} %, threshold {} %",
                        fact("threshold_percent")
                    ));
                }
                if let Some(start) = self.started() {
                    page.element(
                        "span",
                        "dim",
                        &format!(" after {}", duration(between(start, event.timestamp))),
                    );
                }
                page.raw("</li>\n");
            }
            page.raw("</ul>\n");
        }
        self.curves(page);
        page.raw("</section>\n");
    }

    pub(super) fn policy(&self) -> Option<&Map<String, Value>> {
        self.last(EventType::PolicyValidated)?
            .payload
            .get("policy")?
            .as_object()
    }

    pub(super) fn decisions(&self, page: &mut Html) {
        open(
            page,
            "<section id=\"decisions\" aria-labelledby=\"h-decisions\">",
            "h-decisions",
            "Policy",
        );
        let fact = |event: &agents_core::AuditEvent, key: &str| event.payload.get(key).map(plain).unwrap_or_default();
        for event_type in [EventType::PolicyViolation, EventType::SecurityViolation] {
            for event in self.all(event_type).take(ROWS) {
                page.raw("<div class=\"alert\" role=\"note\"><b>")
                    .text(&event_type.as_str().replace('_', " "));
                page.raw("</b> ").text(&fact(event, "error")).raw("</div>\n");
            }
        }
        let clamped: Vec<_> = self.all(EventType::PolicyCapClamped).collect();
        if clamped.is_empty() {
            page.raw("<p class=\"note\">Nothing was narrowed by the validator.</p>\n");
        } else {
            page.raw("<h3>Narrowed</h3>\n<div class=\"scroll\"><table><thead><tr><th>field</th><th>asked for</th>");
            page.raw("<th>in force</th><th>rule</th></tr></thead><tbody>\n");
            for event in clamped.iter().take(ROWS) {
                page.raw("<tr>")
                    .element("th", "", &fact(event, "field"))
                    .element("td", "was", &fact(event, "from"));
                page.element("td", "", &fact(event, "to"))
                    .element("td", "code", &fact(event, "code"))
                    .raw("</tr>\n");
            }
            page.raw("</tbody></table></div>\n");
        }
        let validated = self.last(EventType::PolicyValidated);
        let warnings = validated.and_then(|event| event.payload.get("warnings")?.as_array());
        if let Some(warnings) = warnings.filter(|warnings| !warnings.is_empty()) {
            page.raw("<h3>Warnings</h3>\n<ul class=\"plain\">\n");
            for warning in warnings.iter().take(ROWS) {
                page.raw("<li><span class=\"mark warn\">!</span> ")
                    .text(&plain(warning))
                    .raw("</li>\n");
            }
            page.raw("</ul>\n");
        }
        let created = self.last(EventType::ContainerCreated);
        let compared = created.and_then(|event| event.payload.get("effective")?.as_array());
        if let Some(compared) = compared.filter(|compared| !compared.is_empty()) {
            page.raw(
                "<h3>Checked in the container, before the agent ran</h3>\n<div class=\"scroll\"><table><thead><tr>",
            );
            page.raw("<th></th><th>field</th><th>asked for</th><th>in force</th></tr></thead><tbody>\n");
            for row in compared.iter().take(ROWS) {
                let field = row.get("field").map(plain).unwrap_or_default();
                let cell = |key: &str| compared_value(&field, &row.get(key).map(plain).unwrap_or_default());
                page.raw(match row.get("holds").and_then(Value::as_bool) {
                    Some(true) => "<tr><td><span class=\"mark good\" title=\"as strict as asked for\">✓</span></td>",
                    _ => "<tr><td><span class=\"mark bad\" title=\"weaker than asked for\">✕</span></td>",
                });
                page.element("th", "", &field).element("td", "", &cell("requested"));
                page.element("td", "", &cell("effective")).raw("</tr>\n");
            }
            page.raw("</tbody></table></div>\n");
        }
        if let Some(policy) = self.policy() {
            page.raw("<details><summary>The whole policy in force</summary>\n<div class=\"scroll\"><table><tbody>\n");
            for (field, value) in policy {
                page.raw("<tr>")
                    .element("th", "", field)
                    .element("td", "code", &plain(value))
                    .raw("</tr>\n");
            }
            page.raw("</tbody></table></div></details>\n");
        }
        page.raw("</section>\n");
    }

    pub(super) fn artifacts(&self, page: &mut Html) {
        open(
            page,
            "<section id=\"artifacts\" aria-labelledby=\"h-artifacts\">",
            "h-artifacts",
            "Artifacts",
        );
        let stored: Vec<_> = self.all(EventType::ArtifactStored).collect();
        if stored.is_empty() {
            page.raw("<p class=\"note\">None were stored.</p>\n");
        } else {
            page.raw(
                "<div class=\"scroll\"><table><thead><tr><th>name</th><th class=\"num\">size</th><th>SHA-256</th>",
            );
            page.raw("<th>where</th></tr></thead><tbody>\n");
            for event in stored.iter().take(ROWS) {
                let fact = |key: &str| event.payload.get(key).map(plain).unwrap_or_default();
                let size = event
                    .payload
                    .get("size")
                    .and_then(Value::as_f64)
                    .map(bytes)
                    .unwrap_or_default();
                page.raw("<tr>")
                    .element("th", "", &fact("name"))
                    .element("td", "num", &size);
                page.element("td", "code hash", &fact("sha256"))
                    .element("td", "code", &fact("uri"))
                    .raw("</tr>\n");
            }
            page.raw("</tbody></table></div>\n");
            left_out(page, stored.len(), "artifacts");
        }
        let refused = self.result.get("refused_artifacts").and_then(Value::as_array);
        if let Some(refused) = refused.filter(|refused| !refused.is_empty()) {
            page.raw("<h3>Not stored</h3>\n<div class=\"scroll\"><table><thead><tr><th>name</th><th>why</th></tr></thead><tbody>\n");
            for row in refused.iter().take(ROWS) {
                let cell = |key: &str| row.get(key).map(plain).unwrap_or_default();
                page.raw("<tr>")
                    .element("th", "", &cell("name"))
                    .element("td", "", &cell("reason"))
                    .raw("</tr>\n");
            }
            page.raw("</tbody></table></div>\n");
            left_out(page, refused.len(), "refused artifacts");
        }
        page.raw("</section>\n");
    }

    pub(super) fn printed(&self, page: &mut Html) {
        open(
            page,
            "<section id=\"output\" aria-labelledby=\"h-output\">",
            "h-output",
            "Output",
        );
        if self.output.is_empty() {
            page.raw(
                "<p class=\"note\">The agent printed nothing, or its log is not on this machine.</p>\n</section>\n",
            );
            return;
        }
        page.raw("<pre class=\"output\" tabindex=\"0\" aria-label=\"output of the agent\">");
        for piece in &self.output {
            if piece.after_gap {
                page.raw("<span class=\"gap\">");
                page.text(&format!("\n… {} are left out …\n", bytes(self.omitted as f64)))
                    .raw("</span>");
            }
            page.element("span", if piece.stderr { "err" } else { "" }, &piece.text);
        }
        page.raw("</pre>\n");
        if self.output.iter().any(|piece| piece.stderr) {
            page.raw("<p class=\"note\"><span class=\"swatch err\"></span> standard error</p>\n");
        }
        page.raw("</section>\n");
    }

    pub(super) fn footer(&self, page: &mut Html) {
        page.raw("<footer>Made by Isolated Agents ")
            .text(env!("CARGO_PKG_VERSION"))
            .raw(" on ");
        page.text(&format!("{:.0}", self.made_at));
        if !self.location.is_empty() {
            page.raw(" from <code>").text(&self.location).raw("</code>");
        }
        page.raw(". This page loads nothing and sends nothing.</footer>\n");
    }
}

fn open(page: &mut Html, section: &'static str, id: &'static str, title: &'static str) {
    page.raw(section)
        .raw("\n<h2 id=\"")
        .raw(id)
        .raw("\">")
        .raw(title)
        .raw("</h2>\n");
}

fn badge(page: &mut Html, class: &'static str, mark: &'static str, text: &str) {
    page.raw("<span class=\"")
        .raw(class)
        .raw("\"><span aria-hidden=\"true\">")
        .raw(mark)
        .raw("</span> ");
    page.text(text).raw("</span>");
}

fn card(page: &mut Html, name: &'static str, value: &str, note: &str, share: Option<f64>) {
    page.raw("<div class=\"card\"><span class=\"dim\">")
        .raw(name)
        .raw("</span>")
        .element("b", "", value);
    if let Some(share) = share {
        // A `meter` is drawn by the browser, and read out by it.
        page.raw("<meter min=\"0\" max=\"100\" high=\"90\" value=\"")
            .number(share.clamp(0.0, 1.0) * 100.0)
            .raw("\">");
        page.text(&format!("{:.0} %", share * 100.0)).raw("</meter>");
    }
    page.element("span", "dim", note).raw("</div>\n");
}

pub(super) fn left_out(page: &mut Html, count: usize, what: &'static str) {
    if count > ROWS {
        page.raw("<p class=\"note\">")
            .text(&format!("{} further ", count - ROWS))
            .raw(what);
        page.raw(" are left out here; the trail has all of them.</p>\n");
    }
}

/// A value for people: text without quotes, lists with commas.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) if !items.iter().any(|item| item.is_object() || item.is_array()) => {
            items.iter().map(plain).collect::<Vec<_>>().join(", ")
        }
        Value::Object(map) if map.is_empty() => "none".to_owned(),
        other => other.to_string(),
    }
}

/// What was compared, for people: sizes are bytes there, and text has quotes.
fn compared_value(field: &str, value: &str) -> String {
    match value.parse::<u64>() {
        Ok(size) if field.ends_with("_mb") => bytes(size as f64),
        _ => value.trim_matches('"').to_owned(),
    }
}

fn when(time: jiff::Timestamp) -> String {
    format!("{time:.3}").replace('T', " ").replace('Z', " UTC")
}

/// As a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
