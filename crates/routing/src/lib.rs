//! The product's words: examples, labels, splits, metrics, calibration, the linear baseline and the report.

pub mod calibration;
pub mod compare;
pub mod doctor;
pub mod duplicates;
mod error;
pub mod example;
pub mod linear;
pub mod metrics;
pub mod read;
pub mod report;
mod split;

pub use error::Error;
pub use example::{Dataset, Example, Format, Origin, Place, Role, Turn};
pub use read::{ReadOptions, read};
pub use split::split;
