//! Pulls from a hub in this process: the layout on disk, broken downloads, refusals.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

mod bench;
mod breaks;
mod layout;
mod refusals;
mod server;
