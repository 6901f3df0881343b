//! The report of an evaluation: one value, rendered as a self-contained HTML page, as Markdown, or as JSON.

mod charts;
mod coverage;
mod disagreement;
mod format;
mod html;
mod markdown;
mod matrix;
mod mistakes;
mod model;
mod prediction;
mod section;
mod summary;
mod versus;

use crate::cascade::Cascade;
use crate::compare::{Answers, Comparison};
use crate::suspects::Suspect;
pub use coverage::{CoveragePoint, coverage_curve};
pub use disagreement::Disagreement;
pub(crate) use format::count;
pub use format::usd;
pub use mistakes::{Mistake, Nearest, Training};
pub use model::{Cost, Latency, ModelSection, Routed, ScopeSection, Seconds};
pub use prediction::{Alternative, Prediction};
use serde::{Deserialize, Serialize};

/// Mistakes listed in a report, the most confident first.
pub const MISTAKES: usize = 20;
/// Suspects listed in a report, the surest first.
pub const SUSPECTS: usize = 20;
/// Seed of the bootstrap.
const SEED: u64 = 0;

/// Everything a report says, in the order it says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was judged, e.g. "Insurance queries to departments".
    pub title: String,
    /// What follows, in plain words.
    pub summary: Vec<String>,
    /// The models, the judged one first, baselines after it.
    pub models: Vec<ModelSection>,
    /// The first model against each of the others, on the same rows.
    pub comparisons: Vec<Comparison>,
    /// Where the first model and each of the others say different things.
    pub disagreements: Vec<Disagreement>,
    /// The first model with a large one behind it.
    pub cascades: Vec<Cascade>,
    /// Training rows whose label may be wrong, at most [`SUSPECTS`].
    pub suspects: Vec<Suspect>,
    /// How many there are; `None` where nobody looked.
    pub suspects_found: Option<usize>,
    /// How the numbers came about.
    pub made: Provenance,
}

/// A model's results with the rows that they were counted from.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The results.
    pub section: ModelSection,
    /// The rows.
    pub rows: Vec<Prediction>,
}

/// What a report says beside the models' results.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// The first model with a large one behind it.
    pub cascades: Vec<Cascade>,
    /// Training rows whose label may be wrong, the surest suspicion first; `None` where nobody looked.
    pub suspects: Option<Vec<Suspect>>,
}

/// A named value, already formatted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// What it is worth.
    pub value: String,
}

/// What is needed to make the report again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The command line.
    pub command: String,
    /// The seed of everything random.
    pub seed: u64,
    /// The data files, models and prompts that it was made from.
    pub inputs: Vec<Input>,
    /// Programs and libraries with their versions, and the machine.
    pub versions: Vec<Fact>,
}

/// A file, folder or prompt that the report was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its part: "training data", "test data", "base model".
    pub role: String,
    /// Its path or name.
    pub name: String,
    /// Its size in words: "2,000 rows".
    pub size: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

impl Report {
    /// Puts the first model beside the others, which answered the same rows, and says in words what that shows.
    ///
    /// # Panics
    /// When the models have different numbers of rows.
    pub fn new(title: String, judged: &[Judged], findings: Findings, made: Provenance) -> Self {
        let (mut comparisons, mut disagreements) = (Vec::new(), Vec::new());
        if let Some((first, others)) = judged.split_first() {
            let truth: Vec<&str> = first.rows.iter().map(|row| row.label.as_str()).collect();
            for other in others {
                let [a, b] = [first, other].map(|model| column(&model.rows));
                let answers = |model, predicted| Answers { name: model, predicted };
                let (name, against) = (&first.section.name, &other.section.name);
                comparisons.push(Comparison::new(&truth, answers(name, &a), answers(against, &b), SEED));
                disagreements.push(Disagreement::new(first, other));
            }
        }
        let suspects_found = findings.suspects.as_ref().map(Vec::len);
        let mut suspects = findings.suspects.unwrap_or_default();
        suspects.truncate(SUSPECTS);
        let mut report = Self {
            title,
            summary: Vec::new(),
            models: judged.iter().map(|model| model.section.clone()).collect(),
            comparisons,
            disagreements,
            cascades: findings.cascades,
            suspects,
            suspects_found,
            made,
        };
        report.summary = summary::sentences(&report);
        report
    }
}

fn column(rows: &[Prediction]) -> Vec<&str> {
    rows.iter().map(|row| row.predicted.as_str()).collect()
}

impl Fact {
    /// A named value.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}
