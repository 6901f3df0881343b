//! From labelled texts to what the engine trains on.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::path::Path;

use engine::{Balance, Draft, Example, LabelTrie, PassSizes};
use formats::{BaseModel, Tokenizer};
use routing::{Dataset, ReadOptions};

use crate::manifest::{DataRecord, LabelRecord, Manifest};
use crate::plan::{Method, Recipe};
use crate::prompt::{Prompt, Query};
use crate::{Error, Result};

/// The examples of a run, read and checked.
#[derive(Debug, Clone)]
pub struct TrainData {
    /// Examples to train on.
    pub(crate) train: Vec<routing::Example>,
    /// Examples to validate on.
    pub(crate) valid: Vec<routing::Example>,
    /// The training file.
    pub(crate) data: DataRecord,
    /// The validation file, if there is one.
    pub(crate) valid_file: Option<DataRecord>,
}

impl TrainData {
    /// Checks the data, and holds validation examples out when there is no file of them: some of every label, with
    /// duplicates on one side.
    ///
    /// # Errors
    /// When the data cannot be trained on.
    pub fn new(
        train: Dataset,
        valid: Option<Dataset>,
        fields: &ReadOptions,
        recipe: &Recipe,
    ) -> Result<Self> {
        train.check_trainable()?;
        let data = record(&train, fields);
        if let Some(valid) = valid {
            let valid_file = Some(record(&valid, fields));
            return Ok(Self { train: train.examples, valid: valid.examples, data, valid_file });
        }
        let most = recipe.max_validation as f64 / train.examples.len() as f64;
        let share = recipe.validation_share.min(most);
        let (kept, held) = routing::split(&train.examples, share, recipe.seed);
        let take = |rows: Vec<usize>| rows.into_iter().map(|row| train.examples[row].clone()).collect();
        Ok(Self { train: take(kept), valid: take(held), data, valid_file: None })
    }

    /// The data of a finished run, read again from where the run says.
    ///
    /// # Errors
    /// When a file cannot be read, or is not the one that the run was trained on.
    pub fn of_run(manifest: &Manifest) -> Result<Self> {
        let record = &manifest.data;
        let fields =
            ReadOptions { text_field: record.text_field.clone(), label_field: record.label_field.clone() };
        let read = |path: &Path, record: &DataRecord| {
            let file = routing::read(path, &fields)?;
            let same = file.sha256 == record.sha256;
            if same { Ok(file) } else { Err(Error::OtherData { path: path.to_path_buf() }) }
        };
        let train = read(&record.path, record)?;
        let valid = manifest.valid.as_ref().map(|valid| read(&valid.path, valid)).transpose()?;
        Self::new(train, valid, &fields, &manifest.recipe)
    }

    /// The examples that are trained on.
    pub fn train(&self) -> &[routing::Example] {
        &self.train
    }

    /// The examples that are validated on.
    pub fn valid(&self) -> &[routing::Example] {
        &self.valid
    }

    /// The labels of the training examples, sorted, each once.
    pub(crate) fn label_names(&self) -> Vec<String> {
        let mut labels: Vec<String> = self.train.iter().map(|example| example.label.clone()).collect();
        labels.sort_unstable();
        labels.dedup();
        labels
    }

    fn varied(&self) -> bool {
        let system = self.train.first().and_then(|example| example.system.clone());
        self.train.iter().any(|example| example.system != system || !example.history.is_empty())
    }
}

/// What is remembered of a data file.
pub(crate) fn record(dataset: &Dataset, fields: &ReadOptions) -> DataRecord {
    DataRecord {
        path: dataset.path.to_path_buf(),
        text_field: fields.text_field.clone(),
        label_field: fields.label_field.clone(),
        rows: dataset.examples.len(),
        sha256: dataset.sha256.clone(),
    }
}

/// The prompt of a run: an encoder's text stands alone, a decoder's in its chat template.
fn prompt(data: &TrainData, base: &BaseModel, tokenizer: &Tokenizer, recipe: &Recipe) -> Result<Prompt> {
    let model = base.name();
    if base.config.is_encoder() {
        // Room for what stands around the text.
        let most = base.config.max_positions.saturating_sub(8).max(1);
        return Prompt::around(tokenizer, model, recipe.max_tokens.min(most));
    }
    let template = base.chat_template().ok_or_else(|| Error::NoTemplate { model: model.to_owned() })?;
    let varied = data.varied();
    // The data's own system message, when all examples have the same.
    let own = data.train.first().and_then(|example| example.system.as_deref()).filter(|_| !varied);
    let system = own.unwrap_or(&recipe.system);
    Prompt::freeze(template, tokenizer, model, system, varied, recipe.max_tokens)
}

