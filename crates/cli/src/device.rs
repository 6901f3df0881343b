//! Which device runs the model, and in which arithmetic.

use clap::ValueEnum;

/// Flags of every verb that runs a model.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where the model runs.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: Device,
    /// Arithmetic of activations and weights: bf16 is fast, f32 is exact.
    #[arg(long, value_enum, default_value = "bf16")]
    pub(crate) precision: Precision,
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
    /// 16 bits, sums in 32.
    Bf16,
    /// 32 bits.
    F32,
}

/// Calls `$function::<B>(backend, …)` with the backend that the flags ask for.
macro_rules! on_device {
    ($args:expr, $function:path, $($argument:expr),* $(,)?) => {
        match $args.precision {
            $crate::device::Precision::Bf16 => $function(kernels::Cpu::<kernels::bf16>::new(), $($argument),*),
            $crate::device::Precision::F32 => $function(kernels::Cpu::<f32>::new(), $($argument),*),
        }
    };
}
pub(crate) use on_device;
