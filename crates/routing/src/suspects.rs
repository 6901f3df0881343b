//! Training rows whose label may be wrong, as a file that a person corrects, and the corrections read back.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::calibration::{Calibration, top};
use crate::duplicates::Groups;
use crate::linear::{LinearConfig, LinearModel};
use crate::{Error, Example};

/// Parts that the rows are cut into; each is judged by a model that saw the others alone.
const FOLDS: usize = 5;
/// The least probability of another label at which a row is suspected.
pub const CONFIDENT: f64 = 0.8;

/// A row whose label may be wrong, and what the person who looks at it decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    /// The row's number in its file, from 1.
    pub row: usize,
    /// The query.
    pub text: String,
    /// Its label as it is.
    pub label: String,
    /// The label that is suspected to be right.
    pub suggested: String,
    /// How sure that is, from 0 to 1.
    pub confidence: f64,
    /// Why the row is here.
    pub reason: Reason,
    /// For the reader to fill in: the right label; null leaves the row as it is.
    pub corrected: Option<String>,
    /// For the reader to fill in: whether the row goes away.
    #[serde(default)]
    pub remove: bool,
}

/// Why a row is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A linear model that has not seen the row, nor a near copy of it, is sure of another label.
    OutOfFold,
    /// Near copies of the row have another label.
    NearCopy,
}

/// The rows that are suspected, the surest suspicion first.
///
/// A linear model is trained on four fifths of the rows and judges the last fifth, five times; near copies are always
/// in the same fifth. Its scores become probabilities with a temperature fitted on all of them. A row is suspected
/// from [`CONFIDENT`] on, or when most of its near copies have another label than it.
///
/// # Errors
/// [`Error::LinearSize`] for more labels and words than that model can have.
pub fn find(rows: &[Example], seed: u64) -> Result<Vec<Suspect>, Error> {
    let texts: Vec<_> = rows.iter().map(Example::full_text).collect();
    let groups = Groups::near(&texts);
    let mut found = near_copies(rows, &groups);
    for (row, suggested, confidence) in out_of_fold(rows, &texts, &groups, seed)? {
        let suspicion = (suggested, confidence, Reason::OutOfFold);
        found.entry(row).and_modify(|known| {
            if known.1 < suspicion.1 {
                *known = suspicion.clone();
            }
        });
        found.entry(row).or_insert(suspicion);
    }
    let mut suspects: Vec<Suspect> = found
        .into_iter()
        .map(|(row, (suggested, confidence, reason))| Suspect {
            row: row + 1,
            text: rows[row].text.clone(),
            label: rows[row].label.clone(),
            suggested,
            confidence,
            reason,
            corrected: None,
            remove: false,
        })
        .collect();
    suspects.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then(a.row.cmp(&b.row)));
    Ok(suspects)
}

/// By row: the label that at least as many of its near copies have as its own, and their share.
fn near_copies(rows: &[Example], groups: &Groups) -> BTreeMap<usize, (String, f64, Reason)> {
    let mut found = BTreeMap::new();
    for members in groups.members() {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for &row in &members {
            *counts.entry(&rows[row].label).or_default() += 1;
        }
        for &row in members.iter().filter(|_| counts.len() > 1) {
            let own = counts[rows[row].label.as_str()];
            let others = counts.iter().filter(|(label, _)| **label != rows[row].label);
            // the first of equals, so that the answer is always the same
            let most = others
                .fold(("", 0), |best, (label, &count)| if count > best.1 { (label, count) } else { best });
            if most.1 >= own {
                let share = most.1 as f64 / members.len() as f64;
                found.insert(row, (most.0.to_owned(), share, Reason::NearCopy));
            }
        }
    }
    found
}

