//! What the host and the program say to each other.

use std::fmt;

use super::{
    Malformed, append,
    fields::{Reader, Writer},
};

/// What the host says.
#[derive(Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// `init`: writes these files into the secrets' folder. Answered by `Done` or `Failed`.
    Secrets(Vec<(String, Vec<u8>)>),
    /// `init`: keeps the main process until it is to be started. Answered by `Done` or `Failed`.
    Prepare(Spawn),
    /// `init`: starts the main process, once. Answered by `Started`, `Exit` or `Failed`.
    Start {
        /// Whether the process lives on when the host goes away.
        outlives_client: bool,
    },
    /// `exec`: starts a further process, once. Answered by `Started`, `Exit` or `Failed`.
    Spawn(Spawn),
    /// Bytes for the process's standard input, for the other side of a connection, or of an archive.
    Input(Vec<u8>),
    /// The input is complete.
    CloseInput,
    /// Sends a signal to the process itself.
    Signal(u32),
    /// Kills the process tree.
    Kill,
    /// The terminal's new size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// `init`, once the main process has ended: the archive of a path. Answered by `Data` and then `Done`, or by `Failed`.
    Read(String),
}

/// What the program says. The bytes of output are of the type that suits the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest<B = Vec<u8>> {
    /// `init` and `report`: what is in force, by name.
    Report(Vec<(String, String)>),
    /// What was asked for is done.
    Done,
    /// What was asked for was refused or has failed.
    Failed(Failure),
    /// The process runs, or the connection is open.
    Started(Started),
    /// Standard output, or a terminal's.
    Stdout(B),
    /// Standard error.
    Stderr(B),
    /// The process has taken so many bytes of its input, so that as many more may be sent.
    InputTaken(u32),
    /// The process has closed its input.
    InputClosed,
    /// The process has ended, or was not started. Nothing follows.
    Exit(Ended),
    /// Bytes of an archive, or of a connection.
    Data(B),
    /// `status`: the state of the container's main process.
    State(State),
}

/// A process to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spawn {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Environment beyond the program's own, which is what the engine was told. Later entries win.
    pub env: Vec<(String, String)>,
    /// The working directory; the program's own otherwise.
    pub working_dir: Option<String>,
    /// Whether there is input.
    pub stdin: bool,
    /// The terminal's rows and columns.
    pub tty: Option<(u16, u16)>,
}

/// What has started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// Its number inside.
    pub pid: u32,
    /// Whether it takes input.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of fault it is.
    pub kind: FailureKind,
    /// The fault in words.
    pub message: String,
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $number,)*
        }

        impl $name {
            fn number(self) -> u8 {
                match self {
                    $(Self::$variant => $number,)*
                }
            }

            fn of_number(number: u8) -> Result<Self, Malformed> {
                match number {
                    $($number => Ok(Self::$variant),)*
                    other => Err(Malformed::new(format!("{other} is no {}", stringify!($name)))),
                }
            }
        }
    };
}

numbered! {
    /// What kind of fault a failure is.
    FailureKind {
        /// No other kind describes it.
        Unexpected = 0,
        /// The named thing does not exist.
        NotFound = 1,
        /// The agent may not do this.
        PermissionDenied = 2,
        /// A disk or a quota is full.
        ResourceExhausted = 3,
        /// The state does not allow it.
        Conflict = 4,
        /// What was sent makes no sense.
        Invalid = 5,
        /// Nobody answers.
        Unavailable = 6,
    }
}

numbered! {
    /// The state of a container's main process.
    State {
        /// There is none, and there never was to be one.
        Idle = 0,
        /// It has not started yet.
        Created = 1,
        /// It runs.
        Running = 2,
        /// It has ended.
        Exited = 3,
    }
}

impl State {
    const ALL: [Self; 4] = [Self::Idle, Self::Created, Self::Running, Self::Exited];

    /// The name that the first process gives itself in this state, as `/proc/PID/comm` shows it inside and outside.
    pub fn comm(self) -> &'static str {
        match self {
            Self::Idle => "agents-idle",
            Self::Created => "agents-created",
            Self::Running => "agents-running",
            Self::Exited => "agents-exited",
        }
    }

    /// The state that a first process's name stands for.
    pub fn of_comm(comm: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.comm() == comm.trim_end())
    }
}

/// How a process ended, as the kernel says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u32),
    /// The command does not exist.
    NotFound(String),
    /// The command cannot be executed.
    NotExecutable(String),
    /// It was not even tried.
    Refused(String),
}

