//! What a training takes, before anything of it is there.

use std::fmt;

use formats::{BaseModel, DType, Part};
use kernels::{Backend, BlockFormat};

use crate::backward::Tape;
use crate::load::Storage;
use crate::lora::LoraEntry;
use crate::trainable::Body;
use crate::trainer::{BESIDE_PASSES, most_rows, with_growth};
use crate::weights::Weights;
use crate::{Error, Result};

/// Bytes that ops need beside the buffers of a pass where they are the processor's.
const BESIDE_ON_HOST: usize = 64 << 20;
/// Arrays of f32: the values that train, their gradients and both moments.
const ARRAYS: usize = 4;

/// What decides the size of a training's passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSizes {
    /// Tokens of the beginning that all examples share.
    pub prefix: usize,
    /// Tokens of the longest example behind it.
    pub longest: usize,
    /// Examples a step, over all replicas.
    pub batch: usize,
    /// Devices that share them.
    pub devices: usize,
    /// Rows a pass, where they were asked for.
    pub rows_per_pass: Option<usize>,
    /// Whether blocks are computed again in the backward pass.
    pub recompute: bool,
}

/// The bytes that a training takes, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The model's weights.
    pub weights: usize,
    /// The values that train, their gradients and moments; in the host's memory also the best values, which are kept.
    pub trained: usize,
    /// What ops need while they run: logits, most of all.
    pub ops: usize,
    /// Each row of a pass.
    pub row: usize,
    /// Rows of a pass.
    pub rows: usize,
    /// Rows of the smallest pass that there can be: the shared beginning with the longest example.
    pub least: usize,
    /// What is free; `None` where the system does not tell.
    pub free: Option<usize>,
}

