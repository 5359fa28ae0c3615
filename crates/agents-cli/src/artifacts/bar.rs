//! A bar while bytes move, on a terminal only.

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, PoisonError},
};

use agents_sdk::{
    core::{ByteStream, SessionId},
    session::transfer::{OnProgress, TransferProgress},
};
use futures_util::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{context::Context, output::one_line};

/// A bar that goes when it is dropped, so that no error stands beside half a bar.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar for this many bytes, or for a number that is not known yet.
    pub(super) fn new(context: &Context, doing: &str, bytes: Option<u64>) -> Self {
        let shown = !context.common.quiet && !context.json() && std::io::stderr().is_terminal();
        let target = match shown {
            true => ProgressDrawTarget::stderr_with_hz(10),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(bytes, target);
        let template = format!("  {doing:<9} {{bar:20}} {{bytes}}/{{total_bytes}} {{bytes_per_sec}} {{msg}}");
        Self(match ProgressStyle::with_template(&template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    /// The stream, counted as it passes.
    pub(super) fn count(&self, content: ByteStream) -> ByteStream {
        let bar = self.0.clone();
        content.inspect_ok(move |chunk| bar.inc(chunk.len() as u64)).boxed()
    }

    /// What transfers of many sessions report to, one after the other.
    pub(super) fn listen(&self) -> OnProgress {
        let bar = self.0.clone();
        // The sum of the sessions before, and what the present one has reported last.
        let state = Mutex::new((0, 0, None::<TransferProgress>));
        Arc::new(move |progress| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let (total, done, last) = &mut *state;
            if let Some(before) = last.take_if(|before| before.session_id != progress.session_id) {
                *total += before.bytes_total;
                *done += before.bytes_total;
            }
            // Artifacts are done in parallel, and their reports may overtake each other.
            let latest = last
                .as_ref()
                .map_or(0, |before| before.bytes_done)
                .max(progress.bytes_done);
            bar.set_length(*total + progress.bytes_total);
            bar.set_position(*done + latest);
            bar.set_message(message(
                &progress.session_id,
                progress.artifacts_done,
                progress.artifacts_total,
            ));
            let mut seen = progress.clone();
            seen.bytes_done = latest;
            *last = Some(seen);
        })
    }
}

fn message(session: &SessionId, done: u64, total: u64) -> String {
    format!("{done}/{total} of {}", one_line(session.as_str()))
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
