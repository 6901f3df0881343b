//! Model files: safetensors, GGUF, tokenizers, chat templates and PEFT adapters, as typed values in and out.
//!
//! [`BaseModel`] opens a GGUF file or a Hugging Face folder and shows both under the same names, shapes and
//! values, so that nothing behind it knows which one it was. Everything read here may come from a stranger:
//! a bad file is an [`Error`] that says where it is bad, never a panic, and never costs more memory than a
//! small multiple of the file's size.

mod base;
mod config;
mod date;
mod error;
mod family;
pub mod gguf;
mod hashes;
mod layout;
mod lora_gguf;
mod map;
mod peft;
pub mod quant;
mod random;
mod rope;
pub mod safetensors;
mod shards;
pub mod store;
mod template;
mod tensor;
mod tokenizer;

pub use base::BaseModel;
pub use config::{Activation, ModelConfig, Pooling};
pub use date::Date;
pub use error::{Error, Result};
pub use family::{Family, Traits};
pub use gguf::{FileType, Gguf, GgufWriter};
pub use hashes::remember_hashes;
pub use layout::{Part, Slot, slots};
pub use map::map;
pub use peft::{Adapter, AdapterConfig};
pub use rope::{Rope, RopeScaling};
pub use shards::write_model;
pub use template::{ChatTemplate, Message};
pub use tensor::{DType, Tensor, TensorSpec};
pub use tokenizer::Tokenizer;
