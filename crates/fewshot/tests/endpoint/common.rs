//! Rows, prompts and a run over them.

use std::path::Path;
use std::time::Duration;

use fewshot::{
    Answer, AskOptions, Backoff, Choice, Client, Ending, Endpoint, Error, Header, LabelReader, Observer,
    Outcome, Price, PromptOptions, Prompts, Recording, Template, TokenCounter, ask_all,
};
use routing::{Example, Origin};

use crate::server::Server;

/// The key of all tests; no test may find it anywhere but in a request's header.
pub(crate) const KEY: &str = "sk-never-to-be-seen-0123456789";
pub(crate) const PRICE: Price =
    Price { input: 2.5, cached_input: Some(1.25), output: 10.0, batch: None, training: None };

/// Evaluation rows `query 0`, `query 1`, … with one of seven labels, and a server that a test scripts.
pub(crate) struct Bench {
    pub(crate) rows: Vec<Example>,
    pub(crate) labels: Vec<String>,
    pub(crate) options: PromptOptions,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) ask: AskOptions,
    pub(crate) timeout: Duration,
}

/// The label of a row by its number.
pub(crate) fn label_of(row: usize) -> String {
    format!("label_{}", row % 7)
}

/// The number in a query.
pub(crate) fn number_of(query: &str) -> usize {
    query.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a query ends with its number")
}

impl Bench {
    pub(crate) fn new(rows: usize) -> Self {
        let file = Path::new("rows").into();
        let example = |row: usize| {
            Example::new(format!("query {row}"), label_of(row), Origin::row(&file, row as u64 + 1))
        };
        let choice = Choice::Random { per_label: 0, seed: 0 };
        Self {
            rows: (0..rows).map(example).collect(),
            labels: (0..7).map(label_of).collect(),
            options: PromptOptions { choice, template: Template::built_in().unwrap() },
            folder: tempfile::tempdir().unwrap(),
            ask: AskOptions { concurrency: 4, price: Some(PRICE), max_cost: None },
            timeout: Duration::from_secs(20),
        }
    }

    pub(crate) fn recording(&self, server: &Server) -> Recording {
        Recording::open(self.folder.path(), &self.header(server)).unwrap()
    }

    pub(crate) fn prompts(&self) -> Prompts<'_> {
        Prompts::new(&[], &self.rows, &self.labels, &self.options).unwrap()
    }

    fn header(&self, server: &Server) -> Header {
        let prompts = self.prompts();
        Header {
            model: "scripted".into(),
            endpoint: server.url.clone(),
            shots: "zero-shot".into(),
            prompt: prompts.prompt_sha256(),
            rows: prompts.rows_sha256(),
            count: self.rows.len(),
        }
    }

    /// Asks for every row that has no answer yet.
    pub(crate) fn run(&self, server: &Server) -> Result<Ending, Error> {
        self.watched(server, &mut ())
    }

    pub(crate) fn watched(&self, server: &Server, observer: &mut dyn Observer) -> Result<Ending, Error> {
        let backoff = Backoff { tries: 4, first: Duration::from_millis(2), longest: Duration::from_secs(5) };
        let endpoint = Endpoint::with_key("scripted", &server.url, KEY)?;
        let client = Client::new(endpoint, backoff, self.timeout)?;
        let mut counter = TokenCounter::new(|text| text.split_whitespace().count());
        ask_all(client, &self.prompts(), &mut self.recording(server), &self.ask, &mut counter, observer)
    }

    /// All answers; they must be there.
    pub(crate) fn answers(&self, server: &Server) -> Vec<Answer> {
        Recording::read(self.folder.path(), &self.header(server)).unwrap().require_complete().unwrap()
    }

    /// What the answers mean.
    pub(crate) fn outcomes(&self, server: &Server) -> Vec<Outcome> {
        let reader = LabelReader::new(&self.labels);
        self.answers(server).iter().map(|answer| reader.read(&answer.reply).0).collect()
    }
}
