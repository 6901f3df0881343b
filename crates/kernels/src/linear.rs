//! Linear layers over frozen weights, with LoRA (Hu et al., 2021) folded in.
//!
//! `mid = scale x A^T`, `y = x W^T + bias + mid B^T`. Backward: `d_mid = scale d_y B`, `d_x = d_y W + d_mid A`,
//! `d_A = d_mid^T x`, `d_B = d_y^T mid`. The scale sits in `mid` and `d_mid`, so A and B appear unscaled elsewhere.

mod adapter;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
pub(crate) mod bytes;
mod exp;
mod gradient;
mod image;
pub(crate) mod kernel;
pub(crate) mod left;
mod matrix;
mod merge;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod nf4;
mod peak;
mod portable;
pub(crate) mod product;
pub mod reference;
pub(crate) mod words;

use std::ops::Range;

use self::adapter::Folded;
use self::kernel::{COLUMNS, MOST_ROWS, Segment};
use self::left::{Left, LeftLayout, RowPanels};
use self::product::{Right, multiply};
use self::words::Scratch;
use crate::pool::{self, Shared};
use crate::{Backend, Element, Isa, isa};

pub use self::adapter::PackedAdapter;
pub use self::blocks::BlockFormat;
pub use self::image::{Images, LAYOUT, Mapped};
pub use self::matrix::PackedMatrix;
pub use self::merge::{Encoding, merge};
pub use self::peak::peak_flops;

/// One LoRA pair on a range of a layer's output rows (a fused layer such as q/k/v has one for each part).
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Output rows of the layer that this pair feeds. Slots of a layer are in order and do not overlap.
    pub rows: std::ops::Range<usize>,
    /// `R`.
    pub rank: usize,
    /// `alpha / R`, or `alpha / sqrt(R)` for rsLoRA.
    pub scale: f32,
    /// Where A `(R, I)` begins in the parameters.
    pub a: usize,
    /// Where B `(rows.len(), R)` begins in the parameters.
    pub b: usize,
}

/// A frozen linear layer and its LoRA pairs.
pub struct Linear<B: Backend> {
    /// `(O, I)`.
    pub matrix: B::Matrix,
    /// `(O)`.
    pub bias: Option<B::Wide>,
    /// `I`.
    pub inputs: usize,
    /// `O`.
    pub outputs: usize,
    /// In order of their rows.
    pub slots: Vec<Slot>,
    /// What [`Backend::refresh`] made of the slots' parameters; `None` without LoRA.
    pub adapter: Option<B::Adapter>,
}

impl<B: Backend> Linear<B> {
    /// Columns of `mid`: the sum of the ranks.
    pub fn mid_width(&self) -> usize {
        self.slots.iter().map(|slot| slot.rank).sum()
    }
}

/// A layer as the CPU functions take it.
pub struct Layer<'a, E> {
    /// `(O, I)`.
    pub matrix: &'a PackedMatrix<E>,
    /// `(O)`.
    pub bias: Option<&'a [f32]>,
    /// In order of their rows.
    pub slots: &'a [Slot],
    /// Refreshed; `None` when there are no slots.
    pub adapter: Option<&'a PackedAdapter<E>>,
}

