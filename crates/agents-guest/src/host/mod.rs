//! The host's side of the protocol.

mod afterwards;
mod archive;
mod connection;
mod exit;
mod judge;
mod pump;
mod recollection;
mod session;
mod tunnel;

pub use afterwards::Afterwards;
pub use connection::Connection;
pub use judge::{Judge, Quiet};
pub use recollection::Recollection;
pub use session::{SpawnRequest, StartOptions};
