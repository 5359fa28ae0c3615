//! Our sides of a process's streams, none of which ever blocks.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use agents_guest::protocol::{FromGuest, MAX_PAYLOAD};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// How long a terminal may keep what was written to it just before the end: its line discipline works by itself.
const SETTLING: Duration = Duration::from_millis(20);

/// One descriptor: a pipe's end, or our side of a terminal, which is input and output at once.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    fd: Rc<OwnedFd>,
    terminal: bool,
}

impl Channel {
    pub(super) fn pipe(fd: OwnedFd) -> Self {
        Self {
            fd: Rc::new(fd),
            terminal: false,
        }
    }

    pub(super) fn terminal(fd: Rc<OwnedFd>) -> Self {
        Self { fd, terminal: true }
    }

    /// Reads what is there: `None` when nothing is, and nothing at all at the end.
    fn read<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        match rustix::io::read(&*self.fd, &mut *buffer) {
            Ok(read) => Some(&buffer[..read]),
            Err(Errno::AGAIN | Errno::INTR) => None,
            // A terminal whose last process has gone, ioctl_tty(2).
            Err(_) => Some(&[]),
        }
    }
}

/// What goes to the process, and how much of it has gone.
#[derive(Debug)]
struct Input {
    channel: Channel,
    queue: VecDeque<u8>,
    closing: bool,
}

/// The streams of a process.
#[derive(Debug)]
pub(super) struct Streams {
    /// Standard output and error; only the first with a terminal.
    outputs: [Option<Channel>; 2],
    input: Option<Input>,
    terminal: Option<Channel>,
}

/// Which of the streams a descriptor of [`Streams::descriptors`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Output(usize),
    Input,
}

impl Streams {
    pub(super) fn new<const N: usize>(outputs: [Channel; N], input: Option<Channel>) -> Self {
        let mut outputs = outputs.into_iter();
        let outputs = [outputs.next(), outputs.next()];
        let terminal = outputs[0].clone().filter(|channel| channel.terminal);
        Self {
            outputs,
            input: input.map(|channel| Input {
                channel,
                queue: VecDeque::new(),
                closing: false,
            }),
            terminal,
        }
    }

    /// What to wait for. Output is left alone while nobody takes it.
    pub(super) fn descriptors(&self, take_output: bool) -> Vec<(Stream, BorrowedFd<'_>, PollFlags)> {
        let mut wanted = Vec::with_capacity(3);
        for (number, output) in self.outputs.iter().enumerate().filter(|_| take_output) {
            if let Some(channel) = output {
                wanted.push((Stream::Output(number), channel.fd.as_fd(), PollFlags::IN));
            }
        }
        if let Some(input) = &self.input {
            // A pipe that nobody reads any more says so unasked. A terminal would say so again and again.
            if !input.queue.is_empty() {
                wanted.push((Stream::Input, input.channel.fd.as_fd(), PollFlags::OUT));
            } else if !input.channel.terminal {
                wanted.push((Stream::Input, input.channel.fd.as_fd(), PollFlags::empty()));
            }
        }
        wanted
    }

    /// Reads one piece of an output.
    pub(super) fn read(&mut self, number: usize, say: &mut impl FnMut(&FromGuest<&[u8]>)) {
        let mut buffer = [0; MAX_PAYLOAD];
        let Some(channel) = &self.outputs[number] else { return };
        match channel.read(&mut buffer) {
            None => {}
            Some([]) => self.outputs[number] = None,
            Some(bytes) => tell(number, bytes, say),
        }
    }

    /// Takes what a process that has ended had written, without waiting for those that it left behind.
    pub(super) fn drain(&mut self, say: &mut impl FnMut(&FromGuest<&[u8]>)) {
        let mut buffer = [0; MAX_PAYLOAD];
        for (number, output) in self.outputs.iter_mut().enumerate() {
            let Some(channel) = output.take() else { continue };
            // Whoever goes on writing in the background is not waited for: a pipe is asked how much it holds.
            let mut left = if channel.terminal {
                MAX_PAYLOAD
            } else {
                usize::try_from(rustix::io::ioctl_fionread(&*channel.fd).unwrap_or(0)).unwrap_or(0)
            };
            while left > 0 && (!channel.terminal || settled(&channel)) {
                let most = left.min(buffer.len());
                match channel.read(&mut buffer[..most]) {
                    None | Some([]) => break,
                    Some(bytes) => {
                        tell(number, bytes, say);
                        left -= bytes.len();
                    }
                }
            }
        }
        self.input = None;
    }

    /// Takes bytes for the process. What comes after the end of its input is dropped. Says whether there is room for them.
    pub(super) fn queue(&mut self, bytes: &[u8], most: usize) -> bool {
        if let Some(input) = self.input.as_mut().filter(|input| !input.closing) {
            input.queue.extend(bytes);
            return input.queue.len() <= most;
        }
        true
    }

    pub(super) fn close_input(&mut self) {
        if let Some(input) = &mut self.input {
            if input.channel.terminal && !input.closing {
                // A terminal has no end; its end-of-file character stands for it.
                input.queue.push_back(0x04);
            }
            input.closing = true;
            if input.queue.is_empty() {
                self.input = None;
            }
        }
    }

    /// Gives the process what it takes.
    pub(super) fn write(&mut self, say: &mut impl FnMut(&FromGuest<&[u8]>)) {
        let Some(input) = &mut self.input else { return };
        let (bytes, _) = input.queue.as_slices();
        match rustix::io::write(&*input.channel.fd, bytes) {
            Ok(written) => {
                input.queue.drain(..written);
                if input.queue.is_empty() && input.closing {
                    self.input = None;
                } else if written > 0 {
                    say(&FromGuest::InputTaken(u32::try_from(written).unwrap_or(0)));
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input_is_closed(say),
        }
    }

    /// The process reads no more.
    pub(super) fn input_is_closed(&mut self, say: &mut impl FnMut(&FromGuest<&[u8]>)) {
        if self.input.take().is_some() {
            say(&FromGuest::InputClosed);
        }
    }

    pub(super) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(&*terminal.fd, size)?)
    }
}

fn settled(terminal: &Channel) -> bool {
    let timeout = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(SETTLING.subsec_nanos()),
    };
    poll(&mut [PollFd::new(&*terminal.fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

fn tell(number: usize, bytes: &[u8], say: &mut impl FnMut(&FromGuest<&[u8]>)) {
    say(&if number == 0 {
        FromGuest::Stdout(bytes)
    } else {
        FromGuest::Stderr(bytes)
    });
}
