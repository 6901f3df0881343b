//! Attention over a token tree: starts the kernels on the pass's lists of work.

use std::sync::{Arc, PoisonError};

use super::device::{Function, Lane, Values};
use super::pass::Pass;
use super::plan::{KEY_TILE, Kernel, SUM_SLICES, shared_bytes};
use super::program::{Coming, Program};
use super::scratch::Kind;
use super::{Cuda, args};
use crate::{AttentionShape, KvColumns, Mask, bf16};

/// Query heads of a key/value head that a block shares its keys among.
const GROUP: usize = 4;

/// Which kernels compute a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// A row a warp.
    Plain,
    /// Products of a warp.
    Warp,
    /// Products of four warps.
    Warpgroup,
}

/// The programs of one way and head size.
#[derive(Debug)]
pub(super) struct Programs(Vec<(&'static [Kernel], Coming)>);

impl Programs {
    /// The one with this kernel.
    fn of(&self, kernel: Kernel) -> &Program {
        let with = self.0.iter().find(|(kernels, _)| kernels.contains(&kernel));
        with.unwrap_or_else(|| unreachable!("each way has every kernel")).1.get()
    }
}

/// The kernels for one head size, and those to be taken.
struct Kernels {
    programs: Arc<Programs>,
    way: Way,
}

impl Kernels {
    fn function(&self, kernel: Kernel) -> Function {
        self.programs.of(kernel).get(name(kernel, self.way))
    }

    /// Blocks and threads of the kernels that go by query items.
    fn by_queries(&self, pass: &Pass, shape: &AttentionShape) -> (usize, usize) {
        let group = shape.heads / shape.kv_heads;
        let threads = 64 * group.min(GROUP);
        let threads = match self.way {
            Way::Plain => return (pass.queries.count * shape.heads, 128),
            Way::Warp => threads,
            Way::Warpgroup => threads.next_multiple_of(128),
        };
        (pass.queries.count * shape.kv_heads * group.div_ceil(GROUP), threads)
    }

    fn shared(&self, kernel: Kernel, head_dim: usize) -> usize {
        shared(kernel, self.way, head_dim)
    }
}

fn name(kernel: Kernel, way: Way) -> &'static str {
    match (kernel, way) {
        (Kernel::Forward, Way::Plain) => "attention_forward_plain",
        (Kernel::Forward, Way::Warp) => "attention_forward",
        (Kernel::Forward, Way::Warpgroup) => "attention_forward_hopper",
        (Kernel::BackwardQuery, Way::Plain) => "attention_backward_query_plain",
        (Kernel::BackwardQuery, Way::Warp) => "attention_backward_query",
        (Kernel::BackwardQuery, Way::Warpgroup) => "attention_backward_query_hopper",
        (Kernel::BackwardKey, Way::Plain) => "attention_backward_key_plain",
        (Kernel::BackwardKey, Way::Warp) => "attention_backward_key",
        (Kernel::BackwardKey, Way::Warpgroup) => "attention_backward_key_hopper",
    }
}

/// Adds up what the blocks of the pass over keys have left.
const SUM: &str = "attention_sum";

/// The programs of a way, side by side so that they are compiled so: each with its kernels.
fn sources(way: Way) -> &'static [(&'static str, &'static [Kernel])] {
    macro_rules! source {
        ($($file:literal),*) => {
            concat!(include_str!("source/attention.cu"), $(include_str!(concat!("source/", $file))),*)
        };
    }
    use Kernel::{BackwardKey, BackwardQuery, Forward};
    match way {
        Way::Plain => &[(source!("attention_plain.cu"), &[Forward, BackwardQuery, BackwardKey])],
        Way::Warp => &[
            (source!("attention_forward.cu"), &[Forward]),
            (source!("attention_backward.cu"), &[BackwardQuery, BackwardKey]),
        ],
        Way::Warpgroup => &[(
            source!("attention_hopper.cu", "attention_hopper_backward.cu"),
            &[Forward, BackwardQuery, BackwardKey],
        )],
    }
}

/// Dynamic shared memory of a block, in bytes.
fn shared(kernel: Kernel, way: Way, head_dim: usize) -> usize {
    match way {
        Way::Plain => 0,
        Way::Warp => shared_bytes(kernel, head_dim),
        Way::Warpgroup => {
            // Three stages of keys and values; two, and the block's queries and gradients, or its keys and values.
            let tiles = match kernel {
                Kernel::Forward | Kernel::BackwardKey => 6,
                Kernel::BackwardQuery => 8,
            };
            tiles * KEY_TILE * 2 * head_dim
        }
    }
}

/// The head size of the kernels that take products of four warps.
const WARPGROUP_HEAD: usize = 64;
/// Keys that a row of a pass looks at on average, from which they are faster.
const MANY_KEYS: usize = 128;

impl Cuda {
    /// Whether the products of warps, which are of bf16, know this head size.
    fn has_products(&self, head_dim: usize) -> bool {
        head_dim.is_multiple_of(16) && head_dim <= 128 && !self.device.f16
    }

    fn attention_kernels(&self, head_dim: usize, pass: &Pass) -> Kernels {
        let warpgroups = head_dim == WARPGROUP_HEAD && self.device.has_warpgroups();
        let way = match self.has_products(head_dim) {
            false => Way::Plain,
            true if warpgroups && pass.mean_keys >= MANY_KEYS => Way::Warpgroup,
            true => Way::Warp,
        };
        Kernels { programs: self.attention_programs(head_dim, way), way }
    }

