//! The run folder: an adapter that PEFT loads, a tokenizer that transformers loads, and `frontdesk.json`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use engine::{Draft, DraftEntry, Head, Lora, Projection, Trainable, Weights};
use formats::{AdapterConfig, BaseModel, DType, ModelConfig, Pooling, Tokenizer, safetensors, store};

use crate::checkpoint::Checkpoint;
use crate::manifest::{FORMAT, Manifest, Measured};
use crate::plan::Method;
use crate::{Error, Result};
use routing::linear::{LinearModel, StoredLinear};

pub(crate) const MANIFEST: &str = "frontdesk.json";
pub(crate) const CHECKPOINT: &str = "checkpoint";
const HEAD: &str = "head.safetensors";
const DRAFT: &str = "draft.safetensors";
const LINEAR: &str = "linear.json";
const LINEAR_WEIGHTS: &str = "linear.safetensors";
const MEASURED: &str = "measured.json";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// What a training leaves behind.
pub(crate) enum Trained {
    /// LoRA's matrices or every weight, and the head of an encoder.
    Model(Trainable),
    /// A linear head.
    Head(Head),
    /// A model of n-grams.
    Linear(StoredLinear),
}

/// What a run has from its base model; nothing where there is none.
#[derive(Clone, Copy)]
pub(crate) struct FromBase<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) config_json: &'a str,
    pub(crate) tokenizer: &'a Tokenizer,
    /// What guesses the labels, where their tokens are scored.
    pub(crate) draft: Option<&'a Draft>,
}

/// A finished run on disk.
#[derive(Debug)]
pub struct RunFolder {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

impl RunFolder {
    /// Opens a run and checks that every file is the one that was written.
    ///
    /// # Errors
    /// When the folder is not a finished run, or a file was changed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = path.join(MANIFEST);
        if !file.exists() {
            let unfinished = Checkpoint::plan_path(&path).exists();
            return Err(if unfinished { Error::Unfinished { path } } else { Error::NotARun { path } });
        }
        let manifest: Manifest = read_json(&file)?;
        if manifest.format != FORMAT {
            return Err(Error::Format { path: file, found: manifest.format, expected: FORMAT });
        }
        for (name, expected) in &manifest.files {
            // Names come from the file; they must not lead out of the folder.
            let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            let file = path.join(name);
            if inside && !file.exists() {
                return Err(Error::Missing { path: file });
            }
            let found =
                if inside { store::sha256_file(&file)? } else { "not read: the name leads elsewhere".into() };
            if found != *expected {
                return Err(Error::Changed { path: file, expected: expected.clone(), found });
            }
        }
        Ok(Self { path, manifest })
    }

    /// The run in `path` if its training came to its end; a checkpoint that a kill in the last moment left is removed.
    ///
    /// # Errors
    /// As [`RunFolder::open`], for a folder that holds a finished run.
    pub fn finished(path: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = path.as_ref();
        if !path.join(MANIFEST).exists() {
            return Ok(None);
        }
        let run = Self::open(path)?;
        let left = path.join(CHECKPOINT);
        if left.exists() {
            let failed = |source| Error::Io { path: left.clone(), action: "removed", source };
            std::fs::remove_dir_all(&left).map_err(failed)?;
        }
        Ok(Some(run))
    }

    /// The adapter's values for a model of this shape.
    ///
    /// # Errors
    /// When they cannot be read or do not fit.
    pub fn adapter(&self, config: &ModelConfig) -> Result<engine::Adapter> {
        from_peft(&formats::Adapter::read(&self.path)?, config)
    }

    /// The head for a model of this shape.
    ///
    /// # Errors
    /// When it cannot be read or does not fit.
    pub fn head(&self, config: &ModelConfig) -> Result<Head> {
        let path = self.path.join(HEAD);
        let mut tensors = formats::safetensors::read_f32(&path)?;
        let labels = self.manifest.labels.len();
        let mut take = |name: &str, expected: Vec<usize>| match tensors.remove(name) {
            Some((found, values)) if found == expected => Ok(values),
            Some((found, _)) => {
                Err(formats::Error::Shape { path: path.clone(), tensor: name.to_owned(), expected, found })
            }
            None => Err(formats::Error::MissingTensor { path: path.clone(), tensor: name.to_owned() }),
        };
        let weight = take("weight", vec![labels, config.hidden_size])?;
        Ok(Head { weight, bias: take("bias", vec![labels])?, unit: self.manifest.method == Method::Head })
    }

