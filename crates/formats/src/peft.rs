//! LoRA adapters in the folder form of Hugging Face's PEFT.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::map::Bytes;
use crate::safetensors::{contents, dtype};
use crate::{DType, Error, Result, quant, store};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The version of PEFT whose files these are.
const PEFT_VERSION: &str = "0.21.2";

/// The settings of an adapter that change what it computes, or what it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Where the base model is found: a Hugging Face id or a path.
    pub base_model_name_or_path: Option<String>,
    /// The revision of that model on its hub.
    pub revision: Option<String>,
    /// The rank.
    pub r: usize,
    /// The numerator of the scale.
    pub lora_alpha: f64,
    /// The share of inputs dropped in training.
    pub lora_dropout: f64,
    /// Whether the scale's denominator is the root of the rank.
    pub use_rslora: bool,
    /// The last parts of the names of the adapted layers, such as `q_proj`, sorted.
    pub target_modules: Vec<String>,
}

impl AdapterConfig {
    /// What the product of the two matrices is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The keys of `adapter_config.json`: those of PEFT's `LoraConfig`, sorted, with its defaults.
    fn to_json(&self) -> Value {
        let mut json = defaults();
        let own = json!({
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": true,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "r": self.r,
            "revision": self.revision,
            "target_modules": self.target_modules,
            "task_type": "CAUSAL_LM",
            "use_rslora": self.use_rslora,
        });
        if let Value::Object(own) = own {
            json.extend(own);
        }
        json.sort_keys();
        json.into()
    }

    fn from_json(mut json: Map<String, Value>, path: &Path) -> Result<Self> {
        let mut take = Keys { json: &mut json, path };
        take.read("peft_type", "`LORA`", |value| (value == "LORA").then_some(()))?;
        // A task type is only a hint for loading, and may be left out.
        take.read("task_type", "`CAUSAL_LM`", |value| {
            (value == "CAUSAL_LM" || value.is_null()).then_some(())
        })?;
        let mut target_modules = take.read("target_modules", "a list of names", |value| {
            value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        })?;
        target_modules.sort_unstable();
        target_modules.dedup();
        let config = Self {
            base_model_name_or_path: take.text("base_model_name_or_path")?,
            revision: take.text("revision")?,
            r: take.read("r", "a positive rank", |value| {
                value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank > 0)
            })?,
            lora_alpha: take.number("lora_alpha", 8.0)?,
            lora_dropout: take.number("lora_dropout", 0.0)?,
            use_rslora: take.read("use_rslora", "true or false", |value| {
                if value.is_null() { Some(false) } else { value.as_bool() }
            })?,
            target_modules,
        };
        refuse_other_methods(&json, path)?;
        Ok(config)
    }
}

/// The keys of a file, taken out one by one; one that is absent is read as null.
struct Keys<'a> {
    json: &'a mut Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    fn read<T>(&mut self, key: &str, supported: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let value = self.json.remove(key).unwrap_or_default();
        read(&value).ok_or_else(|| Error::unsupported(self.path, key, value.to_string(), supported))
    }

    fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.read(key, "a string", |value| match value {
            Value::Null => Some(None),
            Value::String(text) => Some(Some(text.clone())),
            _ => None,
        })
    }

    fn number(&mut self, key: &str, default: f64) -> Result<f64> {
        self.read(key, "a number", |value| if value.is_null() { Some(default) } else { value.as_f64() })
    }
}

/// Keys that say how an adapter was made or loaded, not what it computes.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "eva_config",
    "corda_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
];

/// PEFT's defaults for all that is not LoRA itself.
fn defaults() -> Map<String, Value> {
    let null = [
        "alora_invocation_tokens",
        "arrow_config",
        "auto_mapping",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "lora_ga_config",
        "megatron_config",
        "modules_to_save",
        "monteclora_config",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "velora_config",
    ];
    let off = ["ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora"];
    let mut defaults = Map::new();
    defaults.extend(null.map(|key| (key.to_owned(), Value::Null)));
    defaults.extend(off.map(|key| (key.to_owned(), Value::Bool(false))));
    defaults.extend(["alpha_pattern", "loftq_config", "rank_pattern"].map(|key| (key.to_owned(), json!({}))));
    defaults.insert("bias".into(), "none".into());
    defaults.insert("init_lora_weights".into(), true.into());
    defaults.insert("megatron_core".into(), "megatron.core".into());
    defaults.insert("qalora_group_size".into(), 16.into());
    defaults
}

