//! An archive into the container, with the agent's rights.

use std::io;

use agents_guest::protocol::FromGuest;

use super::{
    failure::{Context, Fault},
    frames::{InputReader, say},
    setup,
};

pub(super) fn write(path: &str) -> Result<(), Fault> {
    setup::prepare(setup::limits_of_first())?;
    rustix::process::chdir(path).context(format_args!("cannot enter {path}"))?;
    let mut input = InputReader::new();
    let mut archive = tar::Archive::new(&mut input);
    archive.set_preserve_permissions(true);
    // The filter refuses these to every process with the agent's rights.
    archive.set_mask(0o6000);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    archive.unpack(".").context(format_args!("cannot unpack into {path}"))?;
    // What follows the archive's end is only padding, but an archive that was cut off is none.
    io::copy(&mut input, &mut io::sink()).context("the archive is not complete")?;
    say(&FromGuest::Done)
}
