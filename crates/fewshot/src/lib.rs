//! The few-shot baseline: a large language model behind an OpenAI-compatible endpoint, and what it costs.
//!
//! [`Prompts`] turn each evaluation row into messages, with examples from the training rows only. A [`Client`] asks
//! an [`Endpoint`]; [`ask_all`] asks for every row and keeps each answer in a [`Recording`] as it arrives. A
//! [`LabelReader`] says what an answer means; [`Prices`] say what it cost.
//!
//! A [`KeptPrompt`] makes the same prompt again, without the training rows, for queries that come later; an [`Asker`]
//! asks about them, and one that gets no answer stops nothing.

mod answer;
mod ask;
mod asker;
mod chat;
mod client;
mod cost;
mod endpoint;
mod error;
mod features;
mod journal;
mod kept;
mod prices;
mod prompts;
mod queries;
mod reading;
mod recording;
mod shots;
mod template;
mod tokens;

pub use answer::{Answer, Outcome, Summary};
pub use ask::{AskOptions, Ending, Observer, ask_all};
pub use asker::{Asker, Said, Unanswered};
pub use chat::{Message, Reply, Role, Usage};
pub use client::Client;
pub use cost::{BreakEven, Hardware};
pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use features::{Features, Limit, Structure};
pub use kept::{KeptPrompt, QueryPrompt};
pub use prices::{Price, Prices};
pub use prompts::{PromptOptions, Prompts};
pub use reading::LabelReader;
pub use recording::{Header, Recording};
pub use shots::Choice;
pub use template::Template;
pub use tokens::TokenCounter;
pub use wire::Backoff;
