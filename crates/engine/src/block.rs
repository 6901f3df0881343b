//! One block: its weights and the buffers of a pass through it.

use formats::Part;
use kernels::{Backend, Linear, Norm, Slot};

use crate::lora::LoraEntry;

/// What runs as one product with queries, and with gates; of each what the family has.
pub(crate) const QUERY_KEY_VALUE: [Part; 4] = [Part::Query, Part::Key, Part::Value, Part::QueryKeyValue];
pub(crate) const GATE_UP: [Part; 3] = [Part::Gate, Part::Up, Part::GateUp];

/// A block: `x += out(attention(norm1(x)))`, `x += down(f(up(norm2(x))))`; where norms follow the sums,
/// `x = norm1(x + out(attention(x)))`, `x = norm2(x + down(f(up(x))))`.
pub(crate) struct Block<B: Backend> {
    pub(crate) norm1: Norm<B>,
    /// Queries, keys, values: `((H + 2 G) D, C)`.
    pub(crate) qkv: Linear<B>,
    /// `(C, H D)`.
    pub(crate) out: Linear<B>,
    pub(crate) norm2: Norm<B>,
    /// Gates, then ups: `(2 F, C)`; without gates `(F, C)`.
    pub(crate) up: Linear<B>,
    /// `(C, F)`.
    pub(crate) down: Linear<B>,
}

impl<B: Backend> Block<B> {
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<B>> {
        [&self.qkv, &self.out, &self.up, &self.down].into_iter()
    }

    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        [&mut self.qkv, &mut self.out, &mut self.up, &mut self.down].into_iter()
    }

    /// A slot for each pair of LoRA, in the rows of the product that its part has.
    pub(crate) fn open_slots(&mut self, entries: impl Iterator<Item = LoraEntry>, scale: f32) {
        self.linears_mut().for_each(|linear| linear.slots.clear());
        for entry in entries {
            let (q, kv) = (self.out.inputs, (self.qkv.outputs - self.out.inputs) / 2);
            let (linear, start) = match entry.part {
                Part::Key => (&mut self.qkv, q),
                Part::Value => (&mut self.qkv, q + kv),
                Part::Output => (&mut self.out, 0),
                // Behind the gates, where there are any.
                Part::Up => {
                    let gates = self.up.outputs - self.down.inputs;
                    (&mut self.up, gates)
                }
                Part::Gate | Part::GateUp => (&mut self.up, 0),
                Part::Down => (&mut self.down, 0),
                _ => (&mut self.qkv, 0),
            };
            let rows = start..start + entry.outputs;
            linear.slots.push(Slot { rows, rank: entry.rank, scale, a: entry.a, b: entry.b });
        }
    }
}

/// What the backward pass of a block needs from its forward pass.
pub(crate) struct Saved<B: Backend> {
    pub(crate) unit1: B::Narrow,
    pub(crate) rstd1: B::Wide,
    /// After rotary.
    pub(crate) qkv: B::Narrow,
    pub(crate) qkv_mid: B::Narrow,
    pub(crate) attention: B::Narrow,
    pub(crate) lse: B::Wide,
    pub(crate) out_mid: B::Narrow,
    pub(crate) unit2: B::Narrow,
    pub(crate) rstd2: B::Wide,
    pub(crate) up: B::Narrow,
    pub(crate) up_mid: B::Narrow,
    pub(crate) down_mid: B::Narrow,
}

impl<B: Backend> Saved<B> {
    pub(crate) fn new(backend: &B, block: &Block<B>, heads: usize, rows: usize) -> Self {
        let narrow = |width: usize| backend.narrow(rows * width);
        Self {
            unit1: narrow(block.qkv.inputs),
            rstd1: backend.wide(rows),
            qkv: narrow(block.qkv.outputs),
            qkv_mid: narrow(block.qkv.mid_width()),
            attention: narrow(block.out.inputs),
            lse: backend.wide(rows * heads),
            out_mid: narrow(block.out.mid_width()),
            unit2: narrow(block.up.inputs),
            rstd2: backend.wide(rows),
            up: narrow(block.up.outputs),
            up_mid: narrow(block.up.mid_width()),
            down_mid: narrow(block.down.mid_width()),
        }
    }
}
