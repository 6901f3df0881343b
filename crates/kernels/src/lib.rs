//! The maths of frontdesk: one file per op, each with its plain reference, its fast versions and their tests.
//!
//! The rest of the program sees one trait, [`Backend`]: a list of fused ops over buffers that live on a device.
//! [`Cpu`] implements it for two element types: `Cpu<f32>` is exact and slow, `Cpu<bf16>` halves the memory of
//! activations and weights and uses the processor's bf16 dot products where it has them.
//!
//! Legend used in every shape: `T` rows (tokens of the tree), `C` width of the residual stream, `H` query heads,
//! `G` key/value heads, `D` head size, `F` feed-forward width, `V` vocabulary, `R` LoRA rank, `I`/`O` input and
//! output features of a linear layer. A gradient is called `d_` plus the name of its value. Matrices are row-major.
#![allow(unsafe_code)]
#![allow(clippy::inline_always)] // what is generic over `Lanes` must reach a function with its features

pub mod activation;
pub mod adamw;
pub mod attention;
mod backend;
pub mod columns;
mod cpu;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod element;
pub mod embed;
pub mod feed_forward;
pub mod gated;
mod host_sum;
pub mod isa;
mod lanes;
pub mod linear;
pub mod norm;
pub mod pool;
pub mod rotary;
mod scratch;
pub mod tree;

pub use activation::Activation;
pub use adamw::AdamW;
pub use attention::{AttentionShape, KvColumns, Mask};
pub use backend::{Backend, Output, PassSpec};
pub use cpu::{Cpu, Pass as CpuPass};
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaError};
pub use element::Element;
pub use feed_forward::GatedLayer;
pub use gated::Gate;
pub use half::bf16;
pub use host_sum::HostSum;
pub use isa::Isa;
pub use linear::{BlockFormat, Encoding, Images, Linear, Mapped, Slot, peak_flops};
pub use norm::Norm;
pub use rotary::Direction;
pub use tree::{Segment, TreeLayout};
