//! LoRA adapters as llama.cpp reads them: one GGUF file beside the base model's.

use std::collections::BTreeMap;

use crate::gguf::{Gguf, GgufWriter, Value};
use crate::{Adapter, AdapterConfig, Error, ModelConfig, Result, Slot, Tensor, slots};

const KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const BASE_NAME: &str = "general.base_model.0.name";

/// The suffixes of a pair's tensors here and in PEFT's files.
const A: (&str, &str) = (".lora_a", "lora_A");
const B: (&str, &str) = (".lora_b", "lora_B");

impl Adapter {
    /// The adapter as a GGUF file for a base model of this shape. The rank's root in the scale of rsLoRA, which the
    /// format does not know, goes into alpha.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another family than Llama; [`Error::Tensor`] for a matrix that has no place there.
    pub fn to_gguf(&self, model: &ModelConfig) -> Result<GgufWriter<'static>> {
        model.gguf_rope()?;
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", "llama");
        writer.set("general.type", "adapter");
        writer.set(KIND, "lora");
        writer.set(ALPHA, (self.config.scale() * self.config.r as f64) as f32);
        if let Some(base) = &self.config.base_model_name_or_path {
            writer.set("general.base_model.count", 1u32);
            writer.set(BASE_NAME, base.as_str());
        }
        let mut left: BTreeMap<&str, _> = self.tensors.iter().map(|(name, it)| (name.as_str(), it)).collect();
        for slot in slots(model).iter().filter(|slot| !slot.bias) {
            for suffix in [A, B] {
                let Some((shape, values)) = left.remove(peft_name(slot, suffix).as_str()) else { continue };
                let values = if suffix == B { reorder(slot, values, shape[1], true) } else { values.clone() };
                let name = format!("{}{}", slot.gguf_name, suffix.0);
                writer.add(Tensor::from_f32(name, shape.clone(), &values)?);
            }
        }
        match left.keys().next() {
            None => Ok(writer),
            Some(name) => {
                let reason = "belongs to no weight of the base model".to_owned();
                Err(Error::Tensor { tensor: (*name).to_owned(), reason })
            }
        }
    }

    /// The adapter in a GGUF file for a base model of this shape.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the file is something else; [`Error::Shape`] when a matrix does not fit its weight;
    /// [`Error::MissingTensor`] for half of a pair.
    pub fn from_gguf(gguf: &Gguf, model: &ModelConfig) -> Result<Self> {
        let path = gguf.path();
        for (key, expected) in [("general.type", "adapter"), (KIND, "lora")] {
            let found = gguf.required(key, Value::as_str)?;
            if found != expected {
                return Err(Error::unsupported(path, key, format!("`{found}`"), format!("`{expected}`")));
            }
        }
        let (mut tensors, mut rank, mut target_modules) = (BTreeMap::new(), None, Vec::new());
        let mut left: Vec<&str> = gguf.tensor_names().collect();
        for slot in slots(model).iter().filter(|slot| !slot.bias) {
            let stored = |suffix: (&str, &str)| format!("{}{}", slot.gguf_name, suffix.0);
            if gguf.shape(&stored(A)).is_none() && gguf.shape(&stored(B)).is_none() {
                continue;
            }
            for suffix in [A, B] {
                let tensor = gguf.tensor(&stored(suffix))?;
                let inner = usize::from(suffix == B);
                let of_file = tensor.shape.get(inner).copied().unwrap_or_default();
                let rank = *rank.get_or_insert(of_file);
                let expected =
                    if suffix == A { vec![rank, slot.shape[1]] } else { vec![slot.shape[0], rank] };
                if tensor.shape != expected {
                    let (path, found) = (path.to_owned(), tensor.shape.clone());
                    return Err(Error::Shape { path, tensor: tensor.name, expected, found });
                }
                let values = tensor.to_f32();
                let values = if suffix == B { reorder(slot, &values, rank, false) } else { values };
                tensors.insert(peft_name(slot, suffix), (expected, values));
                left.retain(|name| *name != stored(suffix));
            }
            let module = slot.name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
            target_modules.push(module.to_owned());
        }
        if let Some(name) = left.first() {
            return Err(Error::unsupported(
                path,
                format!("tensor `{name}`"),
                "present",
                "pairs of this model alone",
            ));
        }
        target_modules.sort_unstable();
        target_modules.dedup();
        let config = AdapterConfig {
            base_model_name_or_path: gguf.optional(BASE_NAME, Value::as_str)?.map(str::to_owned),
            revision: None,
            r: rank.ok_or_else(|| Error::MissingTensor { path: path.to_owned(), tensor: A.0.to_owned() })?,
            lora_alpha: gguf.required(ALPHA, Value::as_f64)?,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules,
        };
        Ok(Self { config, tensors })
    }
}

