//! The forward pass over a token tree.

use kernels::{Backend, Direction, GatedLayer, Norm, Output};

use crate::block::Saved;
use crate::model::{FeedForward, Model};

/// Buffers that live through a pass, whatever the block.
pub(crate) struct Stream<B: Backend> {
    /// The residual stream `(T, C)`.
    pub(crate) x: B::Wide,
    /// A norm's output `(T, C)`; where norms follow the sums, the rounded stream.
    pub(crate) h: B::Narrow,
    /// `(T, F)`.
    pub(crate) act: B::Narrow,
    /// The last block's attention output on the chosen rows `(L, H D)`.
    pub(crate) chosen_attention: B::Narrow,
    /// The residual stream of the chosen rows `(L, C)`, after the last block's attention; then its gradient.
    pub(crate) chosen_x: B::Wide,
    /// Of the norm outside the blocks: the embeddings' on all rows, or the final one on the chosen rows.
    pub(crate) unit: B::Narrow,
    pub(crate) rstd: B::Wide,
}

/// What a pass without gradients needs: every block saves to the same place.
pub(crate) struct Scratch<B: Backend> {
    pub(crate) stream: Stream<B>,
    pub(crate) saved: Saved<B>,
    rows: usize,
}

impl<B: Backend> Scratch<B> {
    /// Buffers for a pass of `rows` rows, and whether they are new: `old` where those are large enough.
    pub(crate) fn at_least(old: Option<Self>, model: &Model<B>, rows: usize) -> (Self, bool) {
        match old {
            Some(old) if old.rows >= rows => (old, false),
            smaller => {
                drop(smaller);
                let rows = model.backend.room(rows.next_power_of_two());
                let saved = Saved::new(&model.backend, &model.blocks[0], model.config.heads, rows);
                (Self { stream: Stream::new(model, rows), saved, rows }, true)
            }
        }
    }
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
    /// The stream before the first block.
    pub(crate) fn embed(&self, stream: &mut Stream<B>, pass: &B::Pass) {
        self.backend.embed(&mut stream.x, &self.embedding, pass);
        if let Some(table) = &self.position_table {
            self.backend.add_positions(&mut stream.x, table, pass);
        }
        if self.post_norm() {
            let (x, h) = (&mut stream.x, &mut stream.h);
            self.norm_stream(x, h, &mut stream.unit, &mut stream.rstd, &self.norm, self.backend.rows(pass));
        }
    }

    /// Runs one block. In the last of a decoder, everything after the attention is computed on the chosen rows only.
    pub(crate) fn run_block(
        &self,
        index: usize,
        saved: &mut Saved<B>,
        stream: &mut Stream<B>,
        kv: Kv<'_, B>,
        pass: &B::Pass,
    ) {
        let (ops, block, shape) = (&self.backend, &self.blocks[index], &self.attention_shape(index));
        let rows = ops.rows(pass);
        if !self.post_norm() {
            ops.norm(&mut stream.h, &mut saved.unit1, &mut saved.rstd1, &stream.x, &block.norm1, rows);
        }
        ops.linear(Output::Narrow(&mut saved.qkv), &mut saved.qkv_mid, &stream.h, &block.qkv, rows);
        if let Some(table) = &self.rotary {
            ops.rotary(&mut saved.qkv, table, pass, shape, Direction::Forward);
        }
        let (kv, columns) = match kv {
            Kv::Own => (&saved.qkv, shape.columns_in_qkv()),
            Kv::Cache(cache) => {
                ops.store_kv(cache, &saved.qkv, pass, shape);
                (&*cache, shape.columns_in_cache())
            }
        };
        ops.attention(&mut saved.attention, &mut saved.lse, &saved.qkv, kv, columns, pass, shape);

        let (attention, x, rows) = if self.narrows(index) {
            ops.gather_narrow(&mut stream.chosen_attention, &saved.attention, pass, block.out.inputs);
            ops.gather(&mut stream.chosen_x, &stream.x, pass, block.out.outputs);
            (&stream.chosen_attention, &mut stream.chosen_x, ops.chosen(pass))
        } else {
            (&saved.attention, &mut stream.x, rows)
        };
        ops.linear(Output::Add(x), &mut saved.out_mid, attention, &block.out, rows);
        if self.post_norm() {
            self.norm_stream(x, &mut stream.h, &mut saved.unit1, &mut saved.rstd1, &block.norm1, rows);
        } else {
            ops.norm(&mut stream.h, &mut saved.unit2, &mut saved.rstd2, x, &block.norm2, rows);
        }
        let (act, h, y) = (&mut stream.act, &stream.h, Output::Add(x));
        let (up, [up_mid, down_mid]) = (&mut saved.up, [&mut saved.up_mid, &mut saved.down_mid]);
        match self.feed_forward() {
            FeedForward::Gated(gate) => {
                let layer = GatedLayer { up: &block.up, down: &block.down, gate };
                ops.feed_forward(y, act, up, [up_mid, down_mid], h, &layer, rows);
            }
            FeedForward::Plain(activation) => {
                ops.linear(Output::Narrow(up), up_mid, h, &block.up, rows);
                ops.activation(act, up, activation, rows, block.down.inputs);
                ops.linear(y, down_mid, act, &block.down, rows);
            }
        }
        if self.post_norm() {
            self.norm_stream(x, &mut stream.h, &mut saved.unit2, &mut saved.rstd2, &block.norm2, rows);
        }
    }

    /// What is read after the last block, in `stream.h`: of a decoder the final norm of the chosen rows, of an encoder
    /// every row as it is.
    pub(crate) fn finish(&self, stream: &mut Stream<B>, pass: &B::Pass) {
        if !self.post_norm() {
            let rows = self.backend.chosen(pass);
            let Stream { h, unit, rstd, chosen_x, .. } = stream;
            self.backend.norm(h, unit, rstd, chosen_x, &self.norm, rows);
        }
    }

    /// Whether norms follow the sums.
    pub(crate) fn post_norm(&self) -> bool {
        self.config.family.traits().post_norm
    }

    /// Whether this block goes on with the chosen rows alone after its attention.
    pub(crate) fn narrows(&self, index: usize) -> bool {
        index + 1 == self.blocks.len() && !self.is_encoder()
    }

    /// `x = norm(x)`, and the same rounded in `h`.
    fn norm_stream(
        &self,
        x: &mut B::Wide,
        h: &mut B::Narrow,
        unit: &mut B::Narrow,
        rstd: &mut B::Wide,
        norm: &Norm<B>,
        rows: usize,
    ) {
        self.backend.norm(h, unit, rstd, x, norm, rows);
        self.backend.widen(x, h, rows * norm.width);
    }
}
