//! Loss and gradients of one token tree.

use kernels::{Backend, Direction, Output, PassSpec};

use crate::block::{Block, Saved};
use crate::forward::{Kv, Stream};
use crate::model::{FeedForward, Model};
use crate::tree::{Labelled, TokenTree};

/// All buffers of a training pass, sized for a number of rows and kept between steps.
pub(crate) struct Tape<B: Backend> {
    rows: usize,
    pass: Option<B::Pass>,
    recording: B::Recording,
    stream: Stream<B>,
    saved: Vec<Saved<B>>,
    losses: B::Wide,
    d_x: B::Wide,
    d_chosen_x: B::Wide,
    d_h: B::Wide,
    d_y: B::Narrow,
    d_act: B::Narrow,
    d_up: B::Narrow,
    d_attention: B::Narrow,
    d_chosen_attention: B::Narrow,
    d_qkv: B::Narrow,
    d_mid: B::Narrow,
}

impl<B: Backend> Tape<B> {
    pub(crate) fn new(model: &Model<B>, rows: usize) -> Self {
        let (backend, block, heads) = (&model.backend, &model.blocks[0], model.config.heads);
        let (wide, narrow) = (|w: usize| backend.wide(rows * w), |w: usize| backend.narrow(rows * w));
        let width = model.config.hidden_size;
        let mid = model.blocks.iter().flat_map(Block::linears).map(kernels::Linear::mid_width).max();
        Self {
            rows,
            pass: None,
            recording: B::Recording::default(),
            stream: Stream::new(model, rows),
            saved: model.blocks.iter().map(|block| Saved::new(backend, block, heads, rows)).collect(),
            losses: wide(1),
            d_x: wide(width),
            d_chosen_x: wide(width),
            d_h: wide(width),
            d_y: narrow(width),
            d_act: narrow(block.down.inputs),
            d_up: narrow(block.up.outputs),
            d_attention: narrow(block.out.inputs),
            d_chosen_attention: narrow(block.out.inputs),
            d_qkv: narrow(block.qkv.outputs),
            d_mid: narrow(mid.unwrap_or(0)),
        }
    }

    /// Rows that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.rows
    }
}

impl<B: Backend> Model<B> {
    /// Computes the loss of each labelled row and adds the gradient of their weighted sum to `gradients`.
    /// Labelled rows are in order, each once.
    ///
    /// # Panics
    /// When the model is an encoder, which predicts no tokens.
    pub(crate) fn loss_and_gradients(
        &self,
        gradients: &mut B::Wide,
        losses: &mut Vec<f32>,
        tape: &mut Tape<B>,
        tree: &TokenTree,
        labelled: &[Labelled],
    ) {
        assert!(tree.rows() <= tape.rows, "a tree of {} rows on a tape for {}", tree.rows(), tape.rows);
        assert!(!self.is_encoder(), "an encoder predicts no tokens");
        let ops = &self.backend;
        let chosen: Vec<u32> = labelled.iter().map(|l| l.row).collect();
        let targets: Vec<u32> = labelled.iter().map(|l| l.target).collect();
        let weights: Vec<f32> = labelled.iter().map(|l| l.weight).collect();
        let spec = PassSpec { chosen: &chosen, targets: &targets, weights: &weights, ..tree.spec() };
        let pass = ops.pass(&spec, tape.pass.take());
        let mut recording = std::mem::take(&mut tape.recording);
        ops.record(&mut recording, &pass, || self.forward_and_backward(gradients, tape, &pass));
        losses.resize(labelled.len(), 0.0);
        ops.download(losses, &tape.losses, 0);
        (tape.pass, tape.recording) = (Some(pass), recording);
    }

