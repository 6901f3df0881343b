//! Attention over a token tree: starts the kernels on the pass's lists of work.

use std::sync::{Arc, PoisonError};

use super::device::{Lane, Values};
use super::pass::Pass;
use super::plan::{KEY_TILE, Kernel, SUM_SLICES, shared_bytes};
use super::program::Program;
use super::scratch::Kind;
use super::{Cuda, args};
use crate::{AttentionShape, KvColumns, Mask, bf16};

/// Query heads of a key/value head that a block shares its keys among.
const GROUP: usize = 4;

/// Which kernels compute a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A row a warp.
    Plain,
    /// Products of a warp.
    Warp,
    /// Products of four warps.
    Warpgroup,
}

/// The kernels for one head size, and those to be taken.
struct Kernels {
    program: Arc<Program>,
    way: Way,
}

impl Kernels {
    fn name(&self, kernel: Kernel) -> &'static str {
        name(kernel, self.way)
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
    fn attention_kernels(&self, head_dim: usize, pass: &Pass) -> Kernels {
        const ALL: [Kernel; 3] = [Kernel::Forward, Kernel::BackwardQuery, Kernel::BackwardKey];
        // The products of warps are of bf16.
        let tensor_cores = head_dim.is_multiple_of(16) && head_dim <= 128 && !self.device.f16;
        let warpgroups = tensor_cores && head_dim == WARPGROUP_HEAD && self.device.has_warpgroups();
        let mut programs = self.attention.lock().unwrap_or_else(PoisonError::into_inner);
        let program = programs.entry(head_dim).or_insert_with(|| {
            let source = concat!(
                include_str!("source/attention.cu"),
                include_str!("source/attention_hopper.cu"),
                include_str!("source/attention_hopper_backward.cu"),
            );
            let defines = [format!("-DHEAD_SIZE={head_dim}")];
            let ways: &[Way] = match (tensor_cores, warpgroups) {
                (false, _) => &[Way::Plain],
                (true, false) => &[Way::Warp],
                (true, true) => &[Way::Warp, Way::Warpgroup],
            };
            let kernels: Vec<_> = ways.iter().flat_map(|&way| ALL.map(|kernel| (kernel, way))).collect();
            let mut names: Vec<_> = kernels.iter().map(|&(kernel, way)| name(kernel, way)).collect();
            names.push("attention_sum");
            let program =
                Program::load(&self.device, self.cache.as_deref(), "attention", source, &defines, &names)
                    .unwrap_or_else(|error| panic!("{error}"));
            for (kernel, way) in kernels {
                let allowed = program.allow_shared(name(kernel, way), shared(kernel, way, head_dim));
                allowed.unwrap_or_else(|error| panic!("{error}"));
            }
            Arc::new(program)
        });
        let way = match tensor_cores {
            false => Way::Plain,
            true if warpgroups && pass.mean_keys >= MANY_KEYS => Way::Warpgroup,
            true => Way::Warp,
        };
        Kernels { program: program.clone(), way }
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
        let function = kernels.program.get(kernels.name(Kernel::Forward));
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
        let start = |kernel: Kernel| {
            (kernels.program.get(kernels.name(kernel)), kernels.shared(kernel, shape.head_dim))
        };
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
                kernels.program.get("attention_sum"),
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
