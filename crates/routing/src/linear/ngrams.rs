//! The two analyzers of the TF-IDF features, splitting text as scikit-learn's do.

use std::ops::RangeInclusive;

/// Words in a word n-gram.
const WORDS: RangeInclusive<usize> = 1..=2;
/// Characters in a character n-gram.
const CHARS: RangeInclusive<usize> = 2..=5;

/// What counts as one feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Analyzer {
    /// Runs of two or more word characters, alone and in pairs (scikit-learn's `analyzer="word"`).
    Word,
    /// Two to five characters inside each blank-padded word (`analyzer="char_wb"`).
    CharInWord,
}

impl Analyzer {
    /// Calls `feature` with every n-gram of the text, repetitions included.
    pub(super) fn each(self, text: &str, feature: impl FnMut(&str)) {
        let lower = text.to_lowercase();
        match self {
            Self::Word => each_word_ngram(&lower, feature),
            Self::CharInWord => each_char_ngram(&lower, feature),
        }
    }
}

/// `\w` of Python's `re`: letters, digits and other numerals, and the underscore.
fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn each_word_ngram(lower: &str, mut feature: impl FnMut(&str)) {
    let runs = lower.split(|c: char| !is_word_char(c));
    let words: Vec<&str> = runs.filter(|run| run.chars().nth(1).is_some()).collect();
    for n in WORDS {
        for window in words.windows(n) {
            feature(&window.join(" "));
        }
    }
}

fn each_char_ngram(lower: &str, mut feature: impl FnMut(&str)) {
    let (mut padded, mut starts) = (String::new(), Vec::new());
    for word in lower.split_whitespace() {
        padded.clear();
        padded.extend([" ", word, " "]);
        starts.clear();
        starts.extend(padded.char_indices().map(|(at, _)| at).chain([padded.len()]));
        let chars = starts.len() - 1;
        for n in CHARS {
            for first in 0..=chars.saturating_sub(n) {
                feature(&padded[starts[first]..starts[(first + n).min(chars)]]);
            }
            // a word that is no longer than this n-gram was taken whole: longer ones would repeat it
            if chars <= n {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(analyzer: Analyzer, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        analyzer.each(text, |gram| found.push(gram.to_owned()));
        found
    }

    #[test]
    fn words_of_two_characters_or_more_and_their_pairs() {
        let expected = ["don", "top", "up", "my_card", "é1", "don top", "top up", "up my_card", "my_card é1"];
        assert_eq!(all(Analyzer::Word, "Don't TOP-up my_card, a É1"), expected);
        assert!(all(Analyzer::Word, "a b c").is_empty());
    }

    #[test]
    fn characters_stay_inside_words() {
        let expected = [" h", "hi", "i ", " hi", "hi ", " hi ", " a", "a ", " a "];
        assert_eq!(all(Analyzer::CharInWord, "Hi\n  a"), expected);
        assert!(all(Analyzer::CharInWord, " \t").is_empty());
    }
}