    /// What guesses a query's label; nothing in a run that a head reads, or that is older than it.
    ///
    /// # Errors
    /// When it cannot be read or does not fit.
    pub fn draft(&self) -> Result<Option<Draft>> {
        if !self.manifest.files.contains_key(DRAFT) {
            return Ok(None);
        }
        let path = self.path.join(DRAFT);
        let mut tensors = safetensors::read_f32(&path)?;
        let mut take = |name: &str| match tensors.remove(name) {
            Some((_, values)) => Ok(values.into_iter().map(|value| value as u32).collect()),
            None => Err(formats::Error::MissingTensor { path: path.clone(), tensor: name.to_owned() }),
        };
        let [tokens, labels, counts]: [Vec<u32>; 3] = [take("token")?, take("label")?, take("count")?];
        let same = tokens.len() == labels.len() && tokens.len() == counts.len();
        let entries = tokens.into_iter().zip(labels).zip(counts);
        let entries = entries.map(|((token, label), count)| DraftEntry { token, label, count }).collect();
        let draft = Draft::from_entries(self.manifest.labels.len(), entries).filter(|_| same);
        draft.map(Some).ok_or(Error::Draft { path })
    }

    /// The folder of the run's model, when it holds the whole of it and needs no other base.
    pub fn own_model(&self) -> Option<&Path> {
        (self.manifest.method == Method::Full).then_some(&self.path)
    }

    /// The model of n-grams of a run of that method.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub fn linear(&self) -> Result<LinearModel> {
        let path = self.path.join(LINEAR);
        let mut stored: StoredLinear = read_json(&path)?;
        let mut tensors = safetensors::read_f32(self.path.join(LINEAR_WEIGHTS))?;
        stored.weights = tensors.remove("weights").map(|(_, values)| values).unwrap_or_default();
        let labels = self.manifest.labels.len();
        if stored.labels != labels {
            let problem = format!("it tells {} labels apart, the run has {labels}", stored.labels);
            return Err(Error::Linear { path, problem });
        }
        LinearModel::try_from(stored).map_err(|problem| Error::Linear { path, problem })
    }

    /// What the training took, where it was written down.
    pub fn measured(&self) -> Option<Measured> {
        measured(&self.path)
    }

    /// The tokenizer that the run was trained with.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::from_folder(&self.path)?)
    }

    /// Checks that `base` is what the run was trained on, or the model that it holds.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_base(&self, base: &BaseModel) -> Result<()> {
        if self.own_model().is_some_and(|own| own == base.path()) {
            // Its files were checked when the run was opened.
            return Ok(());
        }
        let (expected, found) = (self.manifest.base.sha256.clone(), base.sha256().to_owned());
        if found == expected {
            return Ok(());
        }
        Err(Error::WrongBase { path: base.path().to_path_buf(), expected, found })
    }

    /// Whether there is a finished run in a folder.
    pub fn is_in(path: &Path) -> bool {
        path.join(MANIFEST).exists()
    }

    /// Moves the files to another folder, `frontdesk.json` last, and removes their own.
    ///
    /// # Errors
    /// When a file cannot be moved; the others stay where they are.
    pub fn move_to(self, folder: &Path) -> Result<Self> {
        let failed = |path: &Path, action, source| Error::Io { path: path.to_path_buf(), action, source };
        let entries = std::fs::read_dir(&self.path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.map_err(|source| failed(&self.path, "read", source))?;
        let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
        files.sort_by_key(|path| path.ends_with(MANIFEST));
        for file in files {
            let place = folder.join(file.file_name().unwrap_or_default());
            std::fs::rename(&file, &place).map_err(|source| failed(&place, "written", source))?;
        }
        std::fs::remove_dir(&self.path).map_err(|source| failed(&self.path, "removed", source))?;
        Ok(Self { path: folder.to_path_buf(), ..self })
    }

    /// Writes a finished run: `frontdesk.json` last, so that its presence means that all is there.
    pub(crate) fn write(
        path: &Path,
        mut manifest: Manifest,
        trained: &Trained,
        base: Option<FromBase<'_>>,
        measured: Measured,
    ) -> Result<Self> {
        let mut own = Vec::new();
        if let Trained::Linear(linear) = trained {
            let (rows, labels) = (linear.weights.len() / linear.labels.max(1), linear.labels);
            let weights = [("weights", vec![rows, labels], &linear.weights[..])];
            safetensors::write(path.join(LINEAR_WEIGHTS), DType::F32, &weights)?;
            write_json(&path.join(LINEAR), linear)?;
            own.extend([LINEAR, LINEAR_WEIGHTS]);
        }
        if let Some(FromBase { config, config_json, tokenizer, draft }) = base {
            tokenizer.save(path)?;
            own.extend(["tokenizer.json", "tokenizer_config.json"]);
            let head = match trained {
                Trained::Head(head) => Some(head.clone()),
                Trained::Model(trainable) => {
                    if let Some(adapter) = trainable.adapter(config) {
                        write_adapter(path, &manifest, &adapter, config)?;
                        own.extend(["adapter_config.json", "adapter_model.safetensors"]);
                    } else {
                        write_weights(path, trainable, config)?;
                        store::write_atomically(path.join(CONFIG), config_json.as_bytes())?;
                        own.extend([WEIGHTS, CONFIG]);
                        if let Some(pooling) = config.pooling_json() {
                            let place = path.join(Pooling::FILE);
                            let folder = place.parent().unwrap_or(path);
                            std::fs::create_dir_all(folder).map_err(|source| Error::Io {
                                path: folder.to_path_buf(),
                                action: "written",
                                source,
                            })?;
                            store::write_atomically(&place, pooling.as_bytes())?;
                            own.push(Pooling::FILE);
                        }
                    }
                    trainable.head(config)
                }
                Trained::Linear(_) => None,
            };
            if let Some(Head { weight, bias, .. }) = &head {
                let shape = vec![bias.len(), config.hidden_size];
                let tensors = [("weight", shape, &weight[..]), ("bias", vec![bias.len()], &bias[..])];
                safetensors::write(path.join(HEAD), DType::F32, &tensors)?;
                own.push(HEAD);
            }
            if let Some(draft) = draft {
                write_draft(&path.join(DRAFT), draft)?;
                own.push(DRAFT);
            }
        }
        write_json(&path.join(MEASURED), &measured)?;
        manifest.format = FORMAT;
        manifest.files = BTreeMap::new();
        for name in own {
            manifest.files.insert(name.to_owned(), store::sha256_file(path.join(name))?);
        }
        write_json(&path.join(MANIFEST), &manifest)?;
        Ok(Self { path: path.to_path_buf(), manifest })
    }
}

