//! A prompt that is kept with a run, to ask about queries that nobody knew when it was judged.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use routing::{Example, Origin};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::chat::Message;
use crate::features::{Features, Structure};
use crate::prompts::Prompts;
use crate::shots::Nearest;
use crate::template::{Template, View};

/// All that makes a prompt again without the training data: what a file of the run folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPrompt {
    /// How the endpoint is asked; whether the prompt speaks of JSON follows from it.
    features: Features,
    selection: Selection,
    /// The examples, or those that are chosen from; none is a near copy of a row that the prompt was judged on.
    examples: Vec<KeptExample>,
    /// The template's text.
    template: String,
}

/// Which examples stand in the prompt of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Selection {
    /// All, in their order.
    All,
    /// Of each label this many that are most like the query.
    Similar(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptExample {
    text: String,
    label: String,
}

impl KeptPrompt {
    /// What these prompts are made of, and what the endpoint was asked for.
    pub fn of(prompts: &Prompts<'_>, features: Features) -> Self {
        let (selection, examples) = prompts.material();
        let kept = |shot: &Example| KeptExample { text: shot.text.clone(), label: shot.label.clone() };
        let examples = examples.into_iter().map(kept).collect();
        Self { features, selection, examples, template: prompts.template().source().to_owned() }
    }

    /// Makes it ready to ask for one of these labels.
    ///
    /// # Errors
    /// [`crate::Error::Template`] when its template cannot be used.
    pub fn open(self, labels: Vec<String>) -> Result<QueryPrompt> {
        let sha256 = self.sha256(&labels);
        let origin: Arc<Path> = Path::new("kept examples").into();
        let example = |(shot, number): (KeptExample, u64)| {
            Example::new(shot.text, shot.label, Origin::row(&origin, number))
        };
        let template = Template::new("kept with the run", self.template)?;
        let examples: Vec<Example> = self.examples.into_iter().zip(1..).map(example).collect();
        let nearest = match self.selection {
            Selection::All => None,
            Selection::Similar(per_label) => {
                Some(Nearest::new(&examples.iter().collect::<Vec<_>>(), &labels, per_label))
            }
        };
        Ok(QueryPrompt { template, features: self.features, examples, nearest, labels, sha256 })
    }

    /// A hash of it and the labels: of all that decides what a query is answered.
    fn sha256(&self, labels: &[String]) -> String {
        let mut all = format!("{:?}\n{labels:?}\n", (&self.features, &self.selection, &self.examples));
        let _ = write!(all, "{}", self.template);
        format!("{:x}", Sha256::digest(all))
    }
}

/// A kept prompt, ready for queries.
#[derive(Debug)]
pub struct QueryPrompt {
    template: Template,
    features: Features,
    examples: Vec<Example>,
    /// Finds the examples of a query; without it all stand in the prompt.
    nearest: Option<Nearest>,
    labels: Vec<String>,
    sha256: String,
}

impl QueryPrompt {
    /// The labels that the model may answer with.
    pub(crate) fn labels(&self) -> &[String] {
        &self.labels
    }

    /// What the endpoint is asked for.
    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// A hash of everything that decides about an answer but the query.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The messages of a query. One that is like an example is no leak: nothing is measured with its answer.
    pub(crate) fn messages(&self, query: &str) -> Result<Vec<Message>> {
        let shots: Vec<&Example> = match &self.nearest {
            Some(nearest) => nearest.of(query).into_iter().map(|at| &self.examples[at as usize]).collect(),
            None => self.examples.iter().collect(),
        };
        self.template.render(&View {
            labels: &self.labels,
            shots: &shots,
            query,
            history: &[],
            json: self.features.structure != Structure::Text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::PromptOptions;
    use crate::shots::Choice;

    fn rows(texts: &[(&str, &str)]) -> Vec<Example> {
        let file: Arc<Path> = Path::new("rows").into();
        let example =
            |((text, label), row): (&(&str, &str), u64)| Example::new(*text, *label, Origin::row(&file, row));
        texts.iter().zip(1..).map(example).collect()
    }

    #[test]
    fn a_kept_prompt_asks_as_the_judged_one_did() {
        let train = rows(&[
            ("my card is lost", "card"),
            ("the card was stolen", "card"),
            ("where is my new card", "card"),
            ("why this fee", "fee"),
            ("a fee for nothing", "fee"),
            ("explain this charge!", "fee"),
        ]);
        let labels = ["card".to_owned(), "fee".to_owned()];
        let asked = rows(&[("where did my card go", "card"), ("explain this charge", "fee")]);
        let choices = [
            Choice::Random { per_label: 0, seed: 0 },
            Choice::Random { per_label: 1, seed: 3 },
            Choice::Similar { per_label: 1 },
            Choice::Fixed(train[..5].to_vec()),
        ];
        for (choice, structure) in choices.into_iter().zip([Structure::Schema, Structure::Text].repeat(2)) {
            let options = PromptOptions { choice, template: Template::built_in().unwrap() };
            let judged = Prompts::new(&train, &asked, &labels, &options).unwrap();
            let features = Features { structure, ..Features::default() };
            let json = serde_json::to_string(&KeptPrompt::of(&judged, features)).unwrap();
            let kept: KeptPrompt = serde_json::from_str(&json).unwrap();
            let kept = kept.open(labels.to_vec()).unwrap();
            for (row, query) in asked.iter().enumerate() {
                let expected = judged.messages(row, structure).unwrap();
                assert_eq!(kept.messages(&query.text).unwrap(), expected, "{:?}", options.choice);
            }
            assert!(!json.contains("explain this charge!"), "a near copy of a judged row is not kept");
        }
    }

    #[test]
    fn a_query_may_be_like_an_example() {
        let train = rows(&[("my card is lost", "card"), ("why this fee", "fee")]);
        let labels = ["card".to_owned(), "fee".to_owned()];
        let asked = rows(&[("hello", "card")]);
        let choice = Choice::Random { per_label: 1, seed: 0 };
        let options = PromptOptions { choice, template: Template::built_in().unwrap() };
        let judged = Prompts::new(&train, &asked, &labels, &options).unwrap();
        let kept = KeptPrompt::of(&judged, Features::default()).open(labels.to_vec()).unwrap();
        let system = &kept.messages("My card is lost!").unwrap()[0].content;
        assert!(system.contains("my card is lost"), "{system}");
    }
}