/// Where a product goes on the host.
pub enum Target<'a, E> {
    /// Overwrites.
    Narrow(&'a mut [E]),
    /// Overwrites.
    Wide(&'a mut [f32]),
    /// Adds.
    Add(&'a mut [f32]),
}

/// Writes `mid` and puts `y`.
/// # Shapes
/// `x`: `(T, I)`, `mid`: `(T, sum of R)`, `y`: `(T, O)`; `rows` is `T`.
/// # Panics
/// When a slice is shorter than its shape.
pub fn forward<E: Element>(y: Target<'_, E>, mid: &mut [E], x: &[E], layer: &Layer<'_, E>, rows: usize) {
    let bytes = layer.matrix.is_bytes();
    assert!(!bytes || layer.slots.is_empty(), "LoRA is merged before weights become bytes");
    if isa::current() == Isa::Scalar {
        return reference::forward(y, mid, x, layer, rows);
    }
    if bytes {
        return bytes::forward(y, x, layer.matrix, layer.bias, rows);
    }
    let outputs = layer.matrix.rows();
    let folded = layer.adapter.map(|adapter| &adapter.forward);
    let pass =
        Pass { x, inputs: layer.matrix.cols(), slots: layer.slots, folded, rows: RowPanels::new::<E>(rows) };
    pass.run(&Sink::new(y, layer.bias, outputs, rows), mid, &layer.matrix.forward(layer.matrix.panels()));
}

/// Writes `d_mid` and puts `d_x`.
/// # Shapes
/// As in [`forward`].
/// # Panics
/// When a slice is shorter than its shape.
pub fn backward<E: Element>(
    d_x: Target<'_, E>,
    d_mid: &mut [E],
    d_y: &[E],
    layer: &Layer<'_, E>,
    rows: usize,
) {
    if isa::current() == Isa::Scalar {
        return reference::backward(d_x, d_mid, d_y, layer, rows);
    }
    let inputs = layer.matrix.cols();
    let folded = layer.adapter.map(|adapter| &adapter.backward);
    let pass = Pass {
        x: d_y,
        inputs: layer.matrix.rows(),
        slots: layer.slots,
        folded,
        rows: RowPanels::new::<E>(rows),
    };
    pass.run(&Sink::new(d_x, None, inputs, rows), d_mid, &layer.matrix.backward());
}

/// Adds each slot's `d_A` and `d_B` to `gradients`, laid out as the parameters.
/// # Panics
/// When a slice is shorter than its shape, or slots share parameters.
pub fn adapter_backward<E: Element>(
    gradients: &mut [f32],
    x: &[E],
    mid: &[E],
    d_y: &[E],
    d_mid: &[E],
    layer: &Layer<'_, E>,
    rows: usize,
) {
    if isa::current() == Isa::Scalar {
        return reference::adapter_backward(gradients, x, mid, d_y, d_mid, layer, rows);
    }
    gradient::adapter_backward(gradients, x, mid, d_y, d_mid, layer, rows);
}

/// Adds `d_y^T x`, the gradient of a weight matrix, to `gradient`.
/// # Shapes
/// `gradient`: `(O, I)`, `x`: `(T, I)`, `d_y`: `(T, O)`, whose length gives `T`.
/// # Panics
/// When a slice is shorter than its shape.
pub fn weight_backward<E: Element>(gradient: &mut [f32], x: &[E], d_y: &[E], inputs: usize, outputs: usize) {
    let rows = d_y.len() / outputs;
    assert!(gradient.len() >= outputs * inputs && x.len() >= rows * inputs, "weight_backward: too short");
    if isa::current() == Isa::Scalar {
        return reference::weight_backward(gradient, x, d_y, inputs, outputs);
    }
    gradient::weight_backward(gradient, x, d_y, inputs, outputs);
}

/// One direction of a layer: `mid = scale * down(x)`, `y = right(x) + up(mid)`.
struct Pass<'a, E> {
    x: &'a [E],
    inputs: usize,
    slots: &'a [Slot],
    folded: Option<&'a Folded>,
    rows: RowPanels,
}

impl<E: Element> Pass<'_, E> {
    fn run(&self, sink: &Sink<'_, E>, mid: &mut [E], right: &impl Right) {
        let rows = self.rows.rows;
        if rows == 0 {
            return;
        }
        let mid_words = self.slots.iter().map(|slot| slot.rank.div_ceil(E::pair())).sum();
        let layouts = [self.inputs.div_ceil(E::pair()), mid_words].map(LeftLayout::new::<E>);
        let [mut packed, mut packed_mid] = layouts.map(|layout| Scratch::take(layout.len(rows)));
        self.pack(layouts, [&mut packed, &mut packed_mid], mid);
        let left = Left { words: &packed, layout: layouts[0] };
        let mid_left = Left { words: &packed_mid, layout: layouts[1] };
        let store = |rows: Range<usize>, panel: usize, tile: &mut [f32]| sink.put(rows, panel, tile);
        match self.folded {
            Some(folded) => multiply::<E>(self.rows, left, right, mid_left, folded, &store),
            None => multiply::<E>(self.rows, left, right, mid_left, &(), &store),
        }
    }

    /// Packs `x`, computes `mid` and packs it too.
    fn pack(&self, layouts: [LeftLayout; 2], packed: [&mut [u32]; 2], mid: &mut [E]) {
        let count = self.rows.count;
        let width: usize = self.slots.iter().map(|slot| slot.rank).sum();
        let mid = Shared::new(&mut mid[..self.rows.rows * width]);
        let packed = packed.map(Shared::new);
        let per_job = (count / (4 * pool::threads())).clamp(1, 4);
        pool::run(count.div_ceil(per_job), &|job| {
            for panel in job * per_job..count.min((job + 1) * per_job) {
                let rows = self.rows.rows_of(panel);
                let x = |t: usize| &self.x[t * self.inputs..][..self.inputs];
                // SAFETY: each panel belongs to one job, and the rows of panels do not overlap.
                unsafe {
                    layouts[0].pack(&packed[0], E::kernels(), rows.clone(), 0, x);
                    if let Some(folded) = self.folded {
                        let x = packed[0].range(layouts[0].panel(&rows));
                        let mid = mid.range(rows.start * width..rows.end * width);
                        self.project(folded, layouts, x, &packed[1], mid, rows);
                    }
                }
            }
        });
    }

    /// `mid` of one row panel.
    ///
    /// # Safety
    /// Nobody else uses these rows of the packed `mid`.
    unsafe fn project(
        &self,
        folded: &Folded,
        [x_layout, mid_layout]: [LeftLayout; 2],
        x: &[u32],
        packed_mid: &Shared<'_, u32>,
        mid: &mut [E],
        rows: Range<usize>,
    ) {
        let kernels = E::kernels();
        let width = mid.len() / rows.len();
        let (mut first, mut first_word) = (0, 0);
        let mut tile = [0.0; MOST_ROWS * COLUMNS];
        for (slot, down) in self.slots.iter().zip(&folded.down) {
            let (a, stride) = x_layout.part(x, rows.len(), down.k.clone());
            for (columns, panel_width, b) in down.pieces() {
                let segment = Segment { a, stride, b, words: down.k.len() };
                (kernels.tile)(&mut tile, false, &[segment], rows.len(), panel_width);
                for (tile, mid) in tile.chunks_exact_mut(COLUMNS).zip(mid.chunks_exact_mut(width)) {
                    let values = &mut tile[..columns.len()];
                    (kernels.scale)(values, slot.scale);
                    (kernels.narrow)(&mut mid[first + columns.start..][..columns.len()], values);
                }
            }
            let row = |t: usize| &mid[(t - rows.start) * width + first..][..slot.rank];
            // SAFETY: the caller's promise.
            unsafe { mid_layout.pack(packed_mid, kernels, rows.clone(), first_word, row) };
            (first, first_word) = (first + slot.rank, first_word + slot.rank.div_ceil(E::pair()));
        }
    }
}

