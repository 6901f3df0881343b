//! The training and scoring engine: token trees, the block, LoRA, the optimizer, the trainer and the label scorer.
