//! Transfer learning: the model stays as it is, and a linear head learns to read it.

use engine::{Features, Head, HeadFit, HeadProblem, Model};
use kernels::Backend;
use routing::calibration::Calibration;

use crate::examples::Encoded;
use crate::observer::Observer;
use crate::{Error, Result};

/// Strengths of the weights' penalty that are tried, the strongest first: each fit starts where the last ended.
const STRENGTHS: [f64; 7] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64];

/// Texts between two questions whether to go on.
const PIECE: usize = 1024;

/// A fitted head.
pub(crate) struct Transferred {
    pub(crate) head: Head,
    /// The training examples' features.
    pub(crate) features: Vec<f32>,
    /// What a head that has not seen the validation examples says to them.
    pub(crate) log_probs: Vec<Vec<f32>>,
}

/// Computes every example's features once, picks the penalty with the best likelihood on the validation examples, and
/// fits the head that is kept: on all examples, unless the validation examples are `apart`, in a file of their own.
pub(crate) fn transfer<B: Backend>(
    model: &Model<B>,
    encoded: &Encoded,
    apart: bool,
    observer: &mut dyn Observer,
) -> Result<Transferred> {
    let train = encoded.train.iter().map(|example| &example.query[..]);
    let texts: Vec<&[u32]> = train.chain(encoded.valid.iter().map(Vec::as_slice)).collect();
    let mut computer = Features::new(encoded.prompt.shared_ids().to_vec());
    let mut features = Vec::new();
    for (piece, first) in texts.chunks(PIECE).zip((0..).step_by(PIECE)) {
        let total = texts.len();
        features.extend(computer.compute(model, piece, &mut |done| observer.scoring(first + done, total))?);
        if !observer.goes_on() {
            return Err(Error::Stopped);
        }
    }

    let (width, classes) = (model.config().hidden_size, encoded.labels.len());
    let (own, held) = features.split_at(encoded.train.len() * width);
    let weights: Vec<f32> = encoded.train.iter().map(|example| example.weight).collect();
    let problem = HeadProblem::new(own, &encoded.train_labels, &weights, classes);
    let judged = |head: &Head| held.chunks_exact(width).map(|row| head.log_probs(row)).collect::<Vec<_>>();
    let mut attempt = |strength: f64, start: Option<&HeadFit>| {
        let fit = problem.fit(strength, start, &mut || observer.goes_on()).ok_or(Error::Stopped)?;
        let log_probs = judged(&problem.head(&fit));
        // As the kept head will be read: after calibration.
        let loss = Calibration::fit(&log_probs, &encoded.valid_labels).nll_after;
        Ok::<_, Error>((loss, strength, fit, log_probs))
    };
    let [strongest, weaker @ ..] = STRENGTHS;
    let mut best = attempt(strongest, None)?;
    for strength in weaker {
        let next = attempt(strength, Some(&best.2))?;
        let better = next.0 < best.0;
        if !better {
            break;
        }
        best = next;
    }
    let (_, strength, fit, log_probs) = best;
    if apart {
        let head = problem.head(&fit);
        features.truncate(encoded.train.len() * width);
        return Ok(Transferred { head, features, log_probs });
    }
    // A label that training does not have cannot be fitted.
    let known: Vec<usize> =
        (0..encoded.valid.len()).filter(|&row| encoded.valid_labels[row] < classes).collect();
    let mut all = own.to_vec();
    all.extend(known.iter().flat_map(|&row| &held[row * width..(row + 1) * width]));
    let labels: Vec<usize> = encoded
        .train_labels
        .iter()
        .copied()
        .chain(known.iter().map(|&row| encoded.valid_labels[row]))
        .collect();
    let factors: Vec<f32> = {
        let mut of_label = vec![1.0; classes];
        encoded.train_labels.iter().zip(&weights).for_each(|(&label, &weight)| of_label[label] = weight);
        labels.iter().map(|&label| of_label[label]).collect()
    };
    let problem = HeadProblem::new(&all, &labels, &factors, classes);
    let fit = problem.fit(strength, Some(&fit), &mut || observer.goes_on()).ok_or(Error::Stopped)?;
    let head = problem.head(&fit);
    features.truncate(encoded.train.len() * width);
    Ok(Transferred { head, features, log_probs })
}
