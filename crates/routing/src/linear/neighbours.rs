//! The texts most like another one, by their TF-IDF features.

use super::tfidf::Tfidf;

/// Texts that can be asked which of them are most like another.
#[derive(Debug, Clone)]
pub struct Neighbours {
    features: Tfidf,
    /// For each feature the texts that have it and their values, in ascending order.
    postings: Vec<Vec<(u32, f32)>>,
    texts: usize,
}

impl Neighbours {
    /// Indexes the texts.
    pub fn new(texts: &[&str]) -> Self {
        let (features, rows) = Tfidf::fit(texts);
        let mut postings = vec![Vec::new(); features.len()];
        for (text, row) in (0..).zip(rows) {
            for (feature, value) in row {
                postings[feature as usize].push((text, value));
            }
        }
        Self { features, postings, texts: texts.len() }
    }

    /// How like `text` each indexed text is, in their order: the cosine, averaged over word and letter features,
    /// from 0 to 1.
    pub fn similarities(&self, text: &str) -> Vec<f32> {
        let mut scores = vec![0.0; self.texts];
        for (feature, value) in self.features.transform(text) {
            for &(other, weight) in &self.postings[feature as usize] {
                scores[other as usize] += 0.5 * value * weight;
            }
        }
        scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_most_like_itself_then_like_its_words() {
        let texts = ["my card was stolen", "the card is stolen", "open a savings account", ""];
        let scores = Neighbours::new(&texts).similarities(texts[0]);
        assert!((scores[0] - 1.0).abs() < 1e-5, "{scores:?}");
        assert!(scores[1] > 0.3 && scores[1] < 0.9, "{scores:?}");
        assert!(scores[2] < 0.1 && scores[3] == 0.0, "{scores:?}");
        assert_eq!(Neighbours::new(&[]).similarities("x"), [] as [f32; 0]);
    }
}
