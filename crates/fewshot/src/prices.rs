//! Prices of large models, from a dated file that the user can replace.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::chat::Usage;
use crate::cost::Hardware;
use crate::{Error, Result};

const BUILT_IN: &str = include_str!("prices.toml");
const MILLION: f64 = 1e6;

/// Prices by model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// When they were listed.
    pub as_of: String,
    /// The machine that serves the router.
    pub hardware: Hardware,
    /// By the model's name.
    #[serde(rename = "model")]
    pub models: BTreeMap<String, Price>,
}

/// A user's file: what differs from the built-in prices.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    as_of: String,
    hardware: Option<Hardware>,
    #[serde(rename = "model", default)]
    models: BTreeMap<String, Price>,
}

/// The price of one model, in USD per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Prompt tokens.
    pub input: f64,
    /// Prompt tokens that the provider has in its cache; as `input` when not given.
    pub cached_input: Option<f64>,
    /// Tokens of the answer.
    pub output: f64,
    /// Factor for batch jobs.
    pub batch: Option<f64>,
    /// Training tokens, for each epoch.
    pub training: Option<f64>,
}

impl Prices {
    /// The prices that come with the program.
    ///
    /// # Errors
    /// None, unless the built-in file is broken.
    pub fn built_in() -> Result<Self> {
        let broken =
            |error: toml::de::Error| Error::Prices { name: "built in".into(), reason: error.to_string() };
        toml::from_str(BUILT_IN).map_err(broken)
    }

    /// The text of the built-in file.
    pub fn built_in_text() -> &'static str {
        BUILT_IN
    }

    /// The built-in prices with those of a file on top.
    ///
    /// # Errors
    /// When it cannot be read, is no price file, or a price is not a number from 0 on.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            action: "read",
            source,
        })?;
        let bad = |reason| Error::Prices { name: path.display().to_string(), reason };
        let own: Own = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        for (model, price) in &own.models {
            let values =
                [Some(price.input), price.cached_input, Some(price.output), price.batch, price.training];
            if values.into_iter().flatten().any(|value| !value.is_finite() || value < 0.0) {
                return Err(bad(format!("[model.\"{model}\"] has a price that is not a number from 0 on")));
            }
        }
        let mut prices = Self::built_in()?;
        prices.as_of = own.as_of;
        prices.hardware = own.hardware.unwrap_or(prices.hardware);
        prices.models.extend(own.models);
        Ok(prices)
    }

    /// The price of a model: of its name, also without a provider before it (`openai/gpt-4o`) or a date behind it
    /// (`gpt-4o-2024-08-06`).
    pub fn of(&self, model: &str) -> Option<&Price> {
        let bare = model.rsplit_once('/').map_or(model, |(_, bare)| bare);
        let dated = |name: &str| bare.strip_prefix(name).is_some_and(is_date);
        let exact = self.models.get(model).or_else(|| self.models.get(bare));
        exact.or_else(|| self.models.iter().find(|(name, _)| dated(name)).map(|(_, price)| price))
    }
}

/// `-2024-08-06`.
fn is_date(rest: &str) -> bool {
    rest.len() == 11
        && rest
            .bytes()
            .enumerate()
            .all(|(at, b)| if matches!(at, 0 | 5 | 8) { b == b'-' } else { b.is_ascii_digit() })
}

impl Price {
    /// USD for these tokens.
    pub fn cost(&self, usage: &Usage) -> f64 {
        let fresh = usage.prompt.saturating_sub(usage.cached) as f64;
        let cached = usage.cached as f64 * self.cached_input.unwrap_or(self.input);
        (fresh * self.input + cached + usage.completion as f64 * self.output) / MILLION
    }

    /// USD to fine-tune on this many tokens, each seen in every epoch; `None` where it is not offered.
    pub fn fine_tuning(&self, tokens: u64, epochs: f64) -> Option<f64> {
        self.training.map(|price| tokens as f64 * epochs * price / MILLION)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_listed_prices_are_built_in() {
        let prices = Prices::built_in().unwrap();
        let values = |model: &str| {
            let price = prices.of(model)?;
            Some((price.input, price.cached_input?, price.output, price.batch?, price.training?))
        };
        assert_eq!(values("gpt-4o"), Some((2.5, 1.25, 10.0, 0.5, 25.0)));
        assert_eq!(values("gpt-4o-mini"), Some((0.15, 0.075, 0.6, 0.5, 3.0)));
        assert_eq!(values("openai/gpt-4o-mini-2024-07-18"), values("gpt-4o-mini"));
        assert_eq!(values("gpt-4o-2024-08-06"), values("gpt-4o"));
        for unknown in ["gpt-4", "gpt-4o-audio-preview", "gpt-4o-mini-2024", "llama"] {
            assert_eq!(prices.of(unknown), None, "{unknown}");
        }
        let million = Usage { prompt: 1_000_000, cached: 0, completion: 1_000_000 };
        assert!((prices.of("gpt-4o").unwrap().cost(&million) - 12.5).abs() < 1e-12);
        assert_eq!(prices.of("gpt-4o").unwrap().fine_tuning(100_000, 3.0), Some(7.5));
    }

    #[test]
    fn a_file_goes_on_top() {
        let read = |text: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            Prices::read(file.path()).map_err(|error| error.to_string())
        };
        let own =
            read("as_of = \"2027-01\"\n[model.\"gpt-4o\"]\ninput = 1\noutput = 2\n[hardware]\nper_hour = 3")
                .unwrap();
        assert_eq!((own.as_of.as_str(), own.of("gpt-4o").unwrap().output), ("2027-01", 2.0));
        assert_eq!((own.hardware.per_hour, own.of("gpt-4o").unwrap().training), (3.0, None));
        assert!(own.of("gpt-4o-mini").is_some());
        for broken in [
            "",
            "as_of = 3",
            "as_of = \"x\"\n[model.a]\ninput = 1",
            "as_of = \"x\"\n[model.a]\ninput = -1\noutput = 1",
            "as_of = \"x\"\n[model.a]\ninput = 1\noutput = 1\noutptu = 2",
        ] {
            assert!(read(broken).unwrap_err().contains("is no price file"), "{broken}");
        }
        assert!(
            toml::from_str::<Own>(Prices::built_in_text()).is_ok(),
            "the built-in file is a pattern for one's own"
        );
    }
}
