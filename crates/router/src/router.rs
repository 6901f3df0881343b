//! Queries in, departments out.

use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;

use engine::{Draft, Model, Storage};
use formats::{BaseModel, Tokenizer};
use kernels::{Backend, Encoding};
use routing::Example;
use routing::calibration::{Decision, top};
use routing::linear::LinearModel;

use crate::Result;
use crate::manifest::Manifest;
use crate::packed;
use crate::plan::Method;
use crate::prompt::Query;
use crate::run::RunFolder;
use crate::scoring::Scoring;

/// Rows answered between two reports of progress.
const AT_ONCE: usize = 64;

/// What the router says to one query.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Index of the most probable label.
    pub label: usize,
    /// Its calibrated probability.
    pub probability: f64,
    /// Whether it is about anything that the labels cover; true for a run that has no rule for it.
    pub in_scope: bool,
    /// Route it, or let a person look.
    pub decision: Decision,
    /// The calibrated probability of every label.
    pub probabilities: Vec<f64>,
    /// `ln P(label | query)` before calibration.
    pub log_probs: Vec<f32>,
    /// No uncalibrated probability is off by more than this.
    pub error_bound: f32,
    /// Whether the query was too long and lost its end.
    pub cut: bool,
}

/// A trained model ready to answer.
pub struct Router<B: Backend> {
    manifest: Manifest,
    reader: Reader<B>,
}

/// What reads a query.
enum Reader<B: Backend> {
    /// A base model with what was trained.
    Model(Box<Trained<B>>),
    /// N-grams alone.
    Linear(LinearModel),
}

struct Trained<B: Backend> {
    model: Model<B>,
    scoring: Scoring<B>,
    tokenizer: Tokenizer,
}

impl<B: Backend> Router<B> {
    /// Loads the base model, what the run trained, and its frozen prompt. LoRA is merged into the weights, in
    /// `encoding`; a decoder that a head reads stays as the head was fitted on it.
    ///
    /// # Errors
    /// When the base is not the one the run was trained on, or a file does not fit.
    pub fn open(backend: B, run: RunFolder, base: &BaseModel, encoding: Encoding) -> Result<Self> {
        let method = run.manifest.method;
        let storage = match method {
            Method::Lora => Storage::AsStored,
            Method::Qlora => Storage::FourBits,
            Method::Full | Method::Head | Method::Linear => Storage::Expanded,
        };
        let by_head = base.config.is_encoder() || method == Method::Head;
        let (checked, tokenizer, draft, model) = std::thread::scope(|scope| {
            let checked = scope.spawn(|| run.check_base(base));
            let tokenizer = scope.spawn(|| run.tokenizer());
            let draft = scope.spawn(|| run.draft());
            let read = |backend| {
                let adapter = method.has_adapter().then(|| run.adapter(&base.config)).transpose()?;
                read_model(backend, base, storage, method, adapter.as_ref(), encoding)
            };
            let merges = matches!(method, Method::Lora | Method::Full) && !by_head;
            let model = if merges {
                packed::kept_or(backend, base, &run.manifest, encoding, read)
            } else {
                read(backend)
            };
            (join(checked), join(tokenizer), join(draft), model)
        });
        checked?;
        let (tokenizer, mut model) = (tokenizer?, model?);
        if !by_head {
            return Self::of_decoder(run.manifest, model, tokenizer, draft?);
        }
        model.set_context(run.manifest.prompt.longest(&run.manifest.labels));
        let scoring = Scoring::head(run.head(model.config())?, &run.manifest.prompt);
        let reader = Reader::Model(Box::new(Trained { model, scoring, tokenizer }));
        Ok(Self { manifest: run.manifest, reader })
    }

    /// Opens a run of method `linear`, which has no base model.
    ///
    /// # Errors
    /// When the model's files do not fit.
    pub fn open_linear(run: RunFolder) -> Result<Self> {
        let linear = run.linear()?;
        Ok(Self { manifest: run.manifest, reader: Reader::Linear(linear) })
    }