/// What `work` makes of each row, in their order, a part of them on each thread.
fn on_threads<T: Send>(
    rows: &[routing::Example],
    work: impl Fn(&[routing::Example]) -> Result<Vec<T>> + Sync,
) -> Result<Vec<T>> {
    let part = rows.len().div_ceil(kernels::pool::threads()).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = rows.chunks(part).map(|rows| scope.spawn(|| work(rows))).collect();
        let mut all = Vec::with_capacity(rows.len());
        for thread in threads {
            all.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// The same examples as tokens.
pub(crate) struct Encoded {
    pub(crate) prompt: Prompt,
    pub(crate) labels: Vec<LabelRecord>,
    pub(crate) train: Vec<Example>,
    /// Each training example's label.
    pub(crate) train_labels: Vec<usize>,
    pub(crate) valid: Vec<Vec<u32>>,
    /// Each validation example's label; the number of labels where training has none such.
    pub(crate) valid_labels: Vec<usize>,
    /// Queries cut to the longest length.
    pub(crate) cut: usize,
    /// The model's token for a hidden one, if it knows one.
    pub(crate) mask: Option<u32>,
    /// What guesses a label from a query's tokens; nothing where a head reads the query.
    pub(crate) draft: Option<Draft>,
}

impl Encoded {
    /// What decides the size of the training's passes.
    pub(crate) fn pass_sizes(&self, recipe: &Recipe, devices: usize) -> PassSizes {
        PassSizes {
            prefix: self.prompt.shared_ids().len(),
            longest: self.train.iter().map(Example::read).max().unwrap_or(0),
            batch: recipe.sized_for(self.train.len(), false).0,
            devices,
            rows_per_pass: recipe.rows_per_pass,
            recompute: recipe.recompute,
        }
    }

    pub(crate) fn new(
        data: &TrainData,
        base: &BaseModel,
        tokenizer: &Tokenizer,
        recipe: &Recipe,
    ) -> Result<Self> {
        let prompt = prompt(data, base, tokenizer, recipe)?;
        let names = data.label_names();
        // A head tells labels apart by their index.
        let by_head = base.config.is_encoder() || recipe.method_for(base) == Method::Head;
        let ids = if by_head {
            vec![Vec::new(); names.len()]
        } else {
            let ids = prompt.encode_labels(tokenizer, &names)?;
            LabelTrie::new(&ids)?;
            ids
        };
        let index: HashMap<&str, usize> =
            names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let label_of =
            |example: &routing::Example| index.get(example.label.as_str()).copied().unwrap_or(names.len());
        let train_labels: Vec<usize> = data.train.iter().map(label_of).collect();
        let factors = match recipe.balance {
            Balance::Weight => Balance::factors(&train_labels),
            Balance::None | Balance::Sample => vec![1.0; train_labels.len()],
        };
        let encode = |examples: &[routing::Example]| -> Result<Vec<_>> {
            examples.iter().map(|example| prompt.encode(tokenizer, Query::from(example))).collect()
        };
        let (queries, valid) = (on_threads(&data.train, encode)?, on_threads(&data.valid, encode)?);
        let cut = queries.iter().chain(&valid).filter(|(_, cut)| *cut).count();
        let valid = valid.into_iter().map(|(ids, _)| ids).collect();
        let known = train_labels.iter().zip(&factors);
        let example = |((query, _), (&label, &weight)): ((Vec<u32>, bool), (&usize, &f32))| {
            let target = if by_head { vec![label as u32] } else { ids[label].clone() };
            Example { query, target, weight }
        };
        let train: Vec<Example> = queries.into_iter().zip(known).map(example).collect();
        let mut counts = vec![0; names.len()];
        for &label in &train_labels {
            counts[label] += 1;
        }
        let rows = names.iter().zip(ids).zip(counts);
        let labels =
            rows.map(|((text, ids), examples)| LabelRecord { text: text.clone(), ids, examples }).collect();
        let valid_labels = data.valid.iter().map(label_of).collect();
        let queries = train.iter().map(|example| &example.query[..]);
        let counted = queries.zip(train_labels.iter().copied());
        let draft = (!by_head).then(|| Draft::fit(names.len(), counted));
        let mask = tokenizer.id("[MASK]");
        Ok(Self { prompt, labels, train, train_labels, valid, valid_labels, cut, mask, draft })
    }

    /// The first examples as pieces of text, each with whether it carries loss.
    pub(crate) fn show(&self, tokenizer: &Tokenizer, count: usize) -> Result<Vec<Vec<(String, bool)>>> {
        let shown = self.train.iter().zip(&self.train_labels).take(count).map(|(example, &label)| {
            let before: Vec<u32> = self.prompt.shared_ids().iter().chain(&example.query).copied().collect();
            let mut pieces = vec![(tokenizer.decode(&before, false)?, false)];
            let label = &self.labels[label];
            for &token in &label.ids {
                pieces.push((tokenizer.decode(&[token], false)?, true));
            }
            if label.ids.is_empty() {
                pieces.push((format!(" → {}", label.text), false));
            }
            Ok(pieces)
        });
        shown.collect()
    }
}
