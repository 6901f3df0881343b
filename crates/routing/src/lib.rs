//! The product's words: examples, labels, splits, metrics, calibration, the linear baseline and the report.

pub mod calibration;
pub mod cascade;
pub mod compare;
pub mod doctor;
pub mod duplicates;
mod error;
pub mod example;
pub mod linear;
pub mod metrics;
mod quantile;
pub mod read;
pub mod report;
mod split;
pub mod suspects;
mod write;

pub use error::Error;
pub use example::{Dataset, Example, Format, Origin, Place, Role, Turn};
pub use quantile::quantile;
pub use read::{ROW_LIMIT_BYTES, ReadOptions, read};
pub use split::split;
pub use write::to_json_lines;
