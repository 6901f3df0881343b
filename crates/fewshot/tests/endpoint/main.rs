//! A baseline against a scripted endpoint: failures, odd answers, interruptions, and what may never be seen.
#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere, also in its helpers.

mod answers;
mod common;
mod failures;
mod llama;
mod resume;
mod server;
