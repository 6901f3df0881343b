//! One block: its weights and the buffers of a pass through it.

use kernels::{Backend, Linear, Norm};

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
