//! What a person sees while an agent runs: a line a phase, and a bar while an image is pulled.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use agents_sdk::{
    core::ProvisionProgress,
    session::{AgentResult, Phase, PhaseState, RunStatus},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::OwoColorize;

use crate::{
    output::{self, one_line},
    units,
};

/// How many artifacts are listed at the end.
const LISTED: usize = 20;

#[derive(Debug)]
pub(crate) struct Progress {
    /// Whether phases are shown.
    shown: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bar: Option<ProgressBar>,
    /// Bytes so far and in all, of each layer.
    layers: HashMap<String, (u64, Option<u64>)>,
    /// The agent's output has left the cursor within a line.
    within_line: bool,
    /// The terminal is the agent's; lines wait.
    held: Option<Vec<String>>,
}

impl Progress {
    pub(crate) fn new(verbose: bool, quiet: bool) -> Self {
        Self {
            shown: !quiet && (verbose || std::io::stderr().is_terminal()),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn phase(&self, phase: Phase, state: PhaseState) {
        let PhaseState::End(time) = state else {
            return;
        };
        if phase == Phase::Provision {
            self.end_bar();
        }
        self.line(
            &format!("  {:<10}{}", phase.as_str(), units::duration(time))
                .dimmed()
                .to_string(),
        );
    }

    pub(crate) fn retry(&self, attempt: u32, reason: &str) {
        self.line(&format!(
            "  {:<10}attempt {attempt}, since {}",
            "retry",
            one_line(reason)
        ));
    }

    pub(crate) fn pull(&self, progress: &ProvisionProgress) {
        if !self.shown {
            return;
        }
        match progress {
            ProvisionProgress::Pulling { layer, done, total } => {
                let mut state = self.state();
                state.layers.insert(layer.clone(), (*done, *total));
                let done = state.layers.values().map(|layer| layer.0).sum();
                let total = state.layers.values().map(|layer| layer.1.unwrap_or(layer.0)).sum();
                let bar = state.bar.get_or_insert_with(bar);
                bar.set_length(total);
                bar.set_position(done);
            }
            ProvisionProgress::Unpacking { .. } => {
                if let Some(bar) = &self.state().bar {
                    bar.set_message("unpacking");
                }
            }
            ProvisionProgress::ImageReady => self.end_bar(),
            _ => {}
        }
    }

    fn end_bar(&self) {
        let mut state = self.state();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
            let bytes: u64 = state.layers.values().map(|layer| layer.0).sum();
            let layers = state.layers.len();
            drop(state);
            let plural = if layers == 1 { "" } else { "s" };
            self.line(&format!(
                "  {:<10}{layers} layer{plural}, {}",
                "pulled",
                units::bytes(bytes)
            ));
        }
    }

    /// The agent wrote this to a terminal.
    pub(crate) fn wrote(&self, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.state().within_line = *last != b'\n';
        }
    }

    /// The terminal is the agent's until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        self.state().held.get_or_insert_default();
    }

    pub(crate) fn release(&self) {
        let held = self.state().held.take();
        for line in held.into_iter().flatten() {
            self.line(&line);
        }
    }

    fn line(&self, line: &str) {
        if !self.shown {
            return;
        }
        let mut state = self.state();
        if let Some(held) = &mut state.held {
            held.push(line.to_owned());
            return;
        }
        if std::mem::take(&mut state.within_line) {
            output::note("");
        }
        output::note(line);
    }

    /// What came of it.
    pub(crate) fn summary(&self, result: &AgentResult) {
        self.release();
        if std::mem::take(&mut self.state().within_line) {
            output::note("");
        }
        let mut text = summary(result);
        text.push('\n');
        let _ = anstream::stderr().write_all(text.as_bytes());
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("  pull      {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn summary(result: &AgentResult) -> String {
    let status = match result.status {
        RunStatus::Completed => "completed".green().to_string(),
        status => status.as_str().red().to_string(),
    };
    let time = units::duration(result.timings.total);
    let mut lines = vec![format!("session {} {status} in {time}", result.session_id)];
    // An error of ours follows on a line of its own.
    if result.error_kind.is_none() && !result.ending.is_success() {
        lines.push(format!("  ending    {}", one_line(&result.ending.to_string())));
    }
    for artifact in result.artifacts.iter().take(LISTED) {
        lines.push(format!(
            "  artifact  {}  {}  {}",
            one_line(artifact.name.as_str()).bold(),
            units::bytes(artifact.size),
            one_line(&artifact.uri)
        ));
    }
    if let Some(more) = result.artifacts.len().checked_sub(LISTED).filter(|more| *more > 0) {
        let session = &result.session_id;
        lines.push(format!("  artifact  and {more} more: agents artifacts ls {session}"));
    }
    for refused in result.refused_artifacts.iter().take(LISTED) {
        lines.push(format!(
            "  refused   {}: {}",
            one_line(&refused.name),
            one_line(&refused.reason)
        ));
    }
    if let Some(more) = result
        .refused_artifacts
        .len()
        .checked_sub(LISTED)
        .filter(|more| *more > 0)
    {
        lines.push(format!(
            "  refused   and {more} more: agents inspect {}",
            result.session_id
        ));
    }
    lines.push(format!("  audit     {}", one_line(&result.audit)));
    lines.join("\n")
}

/// How long something took, as a duration that a person reads.
pub(crate) fn ago(time: Duration) -> String {
    format!("{} ago", units::duration(time))
}
