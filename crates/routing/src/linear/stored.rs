//! A linear model as plain data, to be kept in files.

use serde::{Deserialize, Serialize};

use super::LinearModel;
use super::tfidf::Tfidf;

/// Everything that a [`LinearModel`] is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredLinear {
    /// The n-grams of words, then those of characters, each in the order of its features.
    pub grams: [Vec<String>; 2],
    /// `ln((1 + rows) / (1 + rows with the n-gram)) + 1` of each.
    pub idf: [Vec<f32>; 2],
    /// Labels.
    pub labels: usize,
    /// `(n-grams + 1, labels)`, row-major, the last row being the bias; kept apart from the words.
    #[serde(skip)]
    pub weights: Vec<f32>,
}

impl From<&LinearModel> for StoredLinear {
    fn from(model: &LinearModel) -> Self {
        let (grams, idf) = model.features.to_parts();
        Self { grams, idf, labels: model.n_labels, weights: model.weights.clone() }
    }
}

impl TryFrom<StoredLinear> for LinearModel {
    /// What does not fit together.
    type Error = String;

    fn try_from(stored: StoredLinear) -> Result<Self, String> {
        let StoredLinear { grams, idf, labels, weights } = stored;
        let features = Tfidf::from_parts(grams, idf)?;
        let expected = (features.len() + 1).checked_mul(labels);
        if labels == 0 || expected != Some(weights.len()) {
            let (found, n) = (weights.len(), features.len());
            return Err(format!("it has {found} weights for {n} n-grams and {labels} labels"));
        }
        Ok(Self { features, n_labels: labels, weights })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LinearConfig, LinearModel, StoredLinear};

    #[test]
    fn comes_back_and_refuses_what_does_not_fit() {
        let texts = ["my card was stolen", "open a savings account", "ein Konto, bitte"];
        let model = LinearModel::train(&texts, &[0, 1, 1], 2, &LinearConfig::default()).unwrap();
        let stored = StoredLinear::from(&model);
        let text = serde_json::to_string(&stored).unwrap();
        let read = StoredLinear { weights: stored.weights.clone(), ..serde_json::from_str(&text).unwrap() };
        assert_eq!(read, stored);
        let again = LinearModel::try_from(read).unwrap();
        for text in ["a stolen account", "bitte"] {
            assert_eq!(again.predict(text), model.predict(text));
        }
        let short = StoredLinear { weights: vec![0.0; 3], ..stored.clone() };
        assert!(LinearModel::try_from(short).unwrap_err().contains("3 weights"));
        let mut doubled = stored.clone();
        doubled.grams[0][0] = doubled.grams[0][1].clone();
        assert!(LinearModel::try_from(doubled).unwrap_err().contains("twice"));
        let mut uneven = stored;
        uneven.idf[1].pop();
        assert!(LinearModel::try_from(uneven).is_err());
    }
}
