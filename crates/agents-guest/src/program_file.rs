//! The program as a file, and the commands that it takes.

/// The program: static, for the architecture that this crate was built for, and independent of anything in an image.
pub const PROGRAM: &[u8] = include_bytes!(env!("AGENTS_GUEST_PROGRAM"));

/// The program's SHA-256, in hexadecimal. Names the volume that holds it, so that one of another version is another.
pub const PROGRAM_SHA256: &str = env!("AGENTS_GUEST_SHA256");

/// The folder in the container that the program's folder is mounted at, read-only.
pub const PROGRAM_DIR: &str = "/.agents";

/// Where the program is in the container.
pub const PROGRAM_PATH: &str = "/.agents/guest";

/// The mode of the program's file, which belongs to root. The kernel makes processes of a program that its user cannot read
/// undumpable from their first instruction, so that nobody inside ever looks into one.
pub const PROGRAM_MODE: u32 = 0o111;

/// The mode of the program's file under gVisor, which starts no program that its user cannot read. Where an engine has
/// containers of both kinds, there are two volumes.
pub const PROGRAM_MODE_GVISOR: u32 = 0o555;

fn command(words: &[&str]) -> Vec<String> {
    let program = std::iter::once(PROGRAM_PATH);
    program.chain(words.iter().copied()).map(str::to_owned).collect()
}

/// The container's command. `nofile` is the limit on open files of every process, and `nproc` the one on processes and
/// threads where no cgroup holds it, as in a kernel of the container's own. The program sets them itself, also for further
/// processes.
///
/// ```
/// assert_eq!(agents_guest::init_command(Some(64), None), ["/.agents/guest", "init", "--nofile=64"]);
/// ```
pub fn init_command(nofile: Option<u64>, nproc: Option<u64>) -> Vec<String> {
    let mut words = command(&["init"]);
    words.extend(nofile.map(|most| format!("--nofile={most}")));
    words.extend(nproc.map(|most| format!("--nproc={most}")));
    words
}

/// The command of an engine's exec that runs a further process, for [`Connection::spawn`](crate::Connection::spawn).
pub fn exec_command() -> Vec<String> {
    command(&["exec"])
}

/// The command of an engine's exec that reads files, for [`Connection::read`](crate::Connection::read).
pub fn read_command(path: &str, quiesce: bool) -> Vec<String> {
    // After `--`, so that no path is taken for an option.
    let options: &[&str] = if quiesce {
        &["read", "--quiesce", "--"]
    } else {
        &["read", "--"]
    };
    let mut words = command(options);
    words.push(path.to_owned());
    words
}

/// The command of an engine's exec that writes files, for [`Connection::write`](crate::Connection::write).
pub fn write_command(path: &str) -> Vec<String> {
    command(&["write", "--", path])
}

/// The command of an engine's exec for [`Connection::status`](crate::Connection::status).
pub fn status_command() -> Vec<String> {
    command(&["status"])
}

/// The command of an engine's exec for [`Connection::report`](crate::Connection::report).
pub fn report_command() -> Vec<String> {
    command(&["report"])
}

/// The command of an engine's exec that carries a connection to a port on the container's loopback interface, for
/// [`Connection::connect`](crate::Connection::connect).
pub fn connect_command(port: u16) -> Vec<String> {
    command(&["connect", &port.to_string()])
}

/// A tar archive with the program as `guest`, owned by root and of a mode such as [`PROGRAM_MODE`], to fill a volume with
/// through an engine's archive call.
pub fn program_archive(mode: u32) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    // A POSIX ustar header, see tar(5).
    put(0, b"guest");
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", PROGRAM.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(PROGRAM);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_archive_holds_the_program() {
        let archive = program_archive(PROGRAM_MODE);
        let mut archive = tar::Archive::new(&archive[..]);
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("guest"));
        assert_eq!(entry.header().mode().unwrap(), PROGRAM_MODE);
        assert_eq!(entry.header().uid().unwrap(), 0);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(content == PROGRAM);
        assert!(entries.next().is_none());
    }

    #[test]
    fn the_program_is_static_and_small() {
        assert_eq!(&PROGRAM[..4], b"\x7fELF");
        // The dynamic loader's name is what a dynamic program has and a static one has not.
        assert!(
            !PROGRAM
                .windows(7)
                .any(|window| window == b"/ld-lin" || window == b"ld-musl")
        );
        assert!(PROGRAM.len() < 2 << 20, "{} bytes", PROGRAM.len());
    }
}
