//! Rotary position frequencies.

use std::f32::consts::PI;

use serde::{Deserialize, Serialize};

/// The settings of Llama 3.1 and later that no GGUF file spells out: its converter always used these.
const LLAMA3_LOW_FREQ_FACTOR: f32 = 1.0;
const LLAMA3_HIGH_FREQ_FACTOR: f32 = 4.0;
const LLAMA3_ORIGINAL_MAX_POSITIONS: usize = 8192;

/// How far two makers of the same divisors may differ by rounding.
const SAME_DIVISOR: f32 = 1e-4;

/// How positions become angles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// The base: pair `i` of a head of size D turns by `theta^(-2i / D)` per position.
    pub theta: f64,
    /// What changes those frequencies.
    pub scaling: Option<RopeScaling>,
}

/// A change of the rotary frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// Long waves are slowed by `factor`, short ones kept, those between blended.
    Llama3 {
        /// The slowing of long waves.
        factor: f32,
        /// Waves longer than `original_max_positions` over this are long.
        low_freq_factor: f32,
        /// Waves shorter than `original_max_positions` over this are short.
        high_freq_factor: f32,
        /// The context before the scaling, in positions.
        original_max_positions: usize,
    },
    /// Each frequency is divided by its own number: D / 2 of them.
    Divisors(Vec<f32>),
    /// `LongRoPE` (Ding et al., 2024): other divisors rule beyond the context before the scaling.
    Long {
        /// Divisors of the frequencies within that context: D / 2 of them.
        short: Vec<f32>,
        /// Divisors beyond it, as many.
        long: Vec<f32>,
        /// The context before the scaling, in positions.
        original_max_positions: usize,
        /// Whether texts go beyond it; see [`crate::ModelConfig::set_context`].
        beyond: bool,
        /// Factor of cosines and sines.
        attention_factor: f32,
    },
}

impl Rope {
    /// The angle per position of each pair: `head_dim / 2` values, computed as transformers computes them.
    ///
    /// # Panics
    /// When explicit divisors are not `head_dim / 2` many.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / self.theta.powf(f64::from(exponent)) as f32
        });
        match &self.scaling {
            None => plain.collect(),
            Some(
                RopeScaling::Divisors(divisors)
                | RopeScaling::Long { short: divisors, beyond: false, .. }
                | RopeScaling::Long { long: divisors, beyond: true, .. },
            ) => {
                assert_eq!(divisors.len(), head_dim / 2, "inv_freq: divisors for head size {head_dim}");
                plain.zip(divisors).map(|(freq, divisor)| freq / divisor).collect()
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            }) => {
                let original = *original_max_positions as f32;
                plain
                    .map(|freq| {
                        let wave = 2.0 * PI / freq;
                        if wave > original / low_freq_factor {
                            freq / factor
                        } else if wave < original / high_freq_factor {
                            freq
                        } else {
                            let smooth =
                                (original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            (1.0 - smooth) * freq / factor + smooth * freq
                        }
                    })
                    .collect()
            }
        }
    }

    /// Factor of cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            Some(RopeScaling::Long { attention_factor, .. }) => attention_factor,
            _ => 1.0,
        }
    }

    /// The positions for which the frequencies hold, where that is not all that the model has.
    pub fn most_positions(&self) -> Option<usize> {
        match self.scaling {
            Some(RopeScaling::Long { original_max_positions, beyond: false, .. }) => {
                Some(original_max_positions)
            }
            _ => None,
        }
    }

    /// The rotary settings of a GGUF file that lists `divisors`: Llama 3's, if they are those of its rule
    /// with the settings its converter used, so that both forms of one model give one configuration.
    pub(crate) fn from_divisors(theta: f64, divisors: Vec<f32>) -> Self {
        let head_dim = 2 * divisors.len();
        let unscaled = Self { theta, scaling: None };
        let llama3 = Self {
            theta,
            scaling: Some(RopeScaling::Llama3 {
                factor: divisors.iter().copied().fold(1.0, f32::max),
                low_freq_factor: LLAMA3_LOW_FREQ_FACTOR,
                high_freq_factor: LLAMA3_HIGH_FREQ_FACTOR,
                original_max_positions: LLAMA3_ORIGINAL_MAX_POSITIONS,
            }),
        };
        let ruled = unscaled.inv_freq(head_dim).into_iter().zip(llama3.inv_freq(head_dim));
        if ruled
            .zip(&divisors)
            .all(|((plain, scaled), divisor)| (plain / scaled - divisor).abs() <= SAME_DIVISOR * divisor)
        {
            llama3
        } else {
            Self { theta, scaling: Some(RopeScaling::Divisors(divisors)) }
        }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values pass through unchanged
mod tests {
    use super::*;

    fn llama32() -> Rope {
        Rope {
            theta: 500_000.0,
            scaling: Some(RopeScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            }),
        }
    }

    fn divisors(rope: &Rope, head_dim: usize) -> Vec<f32> {
        let plain = Rope { theta: rope.theta, scaling: None }.inv_freq(head_dim);
        plain.iter().zip(rope.inv_freq(head_dim)).map(|(plain, scaled)| plain / scaled).collect()
    }

    #[test]
    fn unscaled_frequencies_are_powers_of_theta() {
        let freq = Rope { theta: 10_000.0, scaling: None }.inv_freq(8);
        for (found, expected) in freq.iter().zip([1.0f32, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() <= 1e-6 * expected, "{found} {expected}");
        }
    }

    #[test]
    fn llama3_keeps_short_waves_slows_long_ones_and_blends_between() {
        let divisors = divisors(&llama32(), 64);
        assert_eq!(divisors[0], 1.0);
        assert_eq!(divisors[31], 32.0);
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(divisors.iter().any(|&d| d > 1.5 && d < 30.0), "{divisors:?}");
    }

    #[test]
    fn listed_divisors_are_recognised_as_llama3_or_kept() {
        let rope = llama32();
        assert_eq!(Rope::from_divisors(rope.theta, divisors(&rope, 64)), rope);
        let mut other = divisors(&rope, 64);
        other[20] *= 1.01;
        let kept = Rope::from_divisors(rope.theta, other.clone());
        assert_eq!(kept.scaling, Some(RopeScaling::Divisors(other)));
    }
}
