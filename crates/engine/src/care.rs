//! What keeps the training of every weight of an encoder from forgetting what the model knew.

use serde::{Deserialize, Serialize};

/// The care; none by default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Care {
    /// Share of each target that is spread evenly over all labels (Szegedy et al., 2016).
    pub smoothing: f32,
    /// A block's learning rate is that of the block above it times this (Howard and Ruder, 2018); the highest block has
    /// the rate of the step, and what lies below the blocks one step less than the lowest.
    pub layer_decay: f32,
    /// The head's learning rate in that of the step.
    pub head_rate: f32,
    /// Tokens that are hidden in training.
    pub hiding: Option<Hiding>,
}

/// A share of a text's tokens, chosen anew in each step, is replaced, so that no word alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Hiding {
    /// Of the tokens between a text's first and last.
    pub share: f32,
    /// What stands in their place: the token that the model knows as hidden.
    pub token: u32,
    /// Of the choice.
    pub seed: u64,
}

impl Default for Care {
    fn default() -> Self {
        Self { smoothing: 0.0, layer_decay: 1.0, head_rate: 1.0, hiding: None }
    }
}

impl Hiding {
    /// Hides tokens of example `index` in step `step`: a function of these and the seed, so that neither the device nor
    /// an interruption changes it.
    pub(crate) fn hide(self, text: &mut [u32], step: u64, index: u32) {
        let Some(last) = text.len().checked_sub(1) else { return };
        let start = mixed(mixed(self.seed ^ mixed(step)) ^ u64::from(index));
        for (at, token) in text.iter_mut().enumerate().take(last).skip(1) {
            let unit = (mixed(start ^ at as u64) >> 40) as f32 / (1 << 24) as f32;
            if unit < self.share {
                *token = self.token;
            }
        }
    }
}

/// `SplitMix64` (Steele et al., 2014): every bit depends on all of the counter's.
fn mixed(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_hidden_between_the_first_and_the_last() {
        let hiding = Hiding { share: 0.1, token: 103, seed: 7 };
        let hidden = |step, index| {
            let mut text: Vec<u32> = (1000..1052).collect();
            hiding.hide(&mut text, step, index);
            assert!(text[0] == 1000 && text[51] == 1051, "both ends stay");
            let others = text.iter().zip(1000..).filter(|&(&token, was)| token != was);
            assert!(others.clone().all(|(token, _)| *token == 103));
            others.map(|(_, was)| was).collect::<Vec<u32>>()
        };
        let all: Vec<Vec<u32>> = (0..40).flat_map(|step| (0..50).map(move |i| hidden(step, i))).collect();
        let share = all.iter().map(Vec::len).sum::<usize>() as f32 / (50.0 * all.len() as f32);
        assert!((share - 0.1).abs() < 0.005, "{share}");
        assert_eq!(hidden(3, 4), all[3 * 50 + 4], "the same again");
        assert!(hidden(3, 4) != hidden(4, 4) && hidden(3, 4) != hidden(3, 5) && hidden(3, 4) != hidden(4, 3));
        for short in [&mut [][..], &mut [5], &mut [5, 6]] {
            let before = short.to_vec();
            Hiding { share: 1.0, ..hiding }.hide(short, 0, 0);
            assert_eq!(short, before);
        }
    }
}
