//! A connection to a port on the container's loopback interface.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    process,
};

use agents_guest::protocol::{FromGuest, Started};

use super::{
    failure::{Context, Fault},
    frames::{DataWriter, InputReader, say},
    setup,
};

pub(super) fn connect(port: u16) -> Result<(), Fault> {
    setup::prepare(setup::limits_of_first())?;
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .context(format_args!("nobody inside listens on the port {port}"))?;
    let mut to_socket = socket.try_clone().context("cannot copy the socket")?;
    say(&FromGuest::Started(Started::default()))?;
    // The one thread of the program beside the first: the two directions wait for different things.
    let inward = std::thread::spawn(move || {
        let mut input = InputReader::new();
        if copy(&mut input, &mut to_socket).is_err() {
            // The host is gone, or the socket is.
            process::exit(0);
        }
        let _ = to_socket.shutdown(Shutdown::Write);
    });
    let copied = copy(&mut &socket, &mut DataWriter::new());
    let _ = socket.shutdown(Shutdown::Read);
    copied.context("the connection broke")?;
    say(&FromGuest::Done)?;
    let _ = inward.join();
    Ok(())
}

/// As `io::copy`, but with nothing held back.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
