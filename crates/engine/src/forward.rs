//! The forward pass over a token tree.

use kernels::{Backend, Direction, Gate, Output};

use crate::block::{Block, Saved};
use crate::model::Model;
use crate::tree::TokenTree;

/// Buffers that live through a pass, whatever the block.
pub(crate) struct Stream<B: Backend> {
    /// The residual stream `(T, C)`; after the last block only the chosen rows.
    pub(crate) x: B::Wide,
    /// A norm's output `(T, C)`.
    pub(crate) h: B::Narrow,
    /// `(T, F)`.
    pub(crate) act: B::Narrow,
    /// The last block's attention output on the chosen rows `(L, H D)`.
    pub(crate) chosen_attention: B::Narrow,
    chosen_x: B::Wide,
    /// The final norm, on the chosen rows.
    pub(crate) unit: B::Narrow,
    pub(crate) rstd: B::Wide,
}

/// Where a block's keys and values go.
pub(crate) enum Kv<'a, B: Backend> {
    /// They stay in the block's own rows (training).
    Own,
    /// They are added to the block's cache at a row (serving).
    Cache(&'a mut B::Narrow, usize),
}

impl<B: Backend> Stream<B> {
    pub(crate) fn new(model: &Model<B>, rows: usize) -> Self {
        let (backend, width) = (&model.backend, model.config.hidden_size);
        let block = &model.blocks[0];
        Self {
            x: backend.wide(rows * width),
            h: backend.narrow(rows * width),
            act: backend.narrow(rows * block.down.inputs),
            chosen_attention: backend.narrow(rows * block.out.inputs),
            chosen_x: backend.wide(rows * width),
            unit: backend.narrow(rows * width),
            rstd: backend.wide(rows),
        }
    }
}

impl<B: Backend> Model<B> {
    /// `x = embedding[tokens]`.
    pub(crate) fn embed(&self, stream: &mut Stream<B>, tree: &TokenTree) {
        self.backend.embed(&mut stream.x, &self.embedding, &tree.tokens);
    }

    /// Runs one block. With `chosen`, everything after the attention is computed on those rows only, and the
    /// stream holds only them afterwards.
    pub(crate) fn run_block(
        &self,
        block: &Block<B>,
        saved: &mut Saved<B>,
        stream: &mut Stream<B>,
        kv: Kv<'_, B>,
        tree: &TokenTree,
        chosen: Option<&[u32]>,
    ) {
        let (ops, shape, rows) = (&self.backend, &self.attention_shape(), tree.rows());
        ops.norm(&mut stream.h, &mut saved.unit1, &mut saved.rstd1, &stream.x, &block.norm1, rows);
        ops.linear(Output::Narrow(&mut saved.qkv), &mut saved.qkv_mid, &stream.h, &block.qkv, rows);
        ops.rotary(&mut saved.qkv, &self.rotary, &tree.positions, shape, Direction::Forward);
        let (kv, columns) = match kv {
            Kv::Own => (&saved.qkv, shape.columns_in_qkv()),
            Kv::Cache(cache, at) => {
                ops.store_kv(cache, at, &saved.qkv, shape, rows);
                (&*cache, shape.columns_in_cache())
            }
        };
        ops.attention(&mut saved.attention, &mut saved.lse, &saved.qkv, kv, columns, &tree.layout, shape);

        let (attention, rows) = match chosen {
            None => (&saved.attention, rows),
            Some(chosen) => {
                ops.gather_narrow(&mut stream.chosen_attention, &saved.attention, chosen, block.out.inputs);
                ops.gather(&mut stream.chosen_x, &stream.x, chosen, block.out.outputs);
                std::mem::swap(&mut stream.x, &mut stream.chosen_x);
                (&stream.chosen_attention, chosen.len())
            }
        };
        ops.linear(Output::Add(&mut stream.x), &mut saved.out_mid, attention, &block.out, rows);
        ops.norm(&mut stream.h, &mut saved.unit2, &mut saved.rstd2, &stream.x, &block.norm2, rows);
        ops.linear(
            Output::Narrow(&mut saved.gate_up),
            &mut saved.gate_up_mid,
            &stream.h,
            &block.gate_up,
            rows,
        );
        ops.gated(&mut stream.act, &saved.gate_up, Gate::Silu, rows, block.down.inputs);
        ops.linear(Output::Add(&mut stream.x), &mut saved.down_mid, &stream.act, &block.down, rows);
    }

    /// The final norm of `rows` rows; its output is in `stream.h`.
    pub(crate) fn finish(&self, stream: &mut Stream<B>, rows: usize) {
        self.backend.norm(&mut stream.h, &mut stream.unit, &mut stream.rstd, &stream.x, &self.norm, rows);
    }
}
