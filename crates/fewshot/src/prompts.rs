//! The messages of every evaluation row.

use routing::Example;
use routing::duplicates::normalise;
use sha2::{Digest, Sha256};

use crate::chat::Message;
use crate::features::Structure;
use crate::kept::Selection;
use crate::shots::{Choice, Shots, near_copies};
use crate::template::{Template, View};
use crate::{Error, Result};

/// How prompts are made.
#[derive(Debug)]
pub struct PromptOptions {
    /// Which examples stand in them.
    pub choice: Choice,
    /// Their text.
    pub template: Template,
}

/// The prompts of all evaluation rows, with examples from the training rows only.
#[derive(Debug)]
pub struct Prompts<'a> {
    labels: &'a [String],
    rows: &'a [Example],
    shots: Shots<'a>,
    template: &'a Template,
}

impl<'a> Prompts<'a> {
    /// Chooses the examples and checks that no prompt can hold an evaluation row or a near copy of one.
    ///
    /// # Errors
    /// [`Error::Leak`] when the list of examples or the template holds such a copy, [`Error::NotTraining`] when a
    /// listed example is no training row.
    pub fn new(
        train: &'a [Example],
        rows: &'a [Example],
        labels: &'a [String],
        options: &'a PromptOptions,
    ) -> Result<Self> {
        guard(&options.template, labels, rows)?;
        let shots = Shots::choose(train, rows, labels, &options.choice)?;
        Ok(Self { labels, rows, shots, template: &options.template })
    }

    pub(crate) fn template(&self) -> &'a Template {
        self.template
    }

    /// The examples that the prompt of any query is made of, and how.
    pub(crate) fn material(&self) -> (Selection, Vec<&'a Example>) {
        self.shots.material()
    }

    /// The labels that the model may answer with.
    pub fn labels(&self) -> &'a [String] {
        self.labels
    }

    /// The rows to ask for.
    pub fn rows(&self) -> &'a [Example] {
        self.rows
    }

    /// The examples in a row's prompt.
    pub fn shots(&self, row: usize) -> Vec<&'a Example> {
        self.shots.of(row)
    }

    /// Training rows that are near copies of evaluation rows and were therefore not chosen from.
    pub fn kept_out(&self) -> usize {
        self.shots.kept_out
    }

    /// The messages of a row, for an answer of this form.
    ///
    /// # Errors
    /// [`Error::Template`] when the template fails on it.
    pub fn messages(&self, row: usize, structure: Structure) -> Result<Vec<Message>> {
        let example = &self.rows[row];
        self.template.render(&View {
            labels: self.labels,
            shots: &self.shots.of(row),
            query: &example.text,
            history: &example.history,
            json: structure != Structure::Text,
        })
    }

    /// SHA-256 of everything but the rows that decides the messages: template, labels and examples.
    pub fn prompt_sha256(&self) -> String {
        let mut hash = Hash::default();
        hash.text(self.template.source());
        hash.number(self.labels.len());
        for label in self.labels {
            hash.text(label);
        }
        hash.number(self.shots.pool().len());
        for shot in self.shots.pool() {
            hash.text(&shot.text);
            hash.text(&shot.label);
        }
        for row in 0..self.rows.len() {
            let shots = self.shots.indices(row);
            hash.number(shots.len());
            for &shot in shots {
                hash.number(shot as usize);
            }
        }
        hash.hex()
    }

    /// SHA-256 of what is asked, in order; not of the true labels, which may be corrected later.
    pub fn rows_sha256(&self) -> String {
        let mut hash = Hash::default();
        for row in self.rows {
            hash.text(&row.text);
            hash.number(row.history.len());
            for turn in &row.history {
                hash.text(&format!("{:?}", turn.role));
                hash.text(&turn.text);
            }
        }
        hash.hex()
    }
}

/// No line of the template may be a near copy of a row; labels, which it may well spell out, are none.
fn guard(template: &Template, labels: &[String], rows: &[Example]) -> Result<()> {
    let is_label = |line: &str| labels.iter().any(|label| normalise(label) == normalise(line));
    let lines: Vec<&str> = template.source().lines().collect();
    let copies = near_copies(lines.iter().copied(), rows);
    let leak = (1..).zip(&lines).zip(copies).find(|((_, line), copy)| copy.is_some() && !is_label(line));
    match leak {
        Some(((number, _), Some(row))) => Err(Error::Leak {
            what: format!("line {number} of the prompt template `{}`", template.name()),
            row: rows[row].origin.to_string(),
        }),
        _ => Ok(()),
    }
}

/// A hash over texts and numbers that no other division of the same letters gives.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.update(text);
    }

    fn number(&mut self, number: usize) {
        self.0.update((number as u64).to_le_bytes());
    }

    fn hex(self) -> String {
        format!("{:x}", self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use routing::Origin;

    use super::*;

    fn example(text: &str, label: &str, line: u64) -> Example {
        Example::new(text, label, Origin::line(&Path::new("rows").into(), line))
    }

    fn options(per_label: usize, seed: u64) -> PromptOptions {
        PromptOptions { choice: Choice::Random { per_label, seed }, template: Template::built_in().unwrap() }
    }

    #[test]
    fn hashes_change_with_what_they_cover() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let train: Vec<Example> = ["first text", "another one", "the third", "number four", "five of them"]
            .iter()
            .map(|text| example(text, "a", 1))
            .collect();
        let rows = [example("what is it", "a", 1), example("who are you", "b", 2)];
        let hashes = |options: &PromptOptions, rows: &[Example]| {
            let prompts = Prompts::new(&train, rows, &labels, options).unwrap();
            (prompts.prompt_sha256(), prompts.rows_sha256())
        };
        let (prompt, asked) = hashes(&options(2, 1), &rows);
        assert_eq!(hashes(&options(2, 1), &rows), (prompt.clone(), asked.clone()));
        assert_ne!(hashes(&options(3, 1), &rows).0, prompt);
        let mut relabelled = rows.clone();
        relabelled[0].label = "b".into();
        assert_eq!(hashes(&options(2, 1), &relabelled).1, asked, "a corrected label asks nothing new");
        relabelled[0].text.push('?');
        assert_ne!(hashes(&options(2, 1), &relabelled).1, asked);
    }

    #[test]
    fn a_template_that_holds_an_evaluation_row_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "Labels: a\ncard arrival\nmy card never came to me\n{{{{ query }}}}").unwrap();
        let template = Template::read(file.path()).unwrap();
        let own = PromptOptions { choice: Choice::Random { per_label: 0, seed: 0 }, template };
        let labels = ["card arrival".to_owned()];
        let check = |text: &str| {
            let rows = [example(text, "a", 7)];
            Prompts::new(&[], &rows, &labels, &own).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(check("something else"), Ok(()));
        assert_eq!(check("card arrival"), Ok(()), "a label in the template is no leak");
        let message = check("My card never came to me!").unwrap_err();
        assert!(message.contains("line 3") && message.contains("rows:7"), "{message}");
    }
}
