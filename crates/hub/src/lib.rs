//! Base models by name: the catalogue, the cache, and downloads that resume.
//!
//! A name is a catalogue name (`smollm2-135m`), a Hugging Face id (`org/repo`, or `org/repo:file.gguf` for one GGUF
//! file), or a path to a GGUF file or a safetensors folder. [`Hub::find`] looks on this machine only; [`Hub::pull`]
//! fetches what is missing and checks every byte that has a known SHA-256.
//!
//! Repositories are kept in the Hugging Face cache layout, so every tool that reads it shares them:
//!
//! ```text
//! HF_HUB_CACHE/
//!   .locks/models--org--repo/<etag>.lock     one download at a time
//!   models--org--repo/
//!     blobs/<etag>                           the bytes; <etag>.incomplete while they arrive
//!     refs/main                              the commit that `main` means
//!     snapshots/<commit>/config.json         relative links into blobs/
//! FRONTDESK_HOME/
//!   models/<catalogue name>/                 what came out of a pip package
//! ```
//!
//! All calls block; from async code, call them on a thread that may block.

mod cache;
mod catalogue;
mod client;
mod disk;
mod download;
mod environment;
mod error;
mod hub;
mod lock;
mod name;
mod progress;
mod repository;
mod wheel;

pub use catalogue::{Entry, Source, catalogue};
pub use error::{Error, Result};
pub use hub::{Hub, Pulled};
pub use progress::Progress;
pub use wheel::{Packed, Wheel};
pub use wire::{Backoff, Secret};