/// Refuses a key that switches on something beside LoRA, so that no half of an adapter is ever applied.
fn refuse_other_methods(json: &Map<String, Value>, path: &Path) -> Result<()> {
    for (key, value) in json {
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(items) => items.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        let no_bias = key == "bias" && value == "none";
        if !off && !no_bias && !HARMLESS.contains(&key.as_str()) {
            return Err(Error::unsupported(
                path,
                key,
                value.to_string(),
                "plain LoRA, with this key left out",
            ));
        }
    }
    Ok(())
}

/// A number as PEFT writes it: whole ones without a point.
fn number(value: f64) -> Value {
    let whole = value.fract() == 0.0 && value.abs() < 2f64.powi(53);
    if whole { (value as i64).into() } else { value.into() }
}

/// An adapter's settings and its matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The settings.
    pub config: AdapterConfig,
    /// Shape (outermost first) and values under PEFT's names, such as
    /// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`: A is (rank, in), B is (out, rank).
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Adapter {
    /// Reads `adapter_config.json` and `adapter_model.safetensors` in `folder`.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`], [`Error::Malformed`]; [`Error::Unsupported`] naming a setting of
    /// another method than LoRA; [`Error::Shape`] when a matrix has not the rank of the settings.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        let config = AdapterConfig::from_json(store::read_json(&path)?, &path)?;
        let path = folder.join(WEIGHTS);
        let bytes = Bytes::map(&path)?;
        let mut tensors = BTreeMap::new();
        for (name, info, range) in contents(&bytes, &path)? {
            let dtype = dtype(info.dtype, &name, &path)?;
            let mut values = vec![0.0; range.len() / dtype.block_bytes()];
            quant::dequantize(dtype, &bytes[range], &mut values);
            check_rank(&name, &info.shape, config.r, &path)?;
            tensors.insert(name, (info.shape, values));
        }
        Ok(Self { config, tensors })
    }

    /// Writes both files into `folder`, each atomically; the same adapter always gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Write`]; [`Error::Tensor`] when a tensor's values are not as many as its shape says.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let mut stored = BTreeMap::new();
        for (name, (shape, values)) in &self.tensors {
            stored.insert(name, (shape.clone(), quant::quantize(DType::F32, values)?));
        }
        let fail = |name: &str, error: safetensors::SafeTensorError| Error::Tensor {
            tensor: name.into(),
            reason: error.to_string(),
        };
        let mut views = Vec::with_capacity(stored.len());
        for (name, (shape, bytes)) in &stored {
            let view =
                TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|error| fail(name, error))?;
            views.push((name.as_str(), view));
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let weights = safetensors::serialize(views, Some(metadata)).map_err(|error| fail(WEIGHTS, error))?;
        store::write_atomically(folder.join(WEIGHTS), &weights)?;
        store::write_atomically(folder.join(CONFIG), format!("{:#}", self.config.to_json()).as_bytes())
    }
}

/// A and B meet in the rank; anything that is neither is not LoRA.
fn check_rank(name: &str, shape: &[usize], rank: usize, path: &Path) -> Result<()> {
    let expected = match shape {
        [_, inner] if name.ends_with(".lora_A.weight") => vec![rank, *inner],
        [outer, _] if name.ends_with(".lora_B.weight") => vec![*outer, rank],
        _ => {
            let found = format!("of shape {shape:?}");
            return Err(Error::unsupported(path, name, found, "matrices named lora_A and lora_B"));
        }
    };
    if shape == expected {
        return Ok(());
    }
    Err(Error::Shape { path: path.to_owned(), tensor: name.into(), expected, found: shape.to_vec() })
}
