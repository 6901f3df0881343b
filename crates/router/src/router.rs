//! Queries in, departments out.

use engine::{Model, Storage};
use formats::{BaseModel, Tokenizer};
use kernels::Backend;
use routing::calibration::{Decision, top};

use crate::Result;
use crate::manifest::Manifest;
use crate::plan::Method;
use crate::prompt::Query;
use crate::run::RunFolder;
use crate::scoring::Scoring;

/// What the router says to one query.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Index of the most probable label.
    pub label: usize,
    /// Its calibrated probability.
    pub probability: f64,
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
    model: Model<B>,
    scoring: Scoring<B>,
    tokenizer: Tokenizer,
}

impl<B: Backend> Router<B> {
    /// Loads the base model, what the run trained, and its frozen prompt.
    ///
    /// # Errors
    /// When the base is not the one the run was trained on, or a file does not fit.
    pub fn open(backend: B, run: RunFolder, base: &BaseModel) -> Result<Self> {
        run.check_base(base)?;
        let mut model = Model::load(backend, base, Storage::Expanded)?;
        let tokenizer = run.tokenizer()?;
        let prompt = &run.manifest.prompt;
        let scoring = match run.manifest.method {
            Method::Lora => {
                model.attach(&run.adapter(model.config())?);
                let labels: Vec<Vec<u32>> =
                    run.manifest.labels.iter().map(|label| label.ids.clone()).collect();
                Scoring::tokens(&model, &labels, prompt)?
            }
            Method::Head => Scoring::head(run.head(model.config())?, prompt),
        };
        Ok(Self { manifest: run.manifest, model, scoring, tokenizer })
    }

    /// What the run says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The name of a label.
    pub fn label(&self, index: usize) -> &str {
        &self.manifest.labels[index].text
    }

    /// How many tokens a text has, when it stands alone.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokens(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode_plain(text)?.len())
    }

    /// What runs and how.
    pub fn device(&self) -> String {
        self.model.backend().name()
    }

    /// Answers each query; no answer depends on the others.
    ///
    /// # Errors
    /// When a query does not fit the model.
    pub fn route(&mut self, queries: &[Query<'_>]) -> Result<Vec<Answer>> {
        let prompt = &self.manifest.prompt;
        let encoded =
            queries.iter().map(|query| prompt.encode(&self.tokenizer, *query)).collect::<Result<Vec<_>>>()?;
        let ids: Vec<&[u32]> = encoded.iter().map(|(ids, _)| &ids[..]).collect();
        let scores = self.scoring.score(&self.model, &ids)?;
        let answer = |(scores, (_, cut)): (engine::LabelScores, &(Vec<u32>, bool))| {
            let probabilities = self.manifest.calibration.probabilities(&scores.log_probs);
            let (label, probability) = top(&probabilities);
            let decision = self.manifest.thresholds.decide(label, probability);
            let (log_probs, error_bound) = (scores.log_probs, scores.error_bound);
            Answer { label, probability, decision, probabilities, log_probs, error_bound, cut: *cut }
        };
        Ok(scores.into_iter().zip(&encoded).map(answer).collect())
    }
}
