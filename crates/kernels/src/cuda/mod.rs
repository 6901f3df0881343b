//! An NVIDIA GPU as a [`Backend`](crate::Backend): activations in bf16, on older ones in f16, sums in f32.
//!
//! Nothing of NVIDIA's is needed to build; the driver, NVRTC and cuBLASLt are loaded when a device is opened. Products
//! are cuBLASLt's, all other ops are the kernels in `source`, compiled at first use and kept on disk. The work of a
//! device goes to one stream, in order: an op may overwrite what the one before it reads. What the chain need not wait
//! for runs beside it (see `side`).
//!
//! Sizes of a pass are rounded up to buckets (see `pass::bucket`). The rows in excess are idle: they compute
//! harmless values, carry no loss and get no gradient.

mod attention;
mod backend;
mod device;
mod error;
mod gates;
mod library;
mod linear;
mod loss;
mod nccl;
mod pass;
mod plan;
mod product;
mod program;
mod record;
mod scratch;
mod side;
mod weights;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use self::device::{Arg, Device, Function, Lane, Memory};
use self::product::Products;
use self::program::Program;
use self::scratch::Scratch;
use self::side::Side;

pub use self::device::Values;
pub use self::error::CudaError;
pub use self::linear::{Adapter, Matrix};
pub use self::nccl::{Group, Nccl};
pub use self::pass::Pass;
pub use self::record::Recording;

/// The programs that every model needs, with their kernels.
const PROGRAMS: [(&str, &str, &[&str]); 4] = [
    (
        "rows",
        include_str!("source/rows.cu"),
        &[
            "embed",
            "gather_wide",
            "gather_narrow",
            "norm_forward",
            "norm_again",
            "norm_backward",
            "rotary",
            "store_kv",
            "round_wide",
            "widen",
            "gated",
            "gated_backward",
            "activation",
            "activation_backward",
            "add_bias_narrow",
            "add_bias_wide",
        ],
    ),
    (
        "parameters",
        include_str!("source/parameters.cu"),
        &[
            "adamw",
            "square_sum",
            "refresh",
            "repack",
            "sum_columns",
            "sum_norm_columns",
            "add_columns",
            "add_rows",
        ],
    ),
    ("loss", include_str!("source/loss.cu"), &["cross_entropy", "log_sum_exp", "pick"]),
    ("blocks", include_str!("source/blocks.cu"), &["expand"]),
];
/// The program of devices that compute in bf16.
const GATES: (&str, &str, &[&str]) = (
    "gates",
    include_str!("source/gates.cu"),
    &["gated_with_lora", "gated_with_lora_backward", "sum_lora_parts", "sum_mid_parts"],
);

/// An NVIDIA GPU.
#[derive(Debug)]
pub struct Cuda {
    functions: HashMap<&'static str, Function>,
    /// By head size and way.
    attention: Mutex<HashMap<(usize, attention::Way), Arc<attention::Programs>>>,
    #[expect(dead_code, reason = "the functions are theirs")]
    programs: Vec<Program>,
    products: Products,
    scratch: Scratch,
    side: Side,
    /// What the last call of `refresh` laid out, on the host and on the device.
    layers: Mutex<Option<(Vec<u64>, Memory)>>,
    cache: Option<PathBuf>,
    device: Arc<Device>,
}

impl Cuda {
    /// Opens device `index` and compiles the kernels; `cache` is a folder that keeps them for later processes.
    ///
    /// # Errors
    /// When driver, libraries or device are missing, too old or have no memory left.
    pub fn open(index: usize, cache: Option<PathBuf>) -> Result<Self, CudaError> {
        Self::open_with(index, cache, false)
    }

    /// [`Cuda::open`] to compute in f16, as older devices must.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    pub fn open_f16(index: usize, cache: Option<PathBuf>) -> Result<Self, CudaError> {
        Self::open_with(index, cache, true)
    }

    /// Number of devices, each of which [`Cuda::open`] may open.
    ///
    /// # Errors
    /// When driver or libraries are missing.
    pub fn count() -> Result<usize, CudaError> {
        library::load()?;
        Device::count()
    }

    fn open_with(index: usize, cache: Option<PathBuf>, f16: bool) -> Result<Self, CudaError> {
        library::load()?;
        let device = Device::open(index, f16)?;
        let compiled: Vec<Result<Program, CudaError>> = std::thread::scope(|scope| {
            let load = |(name, source, kernels): (&'static str, &'static str, &'static [&'static str])| {
                let (device, cache) = (&device, cache.as_deref());
                scope.spawn(move || Program::load(device, cache, name, source, &[], kernels))
            };
            let programs = PROGRAMS.into_iter().chain((!f16).then_some(GATES));
            let threads: Vec<_> = programs.map(load).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let programs = compiled.into_iter().collect::<Result<Vec<_>, _>>()?;
        let functions: HashMap<_, _> = programs.iter().flat_map(Program::functions).collect();
        for (kernel, bytes) in gates::SHARED {
            functions.get(kernel).map_or(Ok(()), |function: &Function| function.allow_shared(bytes))?;
        }
        let products = Products::new(&device)?;
        let (scratch, side, layers) = (Scratch::new(&device), Side::new(&device), Mutex::default());
        Ok(Self {
            functions,
            attention: Mutex::default(),
            programs,
            products,
            scratch,
            side,
            layers,
            cache,
            device,
        })
    }

    /// Waits until all work is done: for clocks.
    pub fn wait(&self) {
        self.side.join();
        self.device.wait();
    }

    /// Starts a kernel of the programs without shared memory, after everything before it.
    ///
    /// # Safety
    /// As [`Device::launch`].
    unsafe fn launch<const N: usize>(&self, kernel: &str, grid: usize, block: usize, args: [Arg; N]) {
        self.side.join();
        // SAFETY: by contract.
        unsafe { self.device.launch(Lane::Main, self.functions[kernel], grid, block, 0, args) }
    }

    /// The same beside what runs on the side stream and does not touch what the kernel `reads` and `writes`.
    ///
    /// # Safety
    /// As [`Device::launch`].
    unsafe fn launch_beside<const N: usize>(
        &self,
        [reads, writes]: [&[u64]; 2],
        kernel: &str,
        grid: usize,
        block: usize,
        args: [Arg; N],
    ) {
        self.side.settle(reads, writes);
        // SAFETY: by contract.
        unsafe { self.device.launch(Lane::Main, self.functions[kernel], grid, block, 0, args) }
    }
}

/// The arguments of a kernel.
macro_rules! args {
    ($($value:expr),* $(,)?) => { [$($crate::cuda::device::Arg::from($value)),*] };
}
use args;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_opening_says_what_is_missing() {
        match Cuda::open(1000, None) {
            Ok(_) => panic!("nobody has a thousand GPUs"),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains('\n') && text.len() > 20, "{text}");
            }
        }
    }
}