impl MemoryPlan {
    /// The plan for training `body` on this device, and a head of `head` values, in a base model that is not loaded yet.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub fn new<B: Backend>(
        backend: &B,
        base: &BaseModel,
        storage: Storage,
        (body, head): (&Body, usize),
        sizes: PassSizes,
    ) -> Result<Self> {
        let config = &base.config;
        let places = Weights::new(config);
        let mut weights = 0;
        for entry in &places.entries {
            let in_blocks = places.in_blocks(entry);
            weights += match base.dtype(&entry.name)? {
                _ if entry.shape.len() < 2 => size_of::<f32>() * entry.range().len(),
                dtype => matrix_bytes(dtype, storage, in_blocks, &entry.shape, backend.narrow_size()),
            };
        }
        let (values, lora) = match body {
            Body::Lora(lora) => {
                (lora.entries(config).last().map_or(0, |last| last.b_range().end), Some(lora))
            }
            Body::Weights => (places.values(), None),
        };
        let entries = lora.map_or_else(Vec::new, |lora| lora.entries(config));
        let mids = [Part::Query, Part::Output, Part::Gate, Part::Down].map(|product| {
            let of = |entry: &&LoraEntry| entry.layer == 0 && entry.part.product() == product;
            entries.iter().filter(of).map(|entry| entry.rank).sum()
        });
        let device = backend.free_bytes();
        let (arrays, ops) =
            if device.is_some() { (ARRAYS, BESIDE_PASSES) } else { (ARRAYS + 1, BESIDE_ON_HOST) };
        let least = sizes.prefix + sizes.longest;
        let mut plan = Self {
            weights,
            trained: arrays * size_of::<f32>() * (values + head),
            ops,
            row: Tape::<B>::row_bytes(config, mids, backend.narrow_size(), sizes.recompute),
            rows: 0,
            least,
            free: device.or_else(available),
        };
        // On the host the result must not depend on what other programs leave free.
        let room = if device.is_some() { plan.fit() } else { None };
        let most = most_rows(backend);
        let asked = sizes.rows_per_pass.unwrap_or_else(|| room.map_or(most, |fit| fit.min(most)));
        // A share may be an example more than an equal one.
        let examples = if sizes.devices > 1 { sizes.batch / sizes.devices + 1 } else { sizes.batch };
        plan.rows = asked.min(sizes.prefix + examples * sizes.longest).max(least);
        Ok(plan)
    }

    /// The buffers of a pass, with room for one that is a little longer.
    pub fn pass(&self) -> usize {
        with_growth(self.rows) * self.row
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.trained + self.ops + self.pass()
    }

    /// Rows of the largest pass for which there is room.
    pub fn fit(&self) -> Option<usize> {
        let left = self.free?.saturating_sub(self.weights + self.trained + self.ops);
        // `with_growth` and the device's rounding add less than a sixteenth together.
        Some(left / self.row * 15 / 16)
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// [`Error::Memory`], with the largest pass that fits.
    pub fn check(&self) -> Result<()> {
        match (self.free, self.fit()) {
            (Some(free), Some(fit)) if self.total() > free => {
                Err(Error::Memory { plan: Box::new(*self), free, fit: (fit >= self.least).then_some(fit) })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: usize| bytes as f64 / 1e9;
        write!(
            f,
            "{:.2} GB: weights {:.2}, what trains with gradients and moments {:.2}, passes of {} rows {:.2}, ops {:.2}",
            gb(self.total()),
            gb(self.weights),
            gb(self.trained),
            self.rows,
            gb(self.pass()),
            gb(self.ops)
        )
    }
}

/// Bytes of a matrix of this type and shape on the device.
fn matrix_bytes(
    dtype: DType,
    storage: Storage,
    in_blocks: bool,
    shape: &[usize],
    narrow_size: usize,
) -> usize {
    let (len, whole) = (shape.iter().product::<usize>(), shape.last().is_some_and(|cols| cols % 32 == 0));
    let format = match dtype {
        _ if storage == Storage::Expanded || !whole => None,
        DType::Q4_0 => Some(BlockFormat::Q4_0),
        DType::Q4_1 => Some(BlockFormat::Q4_1),
        _ if storage == Storage::FourBits && in_blocks => Some(BlockFormat::Nf4),
        DType::Q8_0 => Some(BlockFormat::Q8_0),
        _ => None,
    };
    format.map_or(narrow_size * len, |format| len / 32 * format.bytes())
}

/// Bytes of the host's memory that are free for this process, where the system tells: what the machine has, and what
/// the process's control group leaves.
fn available() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let info = read("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024;
    let group = || {
        let most = read("/sys/fs/cgroup/memory.max")?.trim().parse::<usize>().ok()?;
        let status = read("/sys/fs/cgroup/memory.stat")?;
        let used = status.lines().find_map(|line| line.strip_prefix("anon "))?.parse::<usize>().ok()?;
        Some(most.saturating_sub(used))
    };
    Some(group().map_or(free, |group| free.min(group)))
}

#[cfg(test)]
mod tests {
    use kernels::{Cpu, bf16};

    use super::*;
    use crate::model::Model;
    use crate::{Lora, Projection};

    fn plan(sizes: PassSizes) -> MemoryPlan {
        let base = BaseModel::random("smollm2-135m").unwrap();
        let lora = Lora { rank: 16, alpha: 16.0, rslora: false, projections: Projection::ALL.to_vec() };
        let (backend, body) = (Cpu::<bf16>::new(), Body::Lora(lora));
        MemoryPlan::new(&backend, &base, Storage::AsStored, (&body, 0), sizes).unwrap()
    }

    const SIZES: PassSizes =
        PassSizes { prefix: 40, longest: 60, batch: 32, devices: 1, rows_per_pass: None, recompute: false };

    #[test]
    fn weights_are_planned_as_they_are_loaded() {
        for (spec, storage) in [
            ("smollm2-135m", Storage::AsStored),
            ("smollm2-135m", Storage::Expanded),
            ("smollm2-135m:bf16", Storage::FourBits),
        ] {
            let base = BaseModel::random(spec).unwrap();
            let plan =
                MemoryPlan::new(&Cpu::<bf16>::new(), &base, storage, (&Body::Weights, 0), SIZES).unwrap();
            let norms = 4 * base.config.hidden_size * (2 * base.config.layers + 1);
            let loaded = Model::load(Cpu::<bf16>::new(), &base, storage).unwrap().weight_bytes() + norms;
            let off = plan.weights.abs_diff(loaded);
            assert!(off < loaded / 100, "{spec} {storage:?}: {} planned, {loaded} loaded", plan.weights);
        }
    }

    #[test]
    fn what_fits_is_said_and_what_does_not_is_refused() {
        let whole = plan(SIZES);
        assert_eq!((whole.rows, whole.least), (1024, 100));
        assert!(plan(PassSizes { recompute: true, ..SIZES }).row * 3 < whole.row);
        assert_eq!(plan(PassSizes { rows_per_pass: Some(1), ..SIZES }).rows, 100);
        assert_eq!(plan(PassSizes { devices: 4, ..SIZES }).rows, 40 + 9 * 60);
        let fixed = whole.total() - whole.pass();
        let tight = MemoryPlan { free: Some(fixed + 300 * whole.row), ..whole };
        match tight.check() {
            Err(Error::Memory { fit: Some(fit), .. }) => {
                assert!((270..300).contains(&fit), "{fit}");
                MemoryPlan { rows: fit, ..tight }.check().unwrap();
            }
            other => panic!("{other:?}"),
        }
        let none = MemoryPlan { free: Some(fixed), ..whole }.check();
        assert!(matches!(none, Err(Error::Memory { fit: None, .. })), "{none:?}");
    }
}
