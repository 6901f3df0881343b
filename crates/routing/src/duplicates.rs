//! Texts that say the same: exactly, after normalisation, or nearly, by their shared runs of letters.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;

/// The similarity from which two texts are near duplicates: one word of ten changed, or a few letters.
pub const NEAR: f64 = 0.8;

/// Letters in a shingle.
const SHINGLE: usize = 4;
/// A `MinHash` signature has `BANDS * ROWS` values. Two texts at similarity [`NEAR`] share a band with
/// probability `1 - (1 - 0.8^4)^16 = 0.9998`; every candidate is then compared exactly.
const BANDS: usize = 16;
const ROWS: usize = 4;
/// Each text is compared with at most this many others of its bucket, so that a file of thousands of alike
/// texts stays linear.
const BUCKET: usize = 64;

/// A text in the form in which duplicates are equal: NFKC, lowercase, without punctuation, single spaces.
///
/// Symbols such as `+` or `€` stay, and so does the punctuation of a text that has nothing else.
pub fn normalise(text: &str) -> String {
    let folded: String =
        text.nfkc().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfkc().collect();
    let mut plain = String::with_capacity(folded.len());
    for c in folded.chars().filter(|&c| !is_invisible(c) && !matches!(c, '\'' | '’' | '‘' | '`')) {
        push_spaced(&mut plain, if is_punctuation(c) { ' ' } else { c });
    }
    if plain.trim_end().is_empty() {
        plain.clear();
        folded.chars().for_each(|c| push_spaced(&mut plain, c));
    }
    plain.truncate(plain.trim_end().len());
    plain
}

/// Appends a character; white space becomes one space between words.
fn push_spaced(text: &mut String, c: char) {
    if !c.is_whitespace() {
        text.push(c);
    } else if !text.is_empty() && !text.ends_with(' ') {
        text.push(' ');
    }
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}' | '\u{fe0f}' | '\u{feff}')
}

fn is_punctuation(c: char) -> bool {
    let symbol = matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '|' | '~');
    (c.is_ascii_punctuation() && !symbol)
        || matches!(c, '¡' | '§' | '«' | '¶' | '·' | '»' | '¿' | '،' | '؛' | '؟' | '।' | '॥')
        || matches!(c, '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' | '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}')
}

/// The runs of letters of a text, for comparing it with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shingles(Vec<u32>);

impl Shingles {
    /// Takes a text apart after [`normalise`].
    pub fn new(text: &str) -> Self {
        Self(shingles(&normalise(text)))
    }

    /// How alike two texts are: shared runs over all runs of both, from 0 to 1.
    pub fn similarity(&self, other: &Self) -> f64 {
        jaccard(&self.0, &other.0)
    }
}

/// Texts put into groups of duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// The group of each text, named by its first text's index.
    of: Vec<usize>,
}

impl Groups {
    /// Groups texts that are equal after [`normalise`]. An empty text is a group of its own.
    pub fn exact<T: AsRef<str>>(texts: &[T]) -> Self {
        let normal: Vec<String> = texts.iter().map(|text| normalise(text.as_ref())).collect();
        Self { of: first_equal(&normal) }
    }

    /// Groups texts that a chain of near duplicates joins, exact ones among them.
    ///
    /// The same texts in the same order give the same groups on every machine.
    pub fn near<T: AsRef<str>>(texts: &[T]) -> Self {
        let normal: Vec<String> = texts.iter().map(|text| normalise(text.as_ref())).collect();
        let mut of = first_equal(&normal);
        let distinct: Vec<usize> =
            (0..of.len()).filter(|&row| of[row] == row && !normal[row].is_empty()).collect();
        let sets: Vec<Vec<u32>> = distinct.iter().map(|&row| shingles(&normal[row])).collect();
        let mut forest = Forest { parent: (0..sets.len()).collect() };
        join_near(&sets, &mut forest);
        for (position, &row) in distinct.iter().enumerate() {
            of[row] = distinct[forest.root(position)];
        }
        // A copy follows its first, which now may follow another.
        for row in 0..of.len() {
            of[row] = of[of[row]];
        }
        Self { of }
    }

    /// The group of a text, named by the index of the group's first text.
    pub fn of(&self, row: usize) -> usize {
        self.of[row]
    }

    /// The members of each group, in order; groups in the order of their first members.
    pub fn members(&self) -> Vec<Vec<usize>> {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); self.of.len()];
        for (row, &group) in self.of.iter().enumerate() {
            members[group].push(row);
        }
        members.retain(|group| !group.is_empty());
        members
    }
}

/// For each text the index of the first one equal to it.
fn first_equal(texts: &[String]) -> Vec<usize> {
    let mut first = HashMap::with_capacity(texts.len());
    let rows = texts.iter().enumerate();
    rows.map(|(row, text)| if text.is_empty() { row } else { *first.entry(text.as_str()).or_insert(row) })
        .collect()
}

/// The hashes of all runs of [`SHINGLE`] letters, sorted, each once.
fn shingles(normal: &str) -> Vec<u32> {
    let letters: Vec<char> = std::iter::once(' ').chain(normal.chars()).chain([' ']).collect();
    let mut hashes: Vec<u32> = letters
        .windows(SHINGLE.min(letters.len()))
        .map(|window| {
            let hash = window.iter().fold(0, |hash, &letter| mix(hash ^ u64::from(letter)));
            (hash >> 32) as u32
        })
        .collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes
}

