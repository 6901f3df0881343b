//! Exports: what a run trained, as the files that other programs read.
//!
//! An export is written into a folder that nobody sees yet ([`formats::store::StagedFolder`]), opened again by this
//! program's own readers ([`Export::open`]), and judged on rows that both answered ([`Gate`]) before it is put in place.

mod card;
mod gate;
mod gguf;
mod merged;
mod ollama;
mod routing;

use std::fmt;
use std::path::Path;

use engine::{Model, Storage};
use formats::{BaseModel, DType, FileType, Gguf, store};
use kernels::{Backend, Encoding};
use serde::Serialize;
use serde_json::{Map, Value};

pub use self::card::Card;
pub use self::gate::{Accuracy, Flip, Gate, MostFlips};
use self::merged::Merged;
use crate::manifest::{CascadeRecord, Manifest};
use crate::plan::Method;
use crate::router::{Router, read_model};
use crate::run::{MANIFEST, RunFolder, from_peft};
use crate::{Error, Result};

const GGUF: &str = "model.gguf";
const GGUF_LORA: &str = "adapter.gguf";

/// What an export is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A model folder of Hugging Face with the adapter merged into the weights.
    Merged,
    /// One GGUF file with the adapter merged into the weights, for llama.cpp and what is built on it.
    Gguf,
    /// The same beside a Modelfile with the frozen prompt, for Ollama.
    Ollama,
    /// The adapter alone, as PEFT reads it.
    Peft,
    /// The adapter alone, as llama.cpp reads it.
    GgufLora,
}

impl Target {
    /// As `--to` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Gguf => "gguf",
            Self::Ollama => "ollama",
            Self::Peft => "peft",
            Self::GgufLora => "gguf-lora",
        }
    }
}

/// An export to be written: its form, and how it stores weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    target: Target,
    quant: Option<FileType>,
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quant {
            Some(quant) => write!(f, "{}, {}", self.target.name(), quant.name()),
            None => f.write_str(self.target.name()),
        }
    }
}

impl Export {
    /// An export in a form, with the weights stored as `quant` says or as is usual in that form.
    ///
    /// # Errors
    /// [`Error::Export`] when the form has no such storage.
    pub fn new(target: Target, quant: Option<FileType>) -> Result<Self> {
        let refuse =
            |problem: &str| Err(Error::Export { target: target.name(), problem: problem.to_owned() });
        let quant = match (target, quant) {
            (Target::Merged, None | Some(FileType::F16)) => Some(FileType::F16),
            (Target::Merged, Some(FileType::BF16)) => Some(FileType::BF16),
            (Target::Merged, Some(_)) => {
                return refuse(
                    "its weights are 16-bit floats, --quant f16 or bf16; fewer bits go with --to gguf",
                );
            }
            (Target::Gguf | Target::Ollama, quant) => Some(quant.unwrap_or(FileType::Q8_0)),
            (Target::Peft | Target::GgufLora, None) => None,
            (Target::Peft | Target::GgufLora, Some(_)) => {
                return refuse("an adapter stays as it was trained; leave --quant out");
            }
        };
        Ok(Self { target, quant })
    }

    /// The form.
    pub fn target(self) -> Target {
        self.target
    }

    /// The storage of the weights; `None` where they stay as they are.
    pub fn quant(self) -> Option<FileType> {
        self.quant
    }