/// The whole model as transformers reads it, in bf16: [`crate::train()`] has rounded the values already.
fn write_weights(path: &Path, trainable: &Trainable, config: &ModelConfig) -> Result<()> {
    let weights = Weights::new(config);
    let tensors: Vec<(&str, Vec<usize>, &[f32])> = weights
        .entries
        .iter()
        .map(|entry| (entry.name.as_str(), entry.shape.clone(), &trainable.values[entry.range()]))
        .collect();
    Ok(safetensors::write(path.join(WEIGHTS), DType::BF16, &tensors)?)
}

/// Whole numbers below 2^24, which f32 holds exactly.
fn write_draft(path: &Path, draft: &Draft) -> Result<()> {
    let column = |value: fn(&DraftEntry) -> u32| -> Vec<f32> {
        draft.entries().iter().map(|entry| value(entry) as f32).collect()
    };
    let [token, label, count] = [column(|e| e.token), column(|e| e.label), column(|e| e.count)];
    let shape = || vec![token.len()];
    let tensors =
        [("token", shape(), &token[..]), ("label", shape(), &label[..]), ("count", shape(), &count[..])];
    Ok(safetensors::write(path, DType::F32, &tensors)?)
}

/// PEFT's adapter for a model of this shape.
pub(crate) fn from_peft(peft: &formats::Adapter, config: &ModelConfig) -> Result<engine::Adapter> {
    let named =
        |p: &Projection| p.module(config).is_some_and(|module| peft.config.target_modules.contains(&module));
    let lora = Lora {
        rank: peft.config.r,
        alpha: peft.config.lora_alpha as f32,
        rslora: peft.config.use_rslora,
        projections: Projection::ALL.into_iter().filter(named).collect(),
    };
    Ok(engine::Adapter::from_tensors(lora, config, &peft.tensors)?)
}

/// The adapter as PEFT reads it.
fn write_adapter(
    path: &Path,
    manifest: &Manifest,
    adapter: &engine::Adapter,
    config: &ModelConfig,
) -> Result<()> {
    let mut target_modules: Vec<String> =
        adapter.lora.projections.iter().filter_map(|p| p.module(config)).collect();
    target_modules.sort_unstable();
    target_modules.dedup();
    let config_json = AdapterConfig {
        base_model_name_or_path: Some(manifest.base.name.clone()),
        revision: None,
        r: adapter.lora.rank,
        lora_alpha: f64::from(adapter.lora.alpha),
        lora_dropout: 0.0,
        use_rslora: adapter.lora.rslora,
        target_modules,
    };
    formats::Adapter { config: config_json, tensors: adapter.to_tensors(config) }.write(path)?;
    Ok(())
}

/// What the training of the run in this folder took, where it was written down.
pub fn measured(run: &Path) -> Option<Measured> {
    read_json(&run.join(MEASURED)).ok()
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    bytes.push(b'\n');
    Ok(store::write_atomically(path, &bytes)?)
}