/// How a process ended, and what the kernel counted meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub status: Status,
    /// Whether the kernel has killed something in the container for want of memory; `None` when that cannot be read inside.
    pub out_of_memory: Option<bool>,
    /// Whether the kernel has refused a process; `None` when that cannot be read inside.
    pub pids_limit: Option<bool>,
    /// Whether a place that can be written to was full.
    pub disk_full: bool,
}

impl Ended {
    /// An ending of which nothing more is known.
    pub fn plain(status: Status) -> Self {
        Self {
            status,
            out_of_memory: None,
            pids_limit: None,
            disk_full: false,
        }
    }
}

mod kind {
    pub(super) const SECRETS: u8 = 0x01;
    pub(super) const SPAWN: u8 = 0x02;
    pub(super) const INPUT: u8 = 0x03;
    pub(super) const CLOSE_INPUT: u8 = 0x04;
    pub(super) const SIGNAL: u8 = 0x05;
    pub(super) const KILL: u8 = 0x06;
    pub(super) const RESIZE: u8 = 0x07;
    pub(super) const PREPARE: u8 = 0x08;
    pub(super) const START: u8 = 0x09;
    pub(super) const READ: u8 = 0x0a;

    pub(super) const REPORT: u8 = 0x40;
    pub(super) const DONE: u8 = 0x41;
    pub(super) const FAILED: u8 = 0x42;
    pub(super) const STARTED: u8 = 0x43;
    pub(super) const STDOUT: u8 = 0x44;
    pub(super) const STDERR: u8 = 0x45;
    pub(super) const INPUT_TAKEN: u8 = 0x46;
    pub(super) const INPUT_CLOSED: u8 = 0x47;
    pub(super) const EXIT: u8 = 0x48;
    pub(super) const DATA: u8 = 0x49;
    pub(super) const STATE: u8 = 0x4a;
}

fn pair(w: &mut Writer, (name, value): &(String, String)) {
    w.text(name);
    w.text(value);
}

fn read_pair(r: &mut Reader<'_>) -> Result<(String, String), Malformed> {
    Ok((r.text()?, r.text()?))
}

impl ToGuest {
    /// Appends the message to a buffer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::default();
        let kind = match self {
            Self::Secrets(secrets) => {
                w.list(secrets, |w, (name, value)| {
                    w.text(name);
                    w.bytes(value);
                });
                kind::SECRETS
            }
            Self::Prepare(spawn) => {
                spawn.write(&mut w);
                kind::PREPARE
            }
            Self::Start { outlives_client } => {
                w.flag(*outlives_client);
                kind::START
            }
            Self::Spawn(spawn) => {
                spawn.write(&mut w);
                kind::SPAWN
            }
            Self::Input(bytes) => return append(out, kind::INPUT, bytes),
            Self::CloseInput => kind::CLOSE_INPUT,
            Self::Signal(number) => {
                w.number(*number);
                kind::SIGNAL
            }
            Self::Kill => kind::KILL,
            Self::Resize { rows, columns } => {
                w.number(u32::from(*rows));
                w.number(u32::from(*columns));
                kind::RESIZE
            }
            Self::Read(path) => {
                w.text(path);
                kind::READ
            }
        };
        append(out, kind, &w.finish());
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// What is no message of the host's.
    pub fn decode(kind: u8, payload: Vec<u8>) -> Result<Self, Malformed> {
        if kind == kind::INPUT {
            return Ok(Self::Input(payload));
        }
        let mut r = Reader::new(&payload);
        let message = match kind {
            kind::SECRETS => Self::Secrets(r.list(|r| Ok((r.text()?, r.bytes()?)))?),
            kind::PREPARE => Self::Prepare(Spawn::read(&mut r)?),
            kind::START => Self::Start {
                outlives_client: r.flag()?,
            },
            kind::SPAWN => Self::Spawn(Spawn::read(&mut r)?),
            kind::CLOSE_INPUT => Self::CloseInput,
            kind::SIGNAL => Self::Signal(r.number()?),
            kind::KILL => Self::Kill,
            kind::RESIZE => Self::Resize {
                rows: short(&mut r)?,
                columns: short(&mut r)?,
            },
            kind::READ => Self::Read(r.text()?),
            other => return Err(Malformed::new(format!("the host says nothing of the kind {other}"))),
        };
        r.finish()?;
        Ok(message)
    }
}

impl Spawn {
    fn write(&self, w: &mut Writer) {
        w.list(&self.command, |w, word| w.text(word));
        w.list(&self.env, pair);
        w.option(self.working_dir.as_deref(), Writer::text);
        w.flag(self.stdin);
        w.option(self.tty, |w, (rows, columns)| {
            w.number(u32::from(rows));
            w.number(u32::from(columns));
        });
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            command: r.list(Reader::text)?,
            env: r.list(read_pair)?,
            working_dir: r.option(Reader::text)?,
            stdin: r.flag()?,
            tty: r.option(|r| Ok((short(r)?, short(r)?)))?,
        })
    }
}