    /// Begins to compile what short rows need.
    pub(super) fn expect_heads(&self, head_dim: usize) {
        self.attention_programs(head_dim, if self.has_products(head_dim) { Way::Warp } else { Way::Plain });
    }

    fn attention_programs(&self, head_dim: usize, way: Way) -> Arc<Programs> {
        let begin = |&(source, kernels): &(&'static str, &'static [Kernel])| {
            let (device, cache) = (self.device.clone(), self.cache.clone());
            let coming = Coming::begin(move || {
                let defines = [format!("-DHEAD_SIZE={head_dim}")];
                let mut names: Vec<_> = kernels.iter().map(|&kernel| name(kernel, way)).collect();
                if kernels.contains(&Kernel::BackwardKey) {
                    names.push(SUM);
                }
                let program =
                    Program::load(&device, cache.as_deref(), "attention", source, &defines, &names)?;
                for &kernel in kernels {
                    program.get(name(kernel, way)).allow_shared(shared(kernel, way, head_dim))?;
                }
                Ok(program)
            });
            (kernels, coming)
        };
        let mut programs = self.attention.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = programs
            .entry((head_dim, way))
            .or_insert_with(|| Arc::new(Programs(sources(way).iter().map(begin).collect())));
        programs.clone()
    }

    pub(super) fn attention_forward(
        &self,
        out: &mut Values<bf16>,
        lse: &mut Values<f32>,
        [qkv, kv]: [&Values<bf16>; 2],
        columns: KvColumns,
        pass: &Pass,
        shape: &AttentionShape,
    ) {
        let kernels = self.attention_kernels(shape.head_dim, pass);
        let (grid, block) = kernels.by_queries(pass, shape);
        let (causal, window) = mask(shape);
        let args = args![
            out.first(pass.rows * shape.q_width()),
            lse.first(pass.rows * shape.heads),
            qkv.first(pass.rows * shape.qkv_width()),
            kv.first(0),
            columns.stride,
            columns.k,
            columns.v,
            pass.queries.address,
            pass.key_ranges.address,
            shape.heads,
            shape.kv_heads,
            window,
            causal,
            shape.scale
        ];
        let function = kernels.function(Kernel::Forward);
        self.side.settle(&[qkv.first(0), kv.first(0)], &[out.first(0), lse.first(0)]);
        // SAFETY: the buffers hold the pass's rows; its lists name rows of `kv` that the engine has made room for.
        unsafe {
            self.device.launch(
                Lane::Main,
                function,
                grid,
                block,
                kernels.shared(Kernel::Forward, shape.head_dim),
                args,
            );
        }
    }

    pub(super) fn attention_gradient(
        &self,
        d_qkv: &mut Values<bf16>,
        [d_out, out, qkv]: [&Values<bf16>; 3],
        lse: &Values<f32>,
        pass: &Pass,
        shape: &AttentionShape,
    ) {
        let (rows, heads, kv_heads) = (pass.rows, shape.heads, shape.kv_heads);
        assert!(rows == 0 || pass.keys.count > 0, "a pass over cached segments has no backward pass");
        let kernels = self.attention_kernels(shape.head_dim, pass);
        let (causal, window) = mask(shape);
        let delta = self.scratch.take(Kind::Delta, 4 * rows * heads);
        let parts = self.scratch.take(Kind::Parts, 4 * pass.parts * kv_heads * KEY_TILE * 2 * shape.head_dim);
        let d_qkv = d_qkv.first(rows * shape.qkv_width());
        let [d_out, out] = [d_out, out].map(|values| values.first(rows * shape.q_width()));
        let (lse, qkv) = (lse.first(rows * heads), qkv.first(rows * shape.qkv_width()));
        let start = |kernel: Kernel| (kernels.function(kernel), kernels.shared(kernel, shape.head_dim));
        self.side.settle(&[d_out, out, lse, qkv], &[d_qkv, delta, parts]);
        // SAFETY: the buffers hold the pass's rows, and the lists name rows of the pass.
        unsafe {
            let (grid, block) = kernels.by_queries(pass, shape);
            let (function, shared) = start(Kernel::BackwardQuery);
            let lists = (pass.queries.address, pass.key_ranges.address);
            let args = args![
                d_qkv,
                delta,
                d_out,
                out,
                lse,
                qkv,
                lists.0,
                lists.1,
                heads,
                kv_heads,
                window,
                causal,
                shape.scale
            ];
            self.device.launch(Lane::Main, function, grid, block, shared, args);
            let (function, shared) = start(Kernel::BackwardKey);
            let lists = (pass.keys.address, pass.row_ranges.address, pass.places.address);
            let args = args![
                d_qkv,
                parts,
                d_out,
                lse,
                delta,
                qkv,
                lists.0,
                lists.1,
                lists.2,
                heads,
                kv_heads,
                window,
                causal,
                shape.scale
            ];
            self.device.launch(Lane::Main, function, pass.keys.count * kv_heads, 128, shared, args);
            let args = args![d_qkv, parts, pass.sums.address, heads, kv_heads];
            self.device.launch(
                Lane::Main,
                kernels.programs.of(Kernel::BackwardKey).get(SUM),
                pass.sums.count * kv_heads * SUM_SLICES,
                256,
                0,
                args,
            );
        }
    }
}

/// Causal or not, and the window, 0 for none.
fn mask(shape: &AttentionShape) -> (u32, u32) {
    (u32::from(shape.mask == Mask::Causal), shape.window.map_or(0, |window| window as u32))
}
