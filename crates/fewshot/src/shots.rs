//! Which training rows stand in the prompt, and the guard that keeps evaluation rows out of it.

use std::collections::{HashMap, HashSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use routing::Example;
use routing::duplicates::{Groups, normalise};
use routing::linear::Neighbours;

use crate::kept::Selection;
use crate::{Error, Result};

/// How examples are chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// This many of each label at random, the same for every row.
    Random {
        /// Examples of each label.
        per_label: usize,
        /// Of the draw and the order.
        seed: u64,
    },
    /// Of each label this many that are most like the row; the most alike stand last, next to the query.
    Similar {
        /// Examples of each label.
        per_label: usize,
    },
    /// These, in this order, the same for every row.
    Fixed(Vec<Example>),
}

/// The chosen examples.
#[derive(Debug, Clone)]
pub(crate) struct Shots<'a> {
    /// Examples that stand in some prompt.
    pool: Vec<&'a Example>,
    chosen: Chosen,
    /// Training rows that the guard kept out.
    pub(crate) kept_out: usize,
}

#[derive(Debug, Clone)]
enum Chosen {
    /// Indices into the pool, for every row.
    Same(Vec<u32>),
    /// For each row its own, so many of each label.
    PerRow(Vec<Vec<u32>>, usize),
}

impl<'a> Shots<'a> {
    /// Chooses from `train`, never a near copy of one of `rows`.
    pub(crate) fn choose(
        train: &'a [Example],
        rows: &[Example],
        labels: &[String],
        choice: &'a Choice,
    ) -> Result<Self> {
        if let Choice::Fixed(list) = choice {
            return fixed(list, train, rows);
        }
        let per_label = match choice {
            Choice::Random { per_label, .. } | Choice::Similar { per_label } => *per_label,
            Choice::Fixed(_) => 0,
        };
        if per_label == 0 {
            return Ok(Self { pool: Vec::new(), chosen: Chosen::Same(Vec::new()), kept_out: 0 });
        }
        let copies = near_copies(train.iter().map(|example| example.text.as_str()), rows);
        let allowed = |(example, copy): (&'a Example, Option<usize>)| {
            (copy.is_none() && !example.text.trim().is_empty()).then_some(example)
        };
        let pool: Vec<&Example> = train.iter().zip(copies).filter_map(allowed).collect();
        let kept_out = train.len() - pool.len();
        let chosen = match choice {
            Choice::Similar { .. } => {
                let nearest = Nearest::new(&pool, labels, per_label);
                Chosen::PerRow(rows.iter().map(|row| nearest.of(&row.text)).collect(), per_label)
            }
            Choice::Random { seed, .. } => Chosen::Same(random(by_label(&pool, labels), per_label, *seed)),
            Choice::Fixed(_) => Chosen::Same(Vec::new()),
        };
        Ok(Self { pool, chosen, kept_out })
    }

    /// The examples of a row's prompt.
    pub(crate) fn of(&self, row: usize) -> Vec<&'a Example> {
        self.indices(row).iter().map(|&at| self.pool[at as usize]).collect()
    }

    /// The same as indices that are equal where the examples are.
    pub(crate) fn indices(&self, row: usize) -> &[u32] {
        match &self.chosen {
            Chosen::Same(same) => same,
            Chosen::PerRow(rows, _) => rows.get(row).map(Vec::as_slice).unwrap_or_default(),
        }
    }

    /// The examples that these are, or are chosen from.
    pub(crate) fn material(&self) -> (Selection, Vec<&'a Example>) {
        match &self.chosen {
            Chosen::Same(same) => (Selection::All, same.iter().map(|&at| self.pool[at as usize]).collect()),
            Chosen::PerRow(_, per_label) => (Selection::Similar(*per_label), self.pool.clone()),
        }
    }

    pub(crate) fn pool(&self) -> &[&'a Example] {
        &self.pool
    }
}

fn random(of_label: Vec<Vec<u32>>, per_label: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = Vec::new();
    for mut rows in of_label {
        rows.shuffle(&mut rng);
        chosen.extend(rows.into_iter().take(per_label));
    }
    // Labels in a row of their own would make the last one look more likely.
    chosen.shuffle(&mut rng);
    chosen
}