fn short(r: &mut Reader<'_>) -> Result<u16, Malformed> {
    u16::try_from(r.number()?).map_err(|_| Malformed::new("a terminal is too large"))
}

impl fmt::Debug for ToGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets, input and environments are nobody's business.
        f.write_str(match self {
            Self::Secrets(_) => "Secrets",
            Self::Prepare(_) => "Prepare",
            Self::Start { .. } => "Start",
            Self::Spawn(_) => "Spawn",
            Self::Input(_) => "Input",
            Self::CloseInput => "CloseInput",
            Self::Signal(_) => "Signal",
            Self::Kill => "Kill",
            Self::Resize { .. } => "Resize",
            Self::Read(_) => "Read",
        })
    }
}

impl<B: AsRef<[u8]>> FromGuest<B> {
    /// Appends the message to a buffer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::default();
        let kind = match self {
            Self::Report(fields) => {
                w.list(fields, pair);
                kind::REPORT
            }
            Self::Done => kind::DONE,
            Self::Failed(failure) => {
                w.byte(failure.kind.number());
                w.text(&failure.message);
                kind::FAILED
            }
            Self::Started(started) => {
                w.number(started.pid);
                w.flag(started.stdin);
                w.flag(started.tty);
                kind::STARTED
            }
            Self::Stdout(bytes) => return append(out, kind::STDOUT, bytes.as_ref()),
            Self::Stderr(bytes) => return append(out, kind::STDERR, bytes.as_ref()),
            Self::Data(bytes) => return append(out, kind::DATA, bytes.as_ref()),
            Self::InputTaken(count) => {
                w.number(*count);
                kind::INPUT_TAKEN
            }
            Self::InputClosed => kind::INPUT_CLOSED,
            Self::Exit(ended) => {
                ended.write(&mut w);
                kind::EXIT
            }
            Self::State(state) => {
                w.byte(state.number());
                kind::STATE
            }
        };
        append(out, kind, &w.finish());
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// What is no message of the program's.
    pub fn decode(kind: u8, payload: B) -> Result<Self, Malformed> {
        match kind {
            kind::STDOUT => return Ok(Self::Stdout(payload)),
            kind::STDERR => return Ok(Self::Stderr(payload)),
            kind::DATA => return Ok(Self::Data(payload)),
            _ => {}
        }
        let mut r = Reader::new(payload.as_ref());
        let message = match kind {
            kind::REPORT => Self::Report(r.list(read_pair)?),
            kind::DONE => Self::Done,
            kind::FAILED => Self::Failed(Failure {
                kind: FailureKind::of_number(r.byte()?)?,
                message: r.text()?,
            }),
            kind::STARTED => Self::Started(Started {
                pid: r.number()?,
                stdin: r.flag()?,
                tty: r.flag()?,
            }),
            kind::INPUT_TAKEN => Self::InputTaken(r.number()?),
            kind::INPUT_CLOSED => Self::InputClosed,
            kind::EXIT => Self::Exit(Ended::read(&mut r)?),
            kind::STATE => Self::State(State::of_number(r.byte()?)?),
            other => return Err(Malformed::new(format!("the guest says nothing of the kind {other}"))),
        };
        r.finish()?;
        Ok(message)
    }
}

impl Ended {
    fn write(&self, w: &mut Writer) {
        match &self.status {
            Status::Code(code) => {
                w.byte(0);
                w.byte(*code);
            }
            Status::Signal(signal) => {
                w.byte(1);
                w.number(*signal);
            }
            Status::NotFound(message) => {
                w.byte(2);
                w.text(message);
            }
            Status::NotExecutable(message) => {
                w.byte(3);
                w.text(message);
            }
            Status::Refused(message) => {
                w.byte(4);
                w.text(message);
            }
        }
        w.option(self.out_of_memory, Writer::flag);
        w.option(self.pids_limit, Writer::flag);
        w.flag(self.disk_full);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let status = match r.byte()? {
            0 => Status::Code(r.byte()?),
            1 => Status::Signal(r.number()?),
            2 => Status::NotFound(r.text()?),
            3 => Status::NotExecutable(r.text()?),
            4 => Status::Refused(r.text()?),
            other => return Err(Malformed::new(format!("{other} is no ending"))),
        };
        Ok(Self {
            status,
            out_of_memory: r.option(Reader::flag)?,
            pids_limit: r.option(Reader::flag)?,
            disk_full: r.flag()?,
        })
    }
}

#[cfg(test)]
mod tests;
