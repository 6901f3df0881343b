//! A base model, whichever files it came in.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value as Json};

use crate::gguf::{Gguf, Value};
use crate::layout::{Part, Slot, slots};
use crate::safetensors::SafetensorsFolder;
use crate::tokenizer::{self, Tokenizer};
use crate::{DType, Error, ModelConfig, Pooling, Result, Tensor, hashes, random, store};

const CONFIG: &str = "config.json";
const GGUF_TEMPLATE: &str = "tokenizer.chat_template";

/// An open base model: a GGUF file or a Hugging Face folder, seen under Hugging Face's names and row order.
#[derive(Debug)]
pub struct BaseModel {
    /// The configuration, against which every tensor's shape has been checked.
    pub config: ModelConfig,
    path: PathBuf,
    name: String,
    chat_template: Option<String>,
    slots: BTreeMap<String, Slot>,
    weights: Weights,
    /// The `config.json` that came with the model.
    config_json: Option<String>,
    sha256: OnceLock<String>,
}

#[derive(Debug)]
enum Weights {
    Gguf(Gguf),
    Safetensors(SafetensorsFolder),
    /// Made when asked for, matrices in this type.
    Random(DType),
}

impl BaseModel {
    /// Opens the GGUF file or the Hugging Face folder at `path`.
    ///
    /// # Errors
    /// [`Error::NotAModel`] when it is neither; [`Error::Shape`], [`Error::MissingTensor`] or
    /// [`Error::Unsupported`] when the tensors are not those that the configuration asks for; and those of
    /// the formats.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() { Self::open_folder(path) } else { Self::open_gguf(path) }
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let name =
            gguf.optional("general.name", Value::as_str)?.map_or_else(|| file_stem(path), str::to_owned);
        let chat_template = gguf.optional(GGUF_TEMPLATE, Value::as_str)?.map(str::to_owned);
        let config = ModelConfig::from_gguf(&gguf)?;
        Self::new(config, None, path, name, chat_template, Weights::Gguf(gguf))
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let config_path = path.join(CONFIG);
        if !config_path.exists() {
            return Err(Error::NotAModel { path: path.to_owned() });
        }
        let keys: Map<String, Json> = store::read_json(&config_path)?;
        let text = format!("{:#}\n", Json::from(keys.clone()));
        let mut config = ModelConfig::from_hf_json(&text, &config_path)?;
        let pooling_path = path.join(Pooling::FILE);
        if config.is_encoder() && pooling_path.exists() {
            config.pooling = Pooling::from_keys(store::read_json(&pooling_path)?, &pooling_path)?;
        }
        let name = match keys.get("_name_or_path").and_then(Json::as_str) {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => file_stem(path),
        };
        let weights = Weights::Safetensors(SafetensorsFolder::open(path)?);
        Self::new(config, Some(text), path, name, tokenizer::chat_template(path)?, weights)
    }

    /// A model of a published shape (`llama-3.2-1b`, `llama-3.2-3b`, `phi-3.5-mini`, `smollm2-135m`) whose weights
    /// are random and made when they are asked for: for measuring, without a file and without a tokenizer. The
    /// matrices are 4-bit blocks, or what follows a colon: `llama-3.2-1b:bf16`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another name.
    pub fn random(spec: &str) -> Result<Self> {
        let (config, dtype) = random::parse(spec)?;
        let path = Path::new("random weights");
        Self::new(config, None, path, spec.to_owned(), None, Weights::Random(dtype))
    }

    fn new(
        config: ModelConfig,
        config_json: Option<String>,
        path: &Path,
        name: String,
        chat_template: Option<String>,
        weights: Weights,
    ) -> Result<Self> {
        let slots = slots(&config).into_iter().map(|slot| (slot.name.clone(), slot)).collect();
        let (path, sha256) = (path.to_owned(), OnceLock::new());
        let model = Self { config, path, name, chat_template, slots, weights, config_json, sha256 };
        model.check_tensors()?;
        Ok(model)
    }

    /// Each slot filled with its shape, and nothing left over that might belong to the computation.
    fn check_tensors(&self) -> Result<()> {
        let mut known = BTreeSet::new();
        for slot in self.slots.values() {
            let stored = self.stored_name(slot);
            let (path, tensor) = (self.path.clone(), slot.name.clone());
            match self.shape(&stored) {
                None => return Err(Error::MissingTensor { path, tensor }),
                Some(found) if found != slot.shape => {
                    let (expected, found) = (slot.shape.clone(), found.to_vec());
                    return Err(Error::Shape { path, tensor, expected, found });
                }
                Some(_) => known.insert(stored),
            };
        }
        let traits = self.config.family.traits();
        let head = format!("{}.weight", self.config.name_of(Part::Head, 0));
        let left_over = self.stored_names().into_iter().find(|name| {
            let tied_copy = self.config.tied_embeddings && *name == head;
            !known.contains(*name) && !tied_copy && !traits.unused.iter().any(|mark| name.contains(mark))
        });
        match left_over {
            None => Ok(()),
            Some(name) => {
                let supported = format!("the tensors of {:?} models alone", self.config.family);
                Err(Error::unsupported(&self.path, format!("tensor `{name}`"), "present", supported))
            }
        }
    }

    fn shape(&self, stored: &str) -> Option<&[usize]> {
        match &self.weights {
            Weights::Gguf(gguf) => gguf.shape(stored),
            Weights::Safetensors(folder) => folder.shape(stored),
            Weights::Random(_) => self.slots.get(stored).map(|slot| &slot.shape[..]),
        }
    }

    fn stored_names(&self) -> Vec<&str> {
        match &self.weights {
            Weights::Gguf(gguf) => gguf.tensor_names().collect(),
            Weights::Safetensors(folder) => folder.tensor_names().collect(),
            Weights::Random(_) => self.tensor_names(),
        }
    }

    /// The name under which the files hold a slot: with the prefix of models that were saved with a head, and with
    /// the norm's parameters as TensorFlow called them, where that is what is there.
    fn stored_name(&self, slot: &Slot) -> String {
        let folder = match &self.weights {
            Weights::Gguf(_) => return slot.gguf_name.clone(),
            Weights::Safetensors(folder) => folder,
            Weights::Random(_) => return slot.name.clone(),
        };
        let older = slot.name.replace("LayerNorm.weight", "LayerNorm.gamma");
        let older = older.replace("LayerNorm.bias", "LayerNorm.beta");
        let prefix = self.config.family.traits().prefix;
        let spellings = [format!("{prefix}{}", slot.name), format!("{prefix}{older}"), older];
        let found = spellings.into_iter().find(|name| folder.shape(name).is_some());
        found.unwrap_or_else(|| slot.name.clone())
    }

    /// The names of all stored tensors in Hugging Face's naming, sorted; a tied output head is not among
    /// them.
    pub fn tensor_names(&self) -> Vec<&str> {
        self.slots.keys().map(String::as_str).collect()
    }

    /// The tensor of a Hugging Face name, such as `model.layers.0.self_attn.q_proj.weight`, with Hugging
    /// Face's order of rows; `lm_head.weight` is the embedding table where the two are tied.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Unsupported`] for a type that is not of floats or known blocks.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let weight = |part| format!("{}.weight", self.config.name_of(part, 0));
        let tied = self.config.tied_embeddings && name == weight(Part::Head);
        let slot = self
            .slots
            .get(&if tied { weight(Part::Embedding) } else { name.to_owned() })
            .ok_or_else(|| Error::MissingTensor { path: self.path.clone(), tensor: name.into() })?;
        let mut tensor = match &self.weights {
            Weights::Safetensors(folder) => folder.tensor(&self.stored_name(slot))?,
            Weights::Random(dtype) => random::tensor(slot, *dtype)?,
            Weights::Gguf(gguf) => {
                let tensor = gguf.tensor(&slot.gguf_name)?;
                if slot.interleaved_heads.is_some() { split_pairs(&tensor, slot) } else { tensor }
            }
        };
        name.clone_into(&mut tensor.name);
        Ok(tensor)
    }

    /// The type in which the files hold the tensor of this name.
    ///
    /// # Errors
    /// As [`BaseModel::tensor`].
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let missing = || Error::MissingTensor { path: self.path.clone(), tensor: name.into() };
        let slot = self.slots.get(name).ok_or_else(missing)?;
        match &self.weights {
            Weights::Safetensors(folder) => folder.dtype(&self.stored_name(slot)),
            Weights::Random(dtype) => Ok(*dtype),
            Weights::Gguf(gguf) => gguf.dtype(&slot.gguf_name).ok_or_else(missing),
        }
    }

    /// The text of a `config.json` with which transformers builds this model: the one that came with it, or one
    /// written from the configuration.
    ///
    /// # Errors
    /// Those of [`ModelConfig::to_hf_json`].
    pub fn config_json(&self) -> Result<String> {
        self.config_json.clone().map_or_else(|| self.config.to_hf_json(), Ok)
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_gguf`] or [`Tokenizer::from_folder`]; [`Error::Unsupported`] when it has tokens
    /// beyond the model's vocabulary, and for random weights.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = match &self.weights {
            Weights::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            Weights::Safetensors(_) => Tokenizer::from_folder(&self.path),
            Weights::Random(_) => {
                return Err(Error::unsupported(&self.path, "tokenizer", "none", "a model from files"));
            }
        }?;
        let (largest, rows) = (tokenizer.largest_id(), self.config.vocab_size);
        if largest as usize >= rows {
            let supported = format!("less than {rows}, the rows of the model's embedding table");
            return Err(Error::unsupported(&self.path, "largest token id", largest.to_string(), supported));
        }
        Ok(tokenizer)
    }

    /// The source of the chat template that came with the model.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The SHA-256 of the weight file in hexadecimal, computed at the first call; of several files, that of
    /// the lines `hash  name` in the order of their names, as `sha256sum` prints them.
    pub fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| match &self.weights {
            Weights::Gguf(gguf) => sha256(&self.path, gguf.bytes()),
            Weights::Random(_) => store::sha256_hex(self.name.as_bytes()),
            Weights::Safetensors(folder) => {
                let mut listing = String::new();
                for (path, bytes) in folder.files() {
                    let hash = sha256(path, bytes);
                    if folder.files().len() == 1 {
                        return hash;
                    }
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    writeln!(listing, "{hash}  {name}").expect("writing to memory cannot fail");
                }
                store::sha256_hex(listing.as_bytes())
            }
        })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that the files give the model, else the name of the file or folder.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The hash of a file whose bytes are at hand.
fn sha256(path: &Path, bytes: &[u8]) -> String {
    let hash = || Ok::<_, std::convert::Infallible>(store::sha256_hex(bytes));
    hashes::remembered(path, hash).unwrap_or_else(|never| match never {})
}

/// The name of a file without its ending, or of a folder.
fn file_stem(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    name.unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
}

/// Undoes the row order of llama.cpp's converter; rows move as stored bytes.
fn split_pairs(tensor: &Tensor<'_>, slot: &Slot) -> Tensor<'static> {
    let row_bytes = tensor.bytes.len() / tensor.rows();
    let mut bytes = vec![0; tensor.bytes.len()];
    for row in 0..tensor.rows() {
        let place = slot.row_of_gguf(row) * row_bytes;
        bytes[place..place + row_bytes].copy_from_slice(tensor.row_bytes(row));
    }
    Tensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        bytes: Cow::Owned(bytes),
    }
}