/// Finds the examples that are most like a text.
#[derive(Debug)]
pub(crate) struct Nearest {
    neighbours: Neighbours,
    of_label: Vec<Vec<u32>>,
    per_label: usize,
}

impl Nearest {
    pub(crate) fn new(pool: &[&Example], labels: &[String], per_label: usize) -> Self {
        let texts: Vec<&str> = pool.iter().map(|example| example.text.as_str()).collect();
        Self { neighbours: Neighbours::new(&texts), of_label: by_label(pool, labels), per_label }
    }

    /// Indices of the examples, the most alike last.
    pub(crate) fn of(&self, text: &str) -> Vec<u32> {
        let scores = self.neighbours.similarities(text);
        let nearer = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        let mut chosen = Vec::with_capacity(self.of_label.len() * self.per_label);
        for rows in &self.of_label {
            let mut rows = rows.clone();
            if rows.len() > self.per_label {
                rows.select_nth_unstable_by(self.per_label, nearer);
                rows.truncate(self.per_label);
            }
            chosen.extend(rows);
        }
        chosen.sort_unstable_by(|a, b| nearer(b, a));
        chosen
    }
}

/// The indices of each label's examples.
fn by_label(pool: &[&Example], labels: &[String]) -> Vec<Vec<u32>> {
    let places: HashMap<&str, usize> = labels.iter().map(String::as_str).zip(0..).collect();
    let mut by_label = vec![Vec::new(); labels.len()];
    for (at, example) in (0..).zip(pool) {
        if let Some(&label) = places.get(example.label.as_str()) {
            by_label[label].push(at);
        }
    }
    by_label
}

fn fixed<'a>(list: &'a [Example], train: &[Example], rows: &[Example]) -> Result<Shots<'a>> {
    let known: HashSet<(String, &str)> =
        train.iter().map(|example| (normalise(&example.text), example.label.as_str())).collect();
    let copies = near_copies(list.iter().map(|example| example.text.as_str()), rows);
    for (shot, copy) in list.iter().zip(copies) {
        if let Some(row) = copy {
            let what = format!("the example {}", shot.origin);
            return Err(Error::Leak { what, row: rows[row].origin.to_string() });
        }
        if !known.contains(&(normalise(&shot.text), shot.label.as_str())) {
            return Err(Error::NotTraining { shot: shot.origin.to_string() });
        }
    }
    let all = (0..list.len() as u32).collect();
    Ok(Shots { pool: list.iter().collect(), chosen: Chosen::Same(all), kept_out: 0 })
}

