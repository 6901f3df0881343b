//! A merged model as one GGUF file.

use std::collections::HashMap;
use std::path::Path;

use formats::{BaseModel, FileType, GgufWriter, TensorSpec, Tokenizer};

use super::merged::{Merged, RowOrder};
use crate::Result;

/// Writes the model with its tokenizer and chat template; each tensor gets the type that llama.cpp would give it.
pub(super) fn write(
    merged: &Merged<'_>,
    base: &BaseModel,
    tokenizer: &Tokenizer,
    quant: FileType,
    path: &Path,
) -> Result<()> {
    let mut writer = GgufWriter::new();
    base.config.to_gguf(&mut writer)?;
    writer.set("general.type", "model");
    writer.set("general.name", base.name());
    quant.to_gguf(&mut writer);
    tokenizer.to_gguf(&mut writer, base.config.vocab_size)?;
    let slots = formats::slots(&base.config);
    for slot in &slots {
        let dtype = quant.dtype(slot, &base.config);
        writer.declare(TensorSpec { name: slot.gguf_name.clone(), dtype, shape: slot.shape.clone() });
    }
    let names: HashMap<&str, &str> =
        slots.iter().map(|slot| (slot.gguf_name.as_str(), slot.name.as_str())).collect();
    writer.save(path, &mut |spec| {
        merged.encode(names[spec.name.as_str()], spec.dtype, RowOrder::Gguf).map(Into::into)
    })?;
    Ok(())
}
