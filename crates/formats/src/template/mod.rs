//! Chat templates, rendered as Hugging Face's transformers renders them.

mod python;
mod syntax;

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, context};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};

use crate::{Date, Error, Result};

const NAME: &str = "chat template";

/// The work that one rendering may take. A template comes with a model from somewhere; this bounds its time,
/// and its memory to about 64 bytes a unit, far above what any real conversation needs.
const FUEL: u64 = 2_000_000;
const RECURSION_LIMIT: usize = 100;
/// The time that one rendering may take, where an ordinary one takes less than a millisecond: the engine charges
/// nothing for walking a list that was added to itself again and again.
const MOST_TIME: Duration = Duration::from_secs(5);

/// The day that templates see unless told otherwise, so that a prompt is the same tomorrow. Llama 3.2's own
/// template falls back to this one.
const FROZEN_DATE: Date = Date::new(2024, 7, 26).expect("a day of the calendar");

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant` in most templates.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `content` by `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A parsed chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Parses a template's source; `bos` and `eos` are the spellings of the tokens that begin and end a text.
    /// `strftime_now` in it sees 26 July 2024.
    ///
    /// # Errors
    /// [`Error::Template`] with the line that does not parse.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|source| Error::Template { source })?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::to_json);
        // As in Python, nothing cannot be looped over, whatever minijinja's own test says.
        environment.add_test("iterable", |value: &Value| {
            matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned(NAME, syntax::without_generation_tags(source))
            .map_err(|source| Error::Template { source })?;
        let template = Self { environment: Arc::new(environment), bos: bos.to_owned(), eos: eos.to_owned() };
        Ok(template.with_date(FROZEN_DATE))
    }

    /// The same template with another day as today.
    #[must_use]
    pub fn with_date(mut self, date: Date) -> Self {
        Arc::make_mut(&mut self.environment).add_function("strftime_now", move |format: String| {
            date.format(&format).map_err(|directive| {
                let detail = format!("strftime_now does not know the directive {directive}");
                minijinja::Error::new(ErrorKind::InvalidOperation, detail)
            })
        });
        self
    }

    /// The conversation as the text that the model reads; with `add_generation_prompt`, followed by the
    /// beginning of the model's turn.
    ///
    /// Special tokens spelt out in a message stand in the text like the template's own. To keep a message
    /// from ending its turn, render it as a placeholder and encode it on its own with
    /// [`Tokenizer::encode_plain`](crate::Tokenizer::encode_plain).
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the messages, fails, or works more than it may;
    /// [`Error::TemplateEndless`] when it takes longer than that; [`Error::TemplatePanic`] when it crashes its engine.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let (environment, bos, eos) = (Arc::clone(&self.environment), self.bos.clone(), self.eos.clone());
        let messages = messages.to_vec();
        let render = move || {
            environment.get_template(NAME)?.render(context! {
                messages => Value::from(Serde(&messages)),
                add_generation_prompt => add_generation_prompt,
                bos_token => bos,
                eos_token => eos,
                tools => Value::from(()),
                documents => Value::from(()),
            })
        };
        let (sender, receiver) = mpsc::sync_channel(1);
        // A rendering that is given up goes on by itself; nothing can stop it from outside.
        thread::spawn(move || {
            // Nobody listens any more after MOST_TIME.
            let _ = sender.send(panic::catch_unwind(AssertUnwindSafe(render)));
        });
        receiver
            .recv_timeout(MOST_TIME)
            .map_err(|_| Error::TemplateEndless { seconds: MOST_TIME.as_secs() })?
            .map_err(|_| Error::TemplatePanic)?
            .map_err(|source| Error::Template { source })
    }
}