/// The finalizer of `SplitMix64`, a bijection that spreads every bit.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                (i, j, shared) = (i + 1, j + 1, shared + 1);
            }
        }
    }
    let all = a.len() + b.len() - shared;
    if all == 0 { 1.0 } else { shared as f64 / all as f64 }
}

/// Joins the sets whose similarity reaches [`NEAR`]: `MinHash` signatures, cut into bands, propose the pairs.
fn join_near(sets: &[Vec<u32>], forest: &mut Forest) {
    let mut band = Vec::with_capacity(sets.len());
    for number in 0..BANDS {
        band.clear();
        band.extend(sets.iter().enumerate().map(|(position, set)| (band_hash(set, number), position)));
        band.sort_unstable();
        for bucket in band.chunk_by(|a, b| a.0 == b.0) {
            for (count, &(_, position)) in bucket.iter().enumerate() {
                for &(_, other) in &bucket[..count.min(BUCKET)] {
                    if forest.root(position) != forest.root(other) && near(&sets[position], &sets[other]) {
                        forest.join(position, other);
                    }
                }
            }
        }
    }
}

fn near(a: &[u32], b: &[u32]) -> bool {
    let (short, long) = (a.len().min(b.len()), a.len().max(b.len()));
    short as f64 >= NEAR * long as f64 && jaccard(a, b) >= NEAR
}

/// The hash of one band of a set's `MinHash` signature.
fn band_hash(set: &[u32], band: usize) -> u64 {
    let mut least = [u32::MAX; ROWS];
    let factors: [u64; ROWS] = std::array::from_fn(|row| mix((band * ROWS + row) as u64) | 1);
    for &shingle in set {
        for (least, factor) in least.iter_mut().zip(factors) {
            let hash = (factor.wrapping_mul(u64::from(shingle) + 1) >> 32) as u32;
            *least = (*least).min(hash);
        }
    }
    least.iter().fold(0, |hash, &value| mix(hash ^ u64::from(value)))
}

/// Disjoint sets whose root is their smallest member.
struct Forest {
    parent: Vec<usize>,
}

impl Forest {
    fn root(&mut self, mut node: usize) -> usize {
        while self.parent[node] != node {
            self.parent[node] = self.parent[self.parent[node]];
            node = self.parent[node];
        }
        node
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalisation_folds_case_width_space_and_punctuation() {
        for (text, normal) in [
            ("  Where's my\n CARD?! ", "wheres my card"),
            ("card,please", "card please"),
            ("ＣＡＲＤ ﬁne", "card fine"),
            ("STRASSE", "strasse"),
            ("Straße", "strasse"),
            ("cafe\u{301}", "café"),
            ("¿Dónde?", "dónde"),
            ("5€ + $3", "5€ + $3"),
            ("c++", "c++"),
            ("???", "???"),
            ("👍", "👍"),
            (" \t", ""),
            ("zero\u{200b}width", "zerowidth"),
        ] {
            assert_eq!(normalise(text), normal, "{text:?}");
        }
    }

    #[test]
    fn exact_groups_are_equal_normal_texts() {
        let groups = Groups::exact(&["My card", "other", "my card!", "", "", "MY  CARD", "?", "!"]);
        assert_eq!(groups.members(), [vec![0, 2, 5], vec![1], vec![3], vec![4], vec![6], vec![7]]);
        assert_eq!(groups.of(5), 0);
    }

    fn similarity(a: &str, b: &str) -> f64 {
        Shingles::new(a).similarity(&Shingles::new(b))
    }

    #[test]
    fn near_groups_join_small_changes_only() {
        let texts = [
            "I have been waiting over a week for my new card to arrive",
            "can I get a refund for the thing I bought yesterday?",
            "I have been waiting over a week for my new card to arive",
            "what is the exchange rate for dollars",
            "I've been waiting over a week for my new card to arrive!",
            "i HAVE been waiting over a week for my new card to arrive",
        ];
        assert!(similarity(texts[0], texts[2]) >= NEAR);
        assert_eq!(Groups::near(&texts).members(), [vec![0, 2, 4, 5], vec![1], vec![3]]);
        assert!(similarity(texts[0], texts[1]) < 0.3);
        assert!((similarity(texts[0], texts[5]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn near_groups_equal_a_comparison_of_all_pairs() {
        // Sentences of few words over a small vocabulary, so that many pairs lie around the threshold.
        let words = ["card", "refund", "payment", "transfer", "account", "balance", "exchange", "limit"];
        let texts: Vec<String> = (0..600_u64)
            .map(|number| {
                let word = |place: u64| words[(mix(number / 3 * 16 + place) % 8) as usize];
                let mut text: Vec<&str> = (0..8).map(word).collect();
                text.truncate(8 - (number % 3) as usize);
                text.join(" ")
            })
            .collect();
        let mut forest = Forest { parent: (0..texts.len()).collect() };
        for a in 0..texts.len() {
            for b in 0..a {
                if similarity(&texts[a], &texts[b]) >= NEAR {
                    forest.join(a, b);
                }
            }
        }
        let expected: Vec<usize> = (0..texts.len()).map(|row| forest.root(row)).collect();
        let joined = expected.iter().enumerate().filter(|(row, group)| row != *group).count();
        assert!(joined > 200, "the sentences are too different to test anything: {joined}");
        assert_eq!(Groups::near(&texts).of, expected);
    }

    #[test]
    fn many_alike_texts_stay_linear() {
        let texts: Vec<String> = (0..20_000)
            .map(|number| format!("please tell me the balance of my savings account number {number}"))
            .collect();
        assert_eq!(Groups::near(&texts).members().len(), 1);
    }
}
