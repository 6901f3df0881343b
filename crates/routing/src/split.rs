//! Divides examples into those that train and those that validate.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::duplicates::Groups;
use crate::example::Example;

/// Divides examples into training and validation rows: two sorted lists of indices.
///
/// Validation gets about `fraction` of the rows of each label. Duplicates, near ones too, stay on one side, so
/// that validation measures what was not seen. Every label keeps a row in training; every label whose rows are
/// not all duplicates of each other also gets one in validation, unless duplicates under different labels leave
/// no choice. The same examples, fraction and seed give the same answer on every machine. A fraction that is not
/// between 0 and 1 counts as the nearer of the two, and NaN as 0.
pub fn split(examples: &[Example], fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let texts: Vec<_> = examples.iter().map(Example::full_text).collect();
    let mut groups: Vec<Group> =
        Groups::near(&texts).members().into_iter().map(|rows| Group::new(rows, examples)).collect();
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));

    let mut by_label: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, group) in groups.iter().enumerate() {
        for label in group.rows_of.keys() {
            by_label.entry(label).or_default().push(number);
        }
    }
    let fraction = if fraction > 0.0 { fraction.min(1.0) } else { 0.0 };
    let validation = choose(&groups, &by_label, fraction);

    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for (group, in_validation) in groups.iter().zip(validation) {
        if in_validation { &mut valid } else { &mut train }.extend(&group.rows);
    }
    train.sort_unstable();
    valid.sort_unstable();
    (train, valid)
}

/// Rows that must stay together.
struct Group<'a> {
    rows: Vec<usize>,
    rows_of: BTreeMap<&'a str, usize>,
}

impl<'a> Group<'a> {
    fn new(rows: Vec<usize>, examples: &'a [Example]) -> Self {
        let mut rows_of = BTreeMap::new();
        for &row in &rows {
            *rows_of.entry(examples[row].label.as_str()).or_default() += 1;
        }
        Self { rows, rows_of }
    }
}