/// For each text an evaluation row that it is a copy or near copy of, also through a chain of others.
pub(crate) fn near_copies<'t>(
    texts: impl Iterator<Item = &'t str>,
    rows: &'t [Example],
) -> Vec<Option<usize>> {
    let mut all: Vec<&str> = texts.collect();
    let n = all.len();
    all.extend(rows.iter().map(|row| row.text.as_str()));
    let groups = Groups::near(&all);
    let mut row_of = vec![None; all.len()];
    for row in (0..rows.len()).rev() {
        row_of[groups.of(n + row)] = Some(row);
    }
    (0..n).map(|text| row_of[groups.of(text)]).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use routing::Origin;
    use routing::duplicates::{NEAR, Shingles};

    use super::*;

    fn examples(file: &str, rows: &[(&str, &str)]) -> Vec<Example> {
        let file = Path::new(file).into();
        (1..)
            .zip(rows)
            .map(|(line, (text, label))| Example::new(*text, *label, Origin::line(&file, line)))
            .collect()
    }

    fn labels() -> Vec<String> {
        ["card", "fee"].map(str::to_owned).to_vec()
    }

    const TRAIN: [(&str, &str); 6] = [
        ("my card has not arrived yet", "card"),
        ("somebody stole my card in town", "card"),
        ("the card reader refuses my card", "card"),
        ("why was I charged this fee", "fee"),
        ("which fees are there for transfers", "fee"),
        ("is there a yearly fee", "fee"),
    ];

    #[test]
    fn random_examples_are_balanced_and_follow_the_seed() {
        let (train, rows) = (examples("train", &TRAIN), examples("test", &[("hello there", "card")]));
        let draw = |per_label, seed| {
            let choice = Choice::Random { per_label, seed };
            let shots = Shots::choose(&train, &rows, &labels(), &choice).unwrap();
            shots.of(0).into_iter().cloned().collect::<Vec<_>>()
        };
        let two = draw(2, 1);
        assert_eq!(two.len(), 4);
        assert_eq!(two.iter().filter(|shot| shot.label == "fee").count(), 2);
        assert_eq!(two, draw(2, 1));
        assert!((2..9).any(|seed| draw(2, seed) != two), "the seed decides");
        assert_eq!(draw(9, 1).len(), 6, "a label gives what it has");
        assert!(draw(0, 1).is_empty(), "zero-shot");
    }

    #[test]
    fn similar_examples_end_with_the_most_alike() {
        let train = examples("train", &TRAIN);
        let rows = examples("test", &[("has my card arrived", "card"), ("yearly fees", "fee")]);
        let choice = Choice::Similar { per_label: 1 };
        let shots = Shots::choose(&train, &rows, &labels(), &choice).unwrap();
        let texts = |row| shots.of(row).iter().map(|shot| shot.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(0)[1], TRAIN[0].0);
        assert_eq!(texts(1)[1], TRAIN[5].0);
        assert_eq!(texts(1).len(), 2);
    }

    #[test]
    fn near_copies_of_evaluation_rows_are_kept_out() {
        let train = examples("train", &TRAIN);
        let rows = examples(
            "test",
            &[("My card has NOT arrived, yet!", "card"), ("why was I charged this fees", "fee")],
        );
        for choice in [Choice::Random { per_label: 9, seed: 0 }, Choice::Similar { per_label: 9 }] {
            let shots = Shots::choose(&train, &rows, &labels(), &choice).unwrap();
            assert_eq!(shots.kept_out, 2);
            assert!(shots.of(0).iter().all(|shot| shot.text != TRAIN[0].0 && shot.text != TRAIN[3].0));
        }
    }

    #[test]
    fn a_listed_example_must_be_a_training_row_and_no_evaluation_row() {
        let (train, rows) =
            (examples("train", &TRAIN), examples("test", &[("is there a yearly  fee?", "fee")]));
        let choose = |list: &[(&str, &str)]| {
            let choice = Choice::Fixed(examples("list", list));
            Shots::choose(&train, &rows, &labels(), &choice)
                .map(|shots| shots.of(0).len())
                .map_err(|e| e.to_string())
        };
        assert_eq!(choose(&TRAIN[..2]), Ok(2));
        assert!(
            choose(&TRAIN[4..]).unwrap_err().contains("list:2 is a near copy of the evaluation row test:1")
        );
        assert!(choose(&[("made up", "fee")]).unwrap_err().contains("list:1 is not among the training rows"));
        assert!(choose(&[(TRAIN[0].0, "fee")]).is_err(), "with another label it is another row");
    }

    proptest! {
        #[test]
        fn no_prompt_holds_a_near_copy(words in prop::collection::vec(0usize..4, 60), per_label in 1usize..4) {
            const WORDS: [&str; 4] = ["card", "arrived", "refund please", "balance"];
            let text = |words: &[usize]| words.iter().map(|&word| WORDS[word]).collect::<Vec<_>>().join(" ");
            let texts: Vec<String> = words.chunks(4).map(text).collect();
            let rows: Vec<(&str, &str)> =
                texts.iter().enumerate().map(|(at, text)| (text.as_str(), if at % 2 == 0 { "card" } else { "fee" })).collect();
            let (train, rows) = (examples("train", &rows[..10]), examples("test", &rows[10..]));
            for choice in [Choice::Random { per_label, seed: 3 }, Choice::Similar { per_label }] {
                let shots = Shots::choose(&train, &rows, &labels(), &choice).unwrap();
                for shot in (0..rows.len()).flat_map(|row| shots.of(row)) {
                    for row in &rows {
                        prop_assert!(Shingles::new(&shot.text).similarity(&Shingles::new(&row.text)) < NEAR);
                    }
                }
            }
        }
    }
}
