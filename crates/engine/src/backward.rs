//! Loss and gradients of one token tree.

use kernels::{Backend, Direction, Gate, Output};

use crate::block::{Block, Saved};
use crate::forward::{Kv, Stream};
use crate::model::Model;
use crate::tree::{Labelled, TokenTree};

/// All buffers of a training pass, sized for a number of rows and kept between steps.
pub(crate) struct Tape<B: Backend> {
    rows: usize,
    stream: Stream<B>,
    saved: Vec<Saved<B>>,
    d_x: B::Wide,
    d_x_all: B::Wide,
    d_h: B::Wide,
    d_y: B::Narrow,
    d_act: B::Narrow,
    d_gate_up: B::Narrow,
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
            stream: Stream::new(model, rows),
            saved: model.blocks.iter().map(|block| Saved::new(backend, block, heads, rows)).collect(),
            d_x: wide(width),
            d_x_all: wide(width),
            d_h: wide(width),
            d_y: narrow(width),
            d_act: narrow(block.down.inputs),
            d_gate_up: narrow(block.gate_up.outputs),
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
    pub(crate) fn loss_and_gradients(
        &self,
        gradients: &mut B::Wide,
        losses: &mut Vec<f32>,
        tape: &mut Tape<B>,
        tree: &TokenTree,
        labelled: &[Labelled],
    ) {
        assert!(tree.rows() <= tape.rows, "a tree of {} rows on a tape for {}", tree.rows(), tape.rows);
        let (ops, width) = (&self.backend, self.config.hidden_size);
        let chosen: Vec<u32> = labelled.iter().map(|l| l.row).collect();
        let last = self.blocks.len() - 1;
        self.embed(&mut tape.stream, tree);
        for (index, (block, saved)) in self.blocks.iter().zip(&mut tape.saved).enumerate() {
            let chosen = (index == last).then_some(&chosen[..]);
            self.run_block(block, saved, &mut tape.stream, Kv::Own, tree, chosen);
        }
        self.finish(&mut tape.stream, chosen.len());

        let targets: Vec<u32> = labelled.iter().map(|l| l.target).collect();
        let weights: Vec<f32> = labelled.iter().map(|l| l.weight).collect();
        losses.clear();
        losses.resize(labelled.len(), 0.0);
        ops.cross_entropy(losses, Some(&mut tape.d_h), &tape.stream.h, self.head(), &targets, &weights);
        ops.clear(&mut tape.d_x, chosen.len() * width);
        let Stream { unit, rstd, .. } = &tape.stream;
        ops.norm_backward(&mut tape.d_x, &tape.d_h, unit, rstd, &self.norm, chosen.len());
        for (index, block) in self.blocks.iter().enumerate().rev() {
            let chosen = (index == last).then_some(&chosen[..]);
            self.block_backward(gradients, tape, block, index, tree, chosen);
        }
    }

    fn block_backward(
        &self,
        gradients: &mut B::Wide,
        tape: &mut Tape<B>,
        block: &Block<B>,
        index: usize,
        tree: &TokenTree,
        chosen: Option<&[u32]>,
    ) {
        let (ops, shape, all) = (&self.backend, &self.attention_shape(), tree.rows());
        let (width, rows) = (self.config.hidden_size, chosen.map_or(all, <[u32]>::len));
        let Tape { stream, saved, d_x, d_x_all, d_h, d_y, d_act, d_gate_up, d_qkv, d_mid, .. } = tape;
        let saved = &saved[index];

        ops.round(d_y, d_x, rows * width);
        ops.linear_backward(Output::Narrow(d_act), d_mid, d_y, &block.down, rows);
        let feed_forward = block.down.inputs;
        ops.gated_backward(d_gate_up, &mut stream.act, d_act, &saved.gate_up, Gate::Silu, rows, feed_forward);
        ops.adapter_backward(gradients, &stream.act, &saved.down_mid, d_y, d_mid, &block.down, rows);
        ops.linear_backward(Output::Wide(d_h), d_mid, d_gate_up, &block.gate_up, rows);
        ops.norm_again(&mut stream.h, &saved.unit2, &block.norm2, rows);
        ops.adapter_backward(
            gradients,
            &stream.h,
            &saved.gate_up_mid,
            d_gate_up,
            d_mid,
            &block.gate_up,
            rows,
        );
        ops.norm_backward(d_x, d_h, &saved.unit2, &saved.rstd2, &block.norm2, rows);

        ops.round(d_y, d_x, rows * width);
        if let Some(chosen) = chosen {
            let (d_chosen, d_attention) = (&mut tape.d_chosen_attention, &mut tape.d_attention);
            ops.linear_backward(Output::Narrow(d_chosen), d_mid, d_y, &block.out, rows);
            let attention = &stream.chosen_attention;
            ops.adapter_backward(gradients, attention, &saved.out_mid, d_y, d_mid, &block.out, rows);
            ops.spread_narrow(d_attention, d_chosen, chosen, all, block.out.inputs);
            ops.clear(d_x_all, all * width);
            ops.scatter_add(d_x_all, d_x, chosen, width);
            std::mem::swap(d_x, d_x_all);
        } else {
            ops.linear_backward(Output::Narrow(&mut tape.d_attention), d_mid, d_y, &block.out, rows);
            ops.adapter_backward(gradients, &saved.attention, &saved.out_mid, d_y, d_mid, &block.out, rows);
        }
        let (d_attention, attention) = (&tape.d_attention, &saved.attention);
        ops.attention_backward(d_qkv, d_attention, attention, &saved.lse, &saved.qkv, &tree.layout, shape);
        ops.rotary(d_qkv, &self.rotary, &tree.positions, shape, Direction::Backward);
        ops.linear_backward(Output::Wide(d_h), d_mid, d_qkv, &block.qkv, all);
        ops.norm_again(&mut stream.h, &saved.unit1, &block.norm1, all);
        ops.adapter_backward(gradients, &stream.h, &saved.qkv_mid, d_qkv, d_mid, &block.qkv, all);
        // Nothing below the first block is trained, so its input needs no gradient.
        if index > 0 {
            ops.norm_backward(d_x, d_h, &saved.unit1, &saved.rstd1, &block.norm1, all);
        }
    }
}