/// For each group whether it goes to validation.
fn choose(groups: &[Group], by_label: &BTreeMap<&str, Vec<usize>>, fraction: f64) -> Vec<bool> {
    let mut validation = vec![false; groups.len()];
    if fraction == 0.0 {
        return validation;
    }
    let mut left_in_training: BTreeMap<&str, usize> =
        by_label.iter().map(|(&label, groups)| (label, groups.len())).collect();
    // Labels of few groups choose first, since they have the least choice.
    let mut labels: Vec<_> = by_label.iter().collect();
    labels.sort_by_key(|(label, groups)| (groups.len(), **label));
    for (&label, members) in labels {
        let rows = |group: usize| groups[group].rows_of[label];
        let total: usize = members.iter().map(|&group| rows(group)).sum();
        let wanted = ((total as f64 * fraction).round() as usize).max(1);
        let mut have: usize =
            members.iter().filter(|&&group| validation[group]).map(|&group| rows(group)).sum();
        let mut take = |group: usize, validation: &mut Vec<bool>| {
            let free =
                !validation[group] && groups[group].rows_of.keys().all(|label| left_in_training[label] > 1);
            if free {
                validation[group] = true;
                for label in groups[group].rows_of.keys() {
                    left_in_training.entry(label).and_modify(|left| *left -= 1);
                }
            }
            free
        };
        for &group in members {
            if have + rows(group) <= wanted && take(group, &mut validation) {
                have += rows(group);
            }
        }
        if have == 0 {
            // All groups are larger than what is wanted: the smallest one overshoots least.
            let mut smallest = members.clone();
            smallest.sort_by_key(|&group| rows(group));
            smallest.into_iter().any(|group| take(group, &mut validation));
        }
    }
    validation
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::example::Origin;

    fn examples(rows: &[(String, String)]) -> Vec<Example> {
        let file = Path::new("rows").into();
        (1..)
            .zip(rows)
            .map(|(row, (text, label))| Example::new(text, label, Origin::row(&file, row)))
            .collect()
    }

    /// Texts that share no shingles unless their numbers are equal.
    fn text(number: usize) -> String {
        let letter = |place: u32| char::from(b'a' + (number / 26_usize.pow(place) % 26) as u8);
        [letter(0), letter(1), letter(2)].map(|letter| letter.to_string().repeat(9)).join(" ")
    }

    fn labelled(counts: &[usize]) -> Vec<Example> {
        let mut rows = Vec::new();
        for (label, &count) in counts.iter().enumerate() {
            for _ in 0..count {
                rows.push((text(rows.len()), format!("label{label}")));
            }
        }
        examples(&rows)
    }

    fn count(examples: &[Example], rows: &[usize], label: &str) -> usize {
        rows.iter().filter(|&&row| examples[row].label == label).count()
    }

    #[test]
    fn each_label_gives_its_share() {
        let data = labelled(&[200, 50, 10, 2]);
        let (train, valid) = split(&data, 0.1, 7);
        assert_eq!(train.len() + valid.len(), data.len());
        for (label, rows) in [("label0", 20), ("label1", 5), ("label2", 1), ("label3", 1)] {
            assert_eq!(count(&data, &valid, label), rows, "{label}");
        }
    }

    #[test]
    fn the_seed_decides() {
        let data = labelled(&[100, 100]);
        assert_eq!(split(&data, 0.2, 1), split(&data, 0.2, 1));
        assert_ne!(split(&data, 0.2, 1), split(&data, 0.2, 2));
        // Pinned: a new version must not divide an old file anew.
        assert_eq!(split(&labelled(&[6, 4]), 0.3, 5).1, [0, 2, 7]);
    }

    #[test]
    fn odd_fractions_are_harmless() {
        let data = labelled(&[5, 3, 1]);
        assert!(split(&data, 0.0, 1).1.is_empty());
        assert!(split(&data, f64::NAN, 1).1.is_empty());
        assert!(split(&data, -1.0, 1).1.is_empty());
        assert_eq!(split(&data, 9.0, 1).0.len(), 3, "each label keeps a row in training");
        assert_eq!(split(&[], 0.5, 1), (vec![], vec![]));
    }

    #[test]
    fn a_label_of_one_group_stays_in_training() {
        let mut rows = vec![("where is my card".to_owned(), "cards".to_owned()); 9];
        rows.extend((0..9).map(|number| (text(number), "other".to_owned())));
        let data = examples(&rows);
        let (train, valid) = split(&data, 0.5, 3);
        assert_eq!(count(&data, &train, "cards"), 9);
        assert!(count(&data, &valid, "other") >= 4);
    }

    proptest! {
        #[test]
        fn duplicates_stay_together_and_labels_stand_on_both_sides(
            rows in prop::collection::vec((0_usize..40, 0_usize..5), 1..120),
            fraction in 0.01_f64..0.9,
            seed: u64,
        ) {
            // The label follows from the text, and punctuation varies between copies.
            let marks = ["", "!", " ?", "..."];
            let rows: Vec<_> =
                rows.iter().map(|(n, mark)| (text(*n) + marks[mark % 4], format!("label{}", n % 6))).collect();
            let data = examples(&rows);
            let (train, valid) = split(&data, fraction, seed);
            let mut all = [train.clone(), valid.clone()].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..data.len()).collect::<Vec<_>>());
            let key = |row: &usize| crate::duplicates::normalise(&data[*row].text);
            let trained: std::collections::HashSet<_> = train.iter().map(key).collect();
            prop_assert!(valid.iter().all(|row| !trained.contains(&key(row))));
            for label in (0..6).map(|number| format!("label{number}")) {
                let texts: std::collections::HashSet<_> =
                    (0..data.len()).filter(|&row| data[row].label == label).map(|row| key(&row)).collect();
                prop_assert_eq!(count(&data, &train, &label) > 0, !texts.is_empty());
                prop_assert_eq!(count(&data, &valid, &label) > 0, texts.len() > 1);
            }
        }
    }
}
