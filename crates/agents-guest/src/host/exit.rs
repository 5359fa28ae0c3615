//! From what the program says to the typed ending.

use agents_core::{Exit, StartFailure};

use crate::protocol::{Ended, Status};

/// What the kernel counted explains a failure, never a success.
pub(super) fn exit_of(ended: Ended) -> Exit {
    let not_started = |reason, message| Exit::NotStarted { reason, message };
    let (exit, code) = match ended.status {
        Status::Code(0) => return Exit::Exited { code: 0 },
        Status::Code(code) => (Exit::Exited { code: i32::from(code) }, i32::from(code)),
        Status::Signal(signal) => {
            let signal = i32::try_from(signal).unwrap_or(0);
            (Exit::Signalled { signal }, 128_i32.saturating_add(signal))
        }
        Status::NotFound(message) => return not_started(StartFailure::NotFound, message),
        Status::NotExecutable(message) => return not_started(StartFailure::NotExecutable, message),
        Status::Refused(message) => return not_started(StartFailure::Refused, message),
    };
    if ended.out_of_memory == Some(true) {
        return Exit::OutOfMemory;
    }
    if ended.pids_limit == Some(true) {
        return Exit::PidsLimit { code: Some(code) };
    }
    if ended.disk_full {
        return Exit::DiskLimit { code: Some(code) };
    }
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counted_explains_a_failure_only() {
        let all = |status| Ended {
            status,
            out_of_memory: Some(true),
            pids_limit: Some(true),
            disk_full: true,
        };
        assert_eq!(exit_of(all(Status::Code(0))), Exit::Exited { code: 0 });
        assert_eq!(exit_of(all(Status::Signal(9))), Exit::OutOfMemory);
        let no_memory = |status| Ended {
            out_of_memory: Some(false),
            ..all(status)
        };
        assert_eq!(exit_of(no_memory(Status::Code(2))), Exit::PidsLimit { code: Some(2) });
        let only_disk = Ended {
            disk_full: true,
            ..Ended::plain(Status::Signal(15))
        };
        assert_eq!(exit_of(only_disk), Exit::DiskLimit { code: Some(143) });
        assert_eq!(exit_of(Ended::plain(Status::Signal(9))), Exit::Signalled { signal: 9 });
        let missing = exit_of(Ended::plain(Status::NotFound("x".to_owned())));
        assert_eq!(missing.code(), Some(127));
    }
}
