//! Which device runs the model, and in which arithmetic.

use clap::ValueEnum;
use kernels::Encoding;

/// Flags of every verb that runs a model.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where the model runs.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: Device,
    /// Arithmetic of activations and weights: int8 (for routing, where it is the default), bf16 (the default for
    /// training), f32 (slow).
    #[arg(long, value_enum)]
    pub(crate) precision: Option<Precision>,
}

impl DeviceArgs {
    /// How a router keeps its weights.
    pub(crate) fn encoding(&self) -> Encoding {
        match self.precision {
            None | Some(Precision::Int8) => Encoding::Int8,
            Some(Precision::Bf16 | Precision::F32) => Encoding::Compute,
        }
    }

    /// Refuses what only a router can compute in.
    pub(crate) fn check_training(&self) -> anyhow::Result<()> {
        let int8 = self.precision == Some(Precision::Int8);
        anyhow::ensure!(!int8, "training cannot run in int8; use --precision bf16 or f32");
        Ok(())
    }
}

/// A place to run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// The best that is there.
    Auto,
    /// The processor.
    Cpu,
}

/// Arithmetic of activations and weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// Products of 8-bit integers, sums in 32; all else in 16 bits.
    Int8,
    /// 16 bits, sums in 32.
    Bf16,
    /// 32 bits.
    F32,
}

/// Calls `$function::<B>(backend, …)` with the backend that the flags ask for.
macro_rules! on_device {
    ($args:expr, $function:path, $($argument:expr),* $(,)?) => {
        match $args.precision {
            Some($crate::device::Precision::F32) => $function(kernels::Cpu::<f32>::new(), $($argument),*),
            _ => $function(kernels::Cpu::<kernels::bf16>::new(), $($argument),*),
        }
    };
}
pub(crate) use on_device;
