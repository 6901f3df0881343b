//! The weights of a trained model: the base model's with the adapter added, or those that all trained.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::Path;
use std::thread;

use engine::{Adapter, LoraEntry};
use formats::{BaseModel, DType, Part, Slot, quant};

use crate::Result;

/// Bytes of values in a safetensors file, from which on there are several.
const SHARD_BYTES: usize = 5_000_000_000;

/// Whose order the rows of a tensor have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    HuggingFace,
    Gguf,
}

/// Every tensor of a trained model, made one at a time.
pub(crate) struct Merged<'a> {
    base: &'a BaseModel,
    slots: HashMap<String, Slot>,
    adapter: Option<Adapter>,
    entries: HashMap<(Part, usize), LoraEntry>,
}

impl<'a> Merged<'a> {
    /// The base model with an adapter, or as it is.
    pub(crate) fn new(base: &'a BaseModel, adapter: Option<Adapter>) -> Self {
        let entries = adapter.as_ref().map_or_else(Vec::new, |adapter| adapter.lora.entries(&base.config));
        Self {
            base,
            slots: formats::slots(&base.config).into_iter().map(|slot| (slot.name.clone(), slot)).collect(),
            entries: entries.into_iter().map(|entry| ((entry.part, entry.layer), entry)).collect(),
            adapter,
        }
    }

    /// Writes all tensors into the weight files of a Hugging Face folder.
    pub(crate) fn write_model(&self, dtype: DType, folder: &Path) -> Result<()> {
        let slots = formats::slots(&self.base.config);
        let specs: Vec<_> = slots.iter().map(|slot| slot.spec(dtype)).collect();
        formats::write_model(folder, &specs, SHARD_BYTES, &mut |spec| {
            self.encode(&spec.name, dtype, RowOrder::HuggingFace).map(Into::into)
        })?;
        Ok(())
    }

    /// The bytes of a tensor, by its Hugging Face name: `W + scale B A` in f32, rounded once, to `dtype`.
    pub(crate) fn encode(&self, name: &str, dtype: DType, order: RowOrder) -> formats::Result<Vec<u8>> {
        let fail = |reason| formats::Error::Tensor { tensor: name.to_owned(), reason };
        let tensor = self.base.tensor(name)?;
        let slot = self.slots.get(name).ok_or_else(|| fail("is no tensor of this model".into()))?;
        let entry = slot.layer.filter(|_| !slot.bias).and_then(|layer| self.entries.get(&(slot.part, layer)));
        let (rows, cols) = (tensor.rows(), tensor.row_len());
        let row_bytes = slot.spec(dtype).bytes()? / rows;
        let mut bytes = vec![0; rows * row_bytes];
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let share = rows.div_ceil(threads).max(1);
        let encode_rows = |first: usize, out: &mut [u8]| -> formats::Result<()> {
            let (mut values, mut delta) = (vec![0.0; cols], vec![0.0; cols]);
            for (row, out) in (first..).zip(out.chunks_exact_mut(row_bytes)) {
                let row = if order == RowOrder::Gguf { slot.row_of_gguf(row) } else { row };
                tensor.dequantize_row(row, &mut values);
                if let (Some(entry), Some(adapter)) = (entry, &self.adapter) {
                    adapter.add_to_row(entry, row, &mut values, &mut delta);
                }
                check(&values, dtype).map_err(fail)?;
                out.copy_from_slice(&quant::quantize(dtype, &values)?);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let parts = bytes.chunks_mut(share * row_bytes).enumerate();
            let threads: Vec<_> =
                parts.map(|(part, out)| scope.spawn(move || encode_rows(part * share, out))).collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.collect::<formats::Result<()>>()
        })?;
        Ok(bytes)
    }
}

/// Refuses values that the type cannot hold.
fn check(values: &[f32], dtype: DType) -> std::result::Result<(), String> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => return Err(format!("has the value {value}: the run or its base model is broken")),
        None if dtype != DType::F16 => return Ok(()),
        None => {}
    }
    // The largest f16 and half a step above it, from which on rounding leaves the range.
    match values.iter().find(|value| value.abs() >= 65_520.0) {
        Some(value) => Err(format!("has the value {value}, beyond the range of f16; use --quant bf16")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::run::from_peft;

    fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
    }

    /// `W + scale B A` spelt out in f64, from PEFT's files.
    fn expected(base: &BaseModel, peft: &formats::Adapter, name: &str) -> Vec<f64> {
        let tensor = base.tensor(name).unwrap();
        let mut weight: Vec<f64> = tensor.to_f32().into_iter().map(f64::from).collect();
        let pair = |matrix: &str| {
            let module = name.strip_suffix(".weight")?;
            peft.tensors.get(&format!("base_model.model.{module}.lora_{matrix}.weight"))
        };
        if let (Some((_, a)), Some((_, b))) = (pair("A"), pair("B")) {
            let (rank, cols) = (peft.config.r, tensor.row_len());
            for (i, weight) in weight.iter_mut().enumerate() {
                let (row, col) = (i / cols, i % cols);
                let product = (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * cols + col]));
                *weight += peft.config.scale() * product.sum::<f64>();
            }
        }
        weight
    }

    #[test]
    fn every_decoder_s_merged_folder_holds_the_sum() {
        let cases = [
            ("llama/tied", "llama/tied/adapter"),
            ("llama/tied", "llama/tied/rslora"),
            ("llama/scaled", "llama/scaled/adapter"),
            ("families/phi3", "families/phi3/adapter"),
            ("families/gpt-neo", "families/gpt-neo/adapter"),
        ];
        for (model, adapter) in cases {
            let base = BaseModel::open(fixture(model)).unwrap();
            let peft = formats::Adapter::read(fixture(adapter)).unwrap();
            let merged = Merged::new(&base, Some(from_peft(&peft, &base.config).unwrap()));
            let folder = tempfile::tempdir().unwrap();
            merged.write_model(DType::F16, folder.path()).unwrap();
            std::fs::write(folder.path().join("config.json"), base.config_json().unwrap()).unwrap();
            let written = BaseModel::open(folder.path()).unwrap();
            let mut moved = 0;
            for name in base.tensor_names() {
                let (found, before) = (written.tensor(name).unwrap(), base.tensor(name).unwrap().to_f32());
                assert_eq!(found.dtype, DType::F16);
                let expected = expected(&base, &peft, name);
                for ((found, expected), before) in found.to_f32().into_iter().zip(expected).zip(before) {
                    let tolerance = expected.abs() / 2048.0 + 1e-7;
                    assert!(
                        (f64::from(found) - expected).abs() <= tolerance,
                        "{model}, {name}: {found} {expected}"
                    );
                    moved += usize::from((f64::from(before) - expected).abs() > tolerance);
                }
            }
            assert!(moved > 1000, "{model}: the adapter moves {moved} values");
        }
    }

    #[test]
    fn values_that_the_type_cannot_hold_are_refused() {
        assert!(check(&[65_519.0, -1.0], DType::F16).is_ok());
        assert!(check(&[1.0, -65_520.0], DType::F16).unwrap_err().contains("--quant bf16"));
        assert!(check(&[65_520.0], DType::BF16).is_ok());
        assert!(check(&[f32::NAN], DType::Q8_0).unwrap_err().contains("NaN"));
    }
}