/// Where tiles go.
pub(crate) struct Sink<'a, E> {
    place: Place<'a, E>,
    bias: Option<&'a [f32]>,
    width: usize,
}

enum Place<'a, E> {
    Narrow(Shared<'a, E>),
    Wide(Shared<'a, f32>),
    Add(Shared<'a, f32>),
}

impl<'a, E: Element> Sink<'a, E> {
    pub(crate) fn new(target: Target<'a, E>, bias: Option<&'a [f32]>, width: usize, rows: usize) -> Self {
        let len = rows * width;
        let place = match target {
            Target::Narrow(out) => Place::Narrow(Shared::new(&mut out[..len])),
            Target::Wide(out) => Place::Wide(Shared::new(&mut out[..len])),
            Target::Add(out) => Place::Add(Shared::new(&mut out[..len])),
        };
        Self { place, bias, width }
    }

    /// Only [`multiply`] calls it, once for each tile.
    pub(crate) fn put(&self, rows: Range<usize>, panel: usize, tile: &mut [f32]) {
        let kernels = E::kernels();
        let columns = panel * COLUMNS..self.width.min((panel + 1) * COLUMNS);
        for (t, values) in rows.zip(tile.chunks_exact_mut(COLUMNS)) {
            let values = &mut values[..columns.len()];
            if let Some(bias) = self.bias {
                (kernels.add)(values, &bias[columns.clone()]);
            }
            let range = t * self.width + columns.start..t * self.width + columns.end;
            // SAFETY: each tile is put once, and tiles do not overlap.
            unsafe {
                match &self.place {
                    Place::Narrow(out) => (kernels.narrow)(out.range(range), values),
                    Place::Wide(out) => out.range(range).copy_from_slice(values),
                    Place::Add(out) => (kernels.add)(out.range(range), values),
                }
            }
        }
    }
}