    /// Writes the files of the export into an empty folder.
    ///
    /// # Errors
    /// [`Error::Export`] when the run has no such form; [`Error::WrongBase`]; those of reading and writing.
    pub fn write(self, run: &RunFolder, base: &BaseModel, folder: &Path) -> Result<()> {
        self.check(run, base)?;
        run.check_base(base)?;
        let tokenizer = run.tokenizer()?;
        let merged = || -> Result<_> {
            let adapter = run.manifest.method.has_adapter().then(|| run.adapter(&base.config)).transpose()?;
            Ok(Merged::new(base, adapter))
        };
        match self.target {
            Target::Merged => {
                let dtype = if self.quant == Some(FileType::BF16) { DType::BF16 } else { DType::F16 };
                merged()?.write_model(dtype, folder)?;
                write_config(base, dtype, folder)?;
                tokenizer.save(folder)?;
            }
            Target::Gguf | Target::Ollama => {
                let quant = self.quant.unwrap_or(FileType::Q8_0);
                gguf::write(&merged()?, base, &tokenizer, quant, &folder.join(GGUF))?;
                if self.target == Target::Ollama {
                    ollama::write(&run.manifest, &tokenizer, folder)?;
                }
            }
            Target::GgufLora => {
                let adapter = formats::Adapter::read(&run.path)?.to_gguf(&base.config)?;
                store::write_atomically(folder.join(GGUF_LORA), &adapter.to_bytes())?;
            }
            Target::Peft => {
                let prompt = run.manifest.cascade.as_ref().and_then(CascadeRecord::prompt_file);
                let files = run.manifest.files.keys().cloned().chain(prompt).chain([MANIFEST.to_owned()]);
                for name in files {
                    let (from, to) = (run.path.join(&name), folder.join(&name));
                    std::fs::copy(&from, &to).map_err(|source| Error::Io {
                        path: from,
                        action: "copied",
                        source,
                    })?;
                }
            }
        }
        routing::write(&run.manifest, &tokenizer, folder)
    }

    /// Refuses runs that the form has no place for.
    fn check(self, run: &RunFolder, base: &BaseModel) -> Result<()> {
        let alone = matches!(self.target, Target::Peft | Target::GgufLora);
        let problem = match run.manifest.method {
            Method::Lora | Method::Qlora | Method::Full if base.config.is_encoder() => {
                "an encoder's answers come from a linear head, which this form has no place for; copy the run folder as \
                 it is"
            }
            Method::Head => {
                "the answers come from a linear head, which this form has no place for; copy the run folder as it is, \
                 or train with --method lora"
            }
            Method::Full if alone => "every weight trained, and there is no adapter; use --to merged or gguf",
            Method::Linear => "a model of n-grams has no tensors for it; copy the run folder as it is",
            Method::Lora | Method::Qlora | Method::Full => return Ok(()),
        };
        Err(Error::Export { target: self.target.name(), problem: problem.to_owned() })
    }

    /// Opens what [`Export::write`] wrote into `folder`, from its files alone where they are a whole model.
    ///
    /// # Errors
    /// Those of reading.
    pub fn open<B: Backend>(
        self,
        backend: B,
        folder: &Path,
        manifest: &Manifest,
        base: &BaseModel,
        encoding: Encoding,
    ) -> Result<Router<B>> {
        let whole = match self.target {
            Target::Merged => folder.to_path_buf(),
            Target::Gguf | Target::Ollama => folder.join(GGUF),
            Target::GgufLora => {
                let adapter = Gguf::open(folder.join(GGUF_LORA))?;
                let adapter = from_peft(&formats::Adapter::from_gguf(&adapter, &base.config)?, &base.config)?;
                let model =
                    read_model(backend, base, Storage::AsStored, manifest.method, Some(&adapter), encoding)?;
                return Router::of_decoder(manifest.clone(), model, base.tokenizer()?, None);
            }
            Target::Peft => return Router::open(backend, RunFolder::open(folder)?, base, encoding),
        };
        let model = BaseModel::open(whole)?;
        let tokenizer = model.tokenizer()?;
        let loaded = Model::load_merged(backend, &model, Storage::AsStored, None, encoding)?;
        Router::of_decoder(manifest.clone(), loaded, tokenizer, None)
    }
}

/// The base model's `config.json`, which says in which type the values are stored.
fn write_config(base: &BaseModel, dtype: DType, folder: &Path) -> Result<()> {
    let path = folder.join("config.json");
    let json = |source| Error::Json { path: path.clone(), source };
    let mut config: Map<String, Value> = serde_json::from_str(&base.config_json()?).map_err(json)?;
    // The later name of the same key.
    config.remove("dtype");
    let name = if dtype == DType::BF16 { "bfloat16" } else { "float16" };
    config.insert("torch_dtype".to_owned(), name.into());
    Ok(store::write_atomically(&path, format!("{:#}\n", Value::from(config)).as_bytes())?)
}
