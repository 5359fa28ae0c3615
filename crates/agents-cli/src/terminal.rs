//! The terminal's raw mode, its size, and the end of the process.

use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
};

use agents_sdk::core::{Error, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Switches the terminal of standard input to raw mode, so that every key goes to the agent. [`restore`] ends it.
pub(crate) fn make_raw() -> Result<()> {
    let stdin = std::io::stdin();
    let cannot = |error: rustix::io::Errno| Error::io("cannot switch the terminal to raw mode", error.into());
    let saved = tcgetattr(&stdin).map_err(cannot)?;
    let mut raw = saved.clone();
    raw.make_raw();
    *SAVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(saved);
    tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(cannot)
}

/// Switches the terminal back to what it was.
pub(crate) fn restore() {
    let saved = SAVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    if let Some(saved) = saved {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &saved);
    }
}

/// Rows and columns of the terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdin())
        .or_else(|_| tcgetwinsize(std::io::stdout()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

pub(crate) fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Ends the process, with the terminal as it was.
pub(crate) fn exit(code: u8) -> ! {
    restore();
    let _ = std::io::stdout().flush();
    std::process::exit(code.into())
}
