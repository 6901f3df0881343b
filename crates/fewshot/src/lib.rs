//! The few-shot baseline: a large language model behind an OpenAI-compatible endpoint, and what it costs.
//!
//! [`Prompts`] turn each evaluation row into messages, with examples from the training rows only. A [`Client`] asks
//! an [`Endpoint`]; [`ask_all`] asks for every row and keeps each answer in a [`Recording`] as it arrives. A
//! [`LabelReader`] says what an answer means; [`Prices`] say what it cost.

mod answer;
mod ask;
mod backoff;
mod chat;
mod client;
mod cost;
mod endpoint;
mod error;
mod features;
mod key;
mod prices;
mod prompts;
mod reading;
mod recording;
mod shots;
mod template;
mod tokens;

pub use answer::{Answer, Outcome, Summary};
pub use ask::{AskOptions, Ending, Observer, ask_all};
pub use backoff::Backoff;
pub use chat::{Message, Reply, Role, Usage};
pub use client::Client;
pub use cost::{BreakEven, Hardware};
pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use features::{Features, Limit, Structure};
pub use prices::{Price, Prices};
pub use prompts::{PromptOptions, Prompts};
pub use reading::LabelReader;
pub use recording::{Header, Recording};
pub use shots::Choice;
pub use template::Template;
pub use tokens::TokenCounter;
