//! The engine's streams as the bytes that the guest program reads and writes.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use agents_guest::Connection;
use bollard::container::LogOutput;
use futures_util::{StreamExt, future};
use tokio_util::io::StreamReader;

use crate::{engine::Attached, error::one_line, watch::News};

/// What was said besides, by the engine or by its runtime: the reason when a program could not be started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said(Arc<Mutex<Vec<u8>>>);

/// How much of it is kept.
const KEPT: usize = 2000;

impl Said {
    fn add(&self, bytes: &[u8]) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = KEPT.saturating_sub(said.len());
        said.extend_from_slice(&bytes[..bytes.len().min(left)]);
    }

    /// It in one line, if there is any.
    pub(crate) fn line(&self) -> Option<String> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(one_line(&String::from_utf8_lossy(&said))).filter(|line| !line.is_empty())
    }
}

/// Takes the engine's framing off. The guest's frames come on standard output alone. They end with the container even when
/// the engine keeps the stream open.
pub(crate) fn connection(attached: Attached, news: Option<&News>) -> (Connection, Said) {
    let said = Said::default();
    let besides = said.clone();
    let bytes = attached.output.filter_map(move |message| {
        future::ready(match message {
            Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
            Ok(LogOutput::StdErr { message } | LogOutput::Console { message }) => {
                besides.add(&message);
                None
            }
            Ok(LogOutput::StdIn { .. }) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        })
    });
    let bytes = match news {
        Some(news) => bytes.take_until(Box::pin(news.ended())).boxed(),
        None => bytes.boxed(),
    };
    (Connection::new(StreamReader::new(bytes), attached.input), said)
}