fn peft_name(slot: &Slot, suffix: (&str, &str)) -> String {
    let module = slot.name.trim_end_matches(".weight");
    format!("base_model.model.{module}.{}.weight", suffix.1)
}

/// The rows of a B matrix in the order of a GGUF file's weight, or back.
fn reorder(slot: &Slot, values: &[f32], cols: usize, to_gguf: bool) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for row in 0..slot.shape[0] {
        let other = slot.row_of_gguf(row);
        let (from, to) = if to_gguf { (other, row) } else { (row, other) };
        out[to * cols..][..cols].copy_from_slice(&values[from * cols..][..cols]);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::BaseModel;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
    }

    fn read(writer: &GgufWriter<'_>) -> Gguf {
        Gguf::from_bytes(writer.to_bytes(), "adapter.gguf").unwrap()
    }

    #[test]
    fn an_adapter_comes_back_as_it_was() {
        for (model, adapter) in [
            ("llama/tied", "llama/tied/adapter"),
            ("llama/tied", "llama/tied/rslora"),
            ("llama/scaled", "llama/scaled/adapter"),
        ] {
            let config = BaseModel::open(fixture(model)).unwrap().config;
            let adapter = Adapter::read(fixture(adapter)).unwrap();
            let back = Adapter::from_gguf(&read(&adapter.to_gguf(&config).unwrap()), &config).unwrap();
            assert_eq!(back.tensors, adapter.tensors);
            assert!((back.config.scale() - adapter.config.scale()).abs() < 1e-6);
            assert_eq!(back.config.target_modules, adapter.config.target_modules);
            assert_eq!(back.config.base_model_name_or_path, adapter.config.base_model_name_or_path);
        }
    }

    #[test]
    fn the_rows_of_b_move_as_those_of_the_weight() {
        let base = BaseModel::open(fixture("llama/tied")).unwrap();
        let slots = slots(&base.config);
        let slot = slots.iter().find(|slot| slot.interleaved_heads.is_some()).unwrap();
        let rows: Vec<f32> = (0..slot.shape[0]).map(|row| row as f32).collect();
        let moved = reorder(slot, &rows, 1, true);
        assert_ne!(moved, rows);
        let half = slot.shape[0] / slot.interleaved_heads.unwrap() / 2;
        assert_eq!(moved[..4], [0.0, half as f32, 1.0, (half + 1) as f32]);
        assert_eq!(reorder(slot, &moved, 1, false), rows);
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let config = BaseModel::open(fixture("llama/tied")).unwrap().config;
        let adapter = Adapter::read(fixture("llama/tied/adapter")).unwrap();
        let refused = |change: &dyn Fn(&mut GgufWriter<'static>)| {
            let mut writer = adapter.to_gguf(&config).unwrap();
            change(&mut writer);
            Adapter::from_gguf(&read(&writer), &config).unwrap_err().to_string()
        };
        assert!(refused(&|writer| writer.set("general.type", "model")).contains("general.type"));
        assert!(refused(&|writer| writer.set(KIND, "control vector")).contains(KIND));
        let stray = || Tensor::from_f32("blk.99.attn_q.weight.lora_a", vec![1, 1], &[1.0]).unwrap();
        assert!(refused(&|writer| writer.add(stray())).contains("blk.99"));
        let other = BaseModel::open(fixture("llama/scaled")).unwrap().config;
        let whole = read(&adapter.to_gguf(&config).unwrap());
        assert!(Adapter::from_gguf(&whole, &other).is_err());
        let phi = BaseModel::open(fixture("families/phi3")).unwrap().config;
        assert!(adapter.to_gguf(&phi).unwrap_err().to_string().contains("Phi3"));
    }
}