    fn forward_and_backward(&self, gradients: &mut B::Wide, tape: &mut Tape<B>, pass: &B::Pass) {
        let (ops, width, rows) = (&self.backend, self.config.hidden_size, self.backend.chosen(pass));
        self.embed(&mut tape.stream, pass);
        for (index, saved) in tape.saved.iter_mut().enumerate() {
            self.run_block(index, saved, &mut tape.stream, Kv::Own, pass);
        }
        self.finish(&mut tape.stream, pass);

        let Tape { stream, losses, d_h, d_chosen_x, .. } = tape;
        ops.cross_entropy(losses, d_h, &stream.h, self.head(), pass);
        ops.clear(d_chosen_x, rows * width);
        ops.norm_backward(d_chosen_x, d_h, &stream.unit, &stream.rstd, &self.norm, rows);
        for index in (0..self.blocks.len()).rev() {
            self.block_backward(gradients, tape, index, pass);
        }
    }

    /// Turns the gradient of a block's output into that of its input, in `d_x` (of the last block from `d_chosen_x`), and adds the parameters' to `gradients`.
    fn block_backward(&self, gradients: &mut B::Wide, tape: &mut Tape<B>, index: usize, pass: &B::Pass) {
        let (ops, block, shape) = (&self.backend, &self.blocks[index], &self.attention_shape(index));
        let (all, width, last) = (ops.rows(pass), self.config.hidden_size, self.narrows(index));
        let Tape { stream, saved, d_x, d_chosen_x, d_h, d_y, d_act, d_up, d_qkv, d_mid, .. } = tape;
        let (d_attention, d_chosen, saved) =
            (&mut tape.d_attention, &mut tape.d_chosen_attention, &saved[index]);
        // The last block's feed-forward ran on the chosen rows only.
        let (d_out, rows) = if last { (&mut *d_chosen_x, ops.chosen(pass)) } else { (&mut *d_x, all) };

        ops.round(d_y, d_out, rows * width);
        ops.linear_backward(Output::Narrow(d_act), d_mid, d_y, &block.down, rows);
        let feed_forward = block.down.inputs;
        match self.feed_forward() {
            FeedForward::Gated(gate) => {
                ops.gated_backward(d_up, &mut stream.act, d_act, &saved.up, gate, rows, feed_forward);
            }
            FeedForward::Plain(f) => {
                ops.activation_backward(d_up, &mut stream.act, d_act, &saved.up, f, rows, feed_forward);
            }
        }
        ops.adapter_backward(gradients, &stream.act, &saved.down_mid, d_y, d_mid, &block.down, rows);
        ops.linear_backward(Output::Wide(d_h), d_mid, d_up, &block.up, rows);
        ops.norm_again(&mut stream.h, &saved.unit2, &block.norm2, rows);
        ops.adapter_backward(gradients, &stream.h, &saved.up_mid, d_up, d_mid, &block.up, rows);
        ops.norm_backward(d_out, d_h, &saved.unit2, &saved.rstd2, &block.norm2, rows);

        ops.round(d_y, d_out, rows * width);
        if last {
            ops.linear_backward(Output::Narrow(d_chosen), d_mid, d_y, &block.out, rows);
            let attention = &stream.chosen_attention;
            ops.adapter_backward(gradients, attention, &saved.out_mid, d_y, d_mid, &block.out, rows);
            ops.spread_narrow(d_attention, d_chosen, pass, block.out.inputs);
            ops.spread(d_x, d_chosen_x, pass, width);
        } else {
            ops.linear_backward(Output::Narrow(d_attention), d_mid, d_y, &block.out, rows);
            ops.adapter_backward(gradients, &saved.attention, &saved.out_mid, d_y, d_mid, &block.out, rows);
        }
        ops.attention_backward(d_qkv, d_attention, &saved.attention, &saved.lse, &saved.qkv, pass, shape);
        if let Some(table) = &self.rotary {
            ops.rotary(d_qkv, table, pass, shape, Direction::Backward);
        }
        ops.linear_backward(Output::Wide(d_h), d_mid, d_qkv, &block.qkv, all);
        ops.norm_again(&mut stream.h, &saved.unit1, &block.norm1, all);
        ops.adapter_backward(gradients, &stream.h, &saved.qkv_mid, d_qkv, d_mid, &block.qkv, all);
        // Nothing below the first block is trained, so its input needs no gradient.
        if index > 0 {
            ops.norm_backward(d_x, d_h, &saved.unit1, &saved.rstd1, &block.norm1, all);
        }
    }
}