/// Rows that a model which has not seen them is sure to have another label: the row, that label, its probability.
fn out_of_fold<T: AsRef<str>>(
    rows: &[Example],
    texts: &[T],
    groups: &Groups,
    seed: u64,
) -> Result<Vec<(usize, String, f64)>, Error> {
    let mut labels: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
    labels.sort_unstable();
    labels.dedup();
    if labels.len() < 2 || rows.len() < FOLDS {
        return Ok(Vec::new());
    }
    let truth: Vec<usize> =
        rows.iter().map(|row| labels.partition_point(|label| *label < row.label.as_str())).collect();
    let fold: Vec<usize> = (0..rows.len()).map(|row| fold_of(groups.of(row), seed)).collect();
    let mut scores = vec![Vec::new(); rows.len()];
    for number in 0..FOLDS {
        let (held, kept): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|&row| fold[row] == number);
        let kept_texts: Vec<&str> = kept.iter().map(|&row| texts[row].as_ref()).collect();
        let kept_labels: Vec<usize> = kept.iter().map(|&row| truth[row]).collect();
        let model = LinearModel::train(&kept_texts, &kept_labels, labels.len(), &LinearConfig::default())?;
        for row in held {
            scores[row] = model.predict(texts[row].as_ref()).1;
        }
    }
    let calibration = Calibration::fit(&scores, &truth);
    let suspicion = |row: usize| {
        let (label, probability) = top(&calibration.probabilities(&scores[row]));
        (label != truth[row] && probability >= CONFIDENT)
            .then(|| (row, labels[label].to_owned(), probability))
    };
    Ok((0..rows.len()).filter_map(suspicion).collect())
}

/// A fold that depends on the group and the seed alone.
fn fold_of(group: usize, seed: u64) -> usize {
    use rand::{RngExt, SeedableRng};
    rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ (group as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .random_range(0..FOLDS)
}

/// What corrections did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Corrected {
    /// Rows with a new label.
    pub relabelled: usize,
    /// Rows that went away.
    pub removed: usize,
    /// Rows of the file of suspects that stay as they are.
    pub kept: usize,
}

/// Reads a file of suspects, one JSON object a line.
///
/// # Errors
/// When it cannot be read, or a line is none; the line is named.
pub fn read(path: &Path) -> Result<Vec<Suspect>, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| Error::Correction {
                path: path.to_path_buf(),
                line: index + 1,
                reason: error.to_string(),
            })
        })
        .collect()
}

/// Applies what a person decided to the rows that the suspects were found in.
///
/// # Errors
/// When a suspect is not the row that it names, as after the data was changed, or its new label is empty. The rows are
/// then as they were.
pub fn apply(rows: &mut Vec<Example>, suspects: &[Suspect], path: &Path) -> Result<Corrected, Error> {
    for (index, suspect) in suspects.iter().enumerate() {
        let found = suspect.row.checked_sub(1).and_then(|row| rows.get(row));
        let fits = found.is_some_and(|row| row.text == suspect.text && row.label == suspect.label);
        let empty = suspect.corrected.as_ref().is_some_and(|label| label.trim().is_empty());
        if !fits || empty {
            let reason = match found {
                _ if empty => "its new label is empty".to_owned(),
                None => format!("the data has no row {}", suspect.row),
                Some(row) => {
                    format!("row {} of the data is `{}`, labelled `{}`", suspect.row, row.text, row.label)
                }
            };
            return Err(Error::Correction { path: path.to_path_buf(), line: index + 1, reason });
        }
    }
    let mut done = Corrected { relabelled: 0, removed: 0, kept: 0 };
    let mut removed = vec![false; rows.len()];
    for suspect in suspects {
        let row = &mut rows[suspect.row - 1];
        match &suspect.corrected {
            _ if suspect.remove => {
                removed[suspect.row - 1] = true;
                done.removed += 1;
            }
            Some(label) if label.trim() != row.label => {
                label.trim().clone_into(&mut row.label);
                done.relabelled += 1;
            }
            _ => done.kept += 1,
        }
    }
    let mut removed = removed.into_iter();
    rows.retain(|_| !removed.next().unwrap_or(false));
    Ok(done)
}

#[cfg(test)]
mod tests;