    /// A router that scores the tokens of labels, with what the run trained in the model.
    pub(crate) fn of_decoder(
        manifest: Manifest,
        mut model: Model<B>,
        tokenizer: Tokenizer,
        draft: Option<Draft>,
    ) -> Result<Self> {
        model.set_context(manifest.prompt.longest(&manifest.labels));
        let labels: Vec<Vec<u32>> = manifest.labels.iter().map(|label| label.ids.clone()).collect();
        let scoring = Scoring::tokens(&model, &labels, &manifest.prompt, draft)?;
        let reader = Reader::Model(Box::new(Trained { model, scoring, tokenizer }));
        Ok(Self { manifest, reader })
    }

    /// What the run says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The name of a label.
    pub fn label(&self, index: usize) -> &str {
        &self.manifest.labels[index].text
    }

    /// How many tokens a text has, when it stands alone; without a tokenizer, how many words.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokens(&self, text: &str) -> Result<usize> {
        match &self.reader {
            Reader::Model(trained) => Ok(trained.tokenizer.encode_plain(text)?.len()),
            Reader::Linear(_) => Ok(text.split_whitespace().count()),
        }
    }

    /// What runs and how.
    pub fn device(&self) -> String {
        match &self.reader {
            Reader::Model(trained) => trained.model.backend().name(),
            Reader::Linear(_) => self.manifest.device.clone(),
        }
    }

    /// Answers each query; no answer depends on the others.
    ///
    /// # Errors
    /// When a query does not fit the model.
    pub fn route(&mut self, queries: &[Query<'_>]) -> Result<Vec<Answer>> {
        let Trained { model, scoring, tokenizer } = match &mut self.reader {
            Reader::Model(trained) => &mut **trained,
            Reader::Linear(linear) => {
                let log_probs: Vec<Vec<f32>> =
                    queries.iter().map(|query| linear.log_probs(query.text)).collect();
                return Ok(log_probs.into_iter().map(|row| self.answer(row, 0.0, false)).collect());
            }
        };
        let prompt = &self.manifest.prompt;
        let encoded =
            queries.iter().map(|query| prompt.encode(tokenizer, *query)).collect::<Result<Vec<_>>>()?;
        let ids: Vec<&[u32]> = encoded.iter().map(|(ids, _)| &ids[..]).collect();
        let scores = scoring.score(model, &ids)?;
        let answers = scores.into_iter().zip(&encoded);
        Ok(answers
            .map(|(scores, (_, cut))| self.answer(scores.log_probs, scores.error_bound, *cut))
            .collect())
    }

    /// Answers the texts of labelled rows, many together. `answered` hears of progress: rows done, of all.
    ///
    /// # Errors
    /// When a query does not fit the model.
    pub fn route_all(
        &mut self,
        rows: &[Example],
        answered: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(rows.len());
        for group in rows.chunks(AT_ONCE) {
            let queries: Vec<Query<'_>> = group.iter().map(Query::from).collect();
            answers.extend(self.route(&queries)?);
            answered(answers.len(), rows.len());
        }
        Ok(answers)
    }

    /// The decision that follows from scores.
    fn answer(&self, log_probs: Vec<f32>, error_bound: f32, cut: bool) -> Answer {
        let probabilities = self.manifest.calibration.probabilities(&log_probs);
        let (label, probability) = top(&probabilities);
        let name = &self.manifest.labels[label].text;
        let in_scope = self.manifest.scope.as_ref().is_none_or(|scope| scope.admits(name, probability));
        let decision =
            if in_scope { self.manifest.thresholds.decide(label, probability) } else { Decision::Triage };
        Answer { label, probability, in_scope, decision, probabilities, log_probs, error_bound, cut }
    }
}

/// Reads a model with what a run trained in it.
pub(crate) fn read_model<B: Backend>(
    backend: B,
    base: &BaseModel,
    storage: Storage,
    method: Method,
    adapter: Option<&engine::Adapter>,
    encoding: Encoding,
) -> Result<Model<B>> {
    match (method, adapter) {
        // Merged, the weights would no longer fit their 4 bits.
        (Method::Qlora, Some(adapter)) => {
            let mut model = Model::load(backend, base, storage)?;
            model.attach(adapter);
            Ok(model)
        }
        // What bytes would cost a head on a decoder has not been measured.
        (Method::Head, None) if !base.config.is_encoder() => Ok(Model::load(backend, base, storage)?),
        _ => Ok(Model::load_merged(backend, base, storage, adapter, encoding)?),
    }
}

/// What a thread returned; its panic goes on in this one.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
