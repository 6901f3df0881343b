//! TF-IDF: sublinear term counts times smooth inverse document frequency, each analyzer's part of length 1.

use super::ngrams::Analyzer;
use std::collections::HashMap;

/// One row of a sparse matrix: feature indices in ascending order and their values.
pub(super) type SparseRow = Vec<(u32, f32)>;

/// Both analyzers' features, side by side as in scikit-learn's `FeatureUnion`.
#[derive(Debug, Clone)]
pub(super) struct Tfidf {
    parts: [Part; 2],
}

/// The vocabulary of one analyzer.
#[derive(Debug, Clone)]
struct Part {
    analyzer: Analyzer,
    /// Feature indices start here.
    offset: u32,
    vocabulary: HashMap<String, u32>,
    /// `ln((1 + rows) / (1 + rows with the feature)) + 1`, by feature.
    idf: Vec<f32>,
}

impl Tfidf {
    /// Collects the vocabulary of the texts and returns their rows as well.
    pub(super) fn fit(texts: &[&str]) -> (Self, Vec<SparseRow>) {
        let mut rows = vec![SparseRow::new(); texts.len()];
        let words = Part::fit(Analyzer::Word, 0, texts, &mut rows);
        let chars = Part::fit(Analyzer::CharInWord, words.idf.len() as u32, texts, &mut rows);
        (Self { parts: [words, chars] }, rows)
    }

    /// The features of one text; n-grams that were not in the training texts are dropped.
    pub(super) fn transform(&self, text: &str) -> SparseRow {
        let mut row = SparseRow::new();
        for part in &self.parts {
            let mut found = Vec::new();
            part.analyzer.each(text, |gram| found.extend(part.vocabulary.get(gram)));
            row.extend(part.weigh(count(found)));
        }
        row
    }

    /// The n-grams of each analyzer in the order of their features, and their weights.
    pub(super) fn to_parts(&self) -> ([Vec<String>; 2], [Vec<f32>; 2]) {
        let grams = self.parts.each_ref().map(|part| {
            let mut grams = vec![String::new(); part.idf.len()];
            part.vocabulary.iter().for_each(|(gram, &feature)| grams[feature as usize].clone_from(gram));
            grams
        });
        (grams, self.parts.each_ref().map(|part| part.idf.clone()))
    }

    /// The reverse of [`Tfidf::to_parts`], or what does not fit together.
    pub(super) fn from_parts(grams: [Vec<String>; 2], idf: [Vec<f32>; 2]) -> Result<Self, String> {
        let offsets = [0, grams[0].len() as u32];
        let mut parts = Vec::with_capacity(2);
        let analyzers = [Analyzer::Word, Analyzer::CharInWord].into_iter().zip(offsets);
        for ((analyzer, offset), (grams, idf)) in analyzers.zip(grams.into_iter().zip(idf)) {
            if grams.len() != idf.len() {
                return Err(format!("it has {} n-grams with {} weights", grams.len(), idf.len()));
            }
            let vocabulary: HashMap<String, u32> = grams.into_iter().zip(0..).collect();
            if vocabulary.len() != idf.len() {
                return Err("it has an n-gram twice".to_owned());
            }
            parts.push(Part { analyzer, offset, vocabulary, idf });
        }
        let [words, chars] = <[Part; 2]>::try_from(parts).map_err(|_| "it has not two parts".to_owned())?;
        Ok(Self { parts: [words, chars] })
    }

    /// Features of both analyzers.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.idf.len()).sum()
    }
}

impl Part {
    fn fit(analyzer: Analyzer, offset: u32, texts: &[&str], rows: &mut [SparseRow]) -> Self {
        let mut vocabulary: HashMap<String, u32> = HashMap::new();
        let mut document_counts: Vec<u32> = Vec::new();
        let mut counted = Vec::with_capacity(texts.len());
        for text in texts {
            let mut found = Vec::new();
            analyzer.each(text, |gram| {
                let next = vocabulary.len() as u32;
                found.push(*vocabulary.get(gram).unwrap_or(&next));
                if found.last() == Some(&next) {
                    vocabulary.insert(gram.to_owned(), next);
                    document_counts.push(0);
                }
            });
            let counts = count(found);
            for &(feature, _) in &counts {
                document_counts[feature as usize] += 1;
            }
            counted.push(counts);
        }
        let n = texts.len() as f64;
        let idf = |&rows: &u32| (((1.0 + n) / (1.0 + f64::from(rows))).ln() + 1.0) as f32;
        let part = Self { analyzer, offset, vocabulary, idf: document_counts.iter().map(idf).collect() };
        for (row, counts) in rows.iter_mut().zip(counted) {
            row.extend(part.weigh(counts));
        }
        part
    }

    /// Counts to values of length 1.
    fn weigh(&self, mut row: SparseRow) -> SparseRow {
        for (feature, value) in &mut row {
            *value = (1.0 + value.ln()) * self.idf[*feature as usize];
            *feature += self.offset;
        }
        let length = row.iter().map(|(_, value)| value * value).sum::<f32>().sqrt();
        for (_, value) in &mut row {
            *value /= length;
        }
        row
    }
}

/// How often each feature was found, in ascending order.
fn count(mut found: Vec<u32>) -> SparseRow {
    found.sort_unstable();
    found.chunk_by(|a, b| a == b).map(|equal| (equal[0], equal.len() as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_values_by_hand() {
        let (tfidf, rows) = Tfidf::fit(&["card card lost", "card"]);
        // "card" stands in both rows: idf 1; "lost", "card card" and "card lost" in one of two: idf ln(3/2) + 1
        let (rare, card) = (1.5f32.ln() + 1.0, 1.0 + 2f32.ln());
        let length = (card * card + 3.0 * rare * rare).sqrt();
        let words: Vec<f32> = rows[0].iter().take(4).map(|(_, value)| *value).collect();
        assert!(
            (words[0] - card / length).abs() < 1e-6 && (words[1] - rare / length).abs() < 1e-6,
            "{words:?}"
        );
        assert_eq!(tfidf.transform("card card lost"), rows[0]);
        assert_eq!(tfidf.transform("CARD"), rows[1]);
    }

    #[test]
    fn each_part_has_length_one() {
        let (tfidf, rows) = Tfidf::fit(&["top up my card", "lost it"]);
        for row in rows {
            let squares = row.iter().map(|(_, value)| value * value).sum::<f32>();
            assert!((squares - 2.0).abs() < 1e-5, "{squares}");
            assert!(row.is_sorted_by(|a, b| a.0 < b.0));
        }
        assert!(tfidf.transform("zzz").is_empty());
    }
}
