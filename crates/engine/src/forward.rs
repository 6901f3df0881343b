//! The forward pass over a token tree.

use kernels::{Backend, Direction, Gate, Output};

use crate::block::{Block, Saved};
use crate::model::Model;

/// Buffers that live through a pass, whatever the block.
pub(crate) struct Stream<B: Backend> {
    /// The residual stream `(T, C)`.
    pub(crate) x: B::Wide,
    /// A norm's output `(T, C)`.
    pub(crate) h: B::Narrow,
    /// `(T, F)`.
    pub(crate) act: B::Narrow,
    /// The last block's attention output on the chosen rows `(L, H D)`.
    pub(crate) chosen_attention: B::Narrow,
    /// The residual stream of the chosen rows `(L, C)`, after the last block's attention.
    chosen_x: B::Wide,
    /// The final norm, on the chosen rows.
    pub(crate) unit: B::Narrow,
    pub(crate) rstd: B::Wide,
}

/// Where a block's keys and values go.
pub(crate) enum Kv<'a, B: Backend> {
    /// They stay in the block's own rows (training).
    Own,
    /// They are added to the block's cache (serving).
    Cache(&'a mut B::Narrow),
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
    pub(crate) fn embed(&self, stream: &mut Stream<B>, pass: &B::Pass) {
        self.backend.embed(&mut stream.x, &self.embedding, pass);
    }

    /// Runs one block. In the last, everything after the attention is computed on the chosen rows only.
    pub(crate) fn run_block(
        &self,
        block: &Block<B>,
        saved: &mut Saved<B>,
        stream: &mut Stream<B>,
        kv: Kv<'_, B>,
        pass: &B::Pass,
        last: bool,
    ) {
        let (ops, shape) = (&self.backend, &self.attention_shape());
        let rows = ops.rows(pass);
        ops.norm(&mut stream.h, &mut saved.unit1, &mut saved.rstd1, &stream.x, &block.norm1, rows);
        ops.linear(Output::Narrow(&mut saved.qkv), &mut saved.qkv_mid, &stream.h, &block.qkv, rows);
        ops.rotary(&mut saved.qkv, &self.rotary, pass, shape, Direction::Forward);
        let (kv, columns) = match kv {
            Kv::Own => (&saved.qkv, shape.columns_in_qkv()),
            Kv::Cache(cache) => {
                ops.store_kv(cache, &saved.qkv, pass, shape);
                (&*cache, shape.columns_in_cache())
            }
        };
        ops.attention(&mut saved.attention, &mut saved.lse, &saved.qkv, kv, columns, pass, shape);

        let (attention, x, rows) = if last {
            ops.gather_narrow(&mut stream.chosen_attention, &saved.attention, pass, block.out.inputs);
            ops.gather(&mut stream.chosen_x, &stream.x, pass, block.out.outputs);
            (&stream.chosen_attention, &mut stream.chosen_x, ops.chosen(pass))
        } else {
            (&saved.attention, &mut stream.x, rows)
        };
        ops.linear(Output::Add(x), &mut saved.out_mid, attention, &block.out, rows);
        ops.norm(&mut stream.h, &mut saved.unit2, &mut saved.rstd2, x, &block.norm2, rows);
        let (gate_up, mid) = (&mut saved.gate_up, &mut saved.gate_up_mid);
        ops.linear(Output::Narrow(gate_up), mid, &stream.h, &block.gate_up, rows);
        ops.gated(&mut stream.act, gate_up, Gate::Silu, rows, block.down.inputs);
        ops.linear(Output::Add(x), &mut saved.down_mid, &stream.act, &block.down, rows);
    }

    /// The final norm of the chosen rows; its output is in `stream.h`.
    pub(crate) fn finish(&self, stream: &mut Stream<B>, pass: &B::Pass) {
        let rows = self.backend.chosen(pass);
        let Stream { h, unit, rstd, chosen_x, .. } = stream;
        self.backend.norm(h, unit, rstd, chosen_x, &self.norm, rows);
    }
}
