//! Tokens counted here, where an endpoint does not report them.

use std::fmt;

use crate::chat::{Message, Reply, Role, Usage};

/// Tokens that a chat format puts around a message.
const AROUND_A_MESSAGE: u64 = 4;

/// Counts tokens with a tokenizer of ours, which is close to but not the model's own.
pub struct TokenCounter<'a> {
    count: Box<dyn Fn(&str) -> usize + 'a>,
    /// The system message is long and mostly the same, so the last one's count is kept.
    system: (String, u64),
}

impl<'a> TokenCounter<'a> {
    /// Counts with this function.
    pub fn new(count: impl Fn(&str) -> usize + 'a) -> Self {
        Self { count: Box::new(count), system: (String::new(), 0) }
    }

    /// The tokens of a prompt.
    pub fn prompt(&mut self, messages: &[Message]) -> u64 {
        messages.iter().map(|message| self.message(message) + AROUND_A_MESSAGE).sum()
    }

    /// The tokens of a request and its answer.
    pub(crate) fn usage(&mut self, messages: &[Message], reply: &Reply) -> Usage {
        let said = [&reply.content, &reply.refusal].into_iter().flatten();
        let completion = said.map(|text| (self.count)(text) as u64).sum();
        Usage { prompt: self.prompt(messages), cached: 0, completion }
    }

    fn message(&mut self, message: &Message) -> u64 {
        if message.role == Role::User {
            return (self.count)(&message.content) as u64;
        }
        if self.system.0 != message.content {
            self.system = (message.content.clone(), (self.count)(&message.content) as u64);
        }
        self.system.1
    }
}

impl fmt::Debug for TokenCounter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenCounter")
    }
}
