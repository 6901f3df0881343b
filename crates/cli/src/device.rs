//! Which device runs the model, and in which arithmetic.

use std::str::FromStr;
use std::sync::Once;

use clap::ValueEnum;
use hub::Hub;
use kernels::{Cpu, Cuda, CudaError, Encoding, bf16};

use crate::terminal::say;

/// Flags of every verb that runs a model.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where the model runs: cpu, cuda (an NVIDIA GPU; cuda:1 for the second), or auto, the GPU where there is one.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    pub(crate) device: Device,
    /// Arithmetic of activations and weights: int8 (for routing on a processor, where it is the default), bf16 (the
    /// default otherwise), f16 (for GPUs without bf16), f32 (slow, processor alone).
    #[arg(long, value_enum)]
    pub(crate) precision: Option<Precision>,
}

impl DeviceArgs {
    /// How a router keeps its weights; a GPU always keeps them in 16 bits.
    pub(crate) fn encoding(&self) -> Encoding {
        match self.precision {
            None | Some(Precision::Int8) => Encoding::Int8,
            Some(Precision::Bf16 | Precision::F16 | Precision::F32) => Encoding::Compute,
        }
    }

    /// Refuses what only a router can compute in.
    pub(crate) fn check_training(&self) -> anyhow::Result<()> {
        let int8 = self.precision == Some(Precision::Int8);
        anyhow::ensure!(!int8, "training cannot run in int8; use --precision bf16 or f32");
        Ok(())
    }

    /// Opens the device; `auto` takes the processor where no GPU can be used, and says why where there is one.
    pub(crate) fn open(&self) -> anyhow::Result<Opened> {
        static SAID: Once = Once::new();
        let processor = match self.precision {
            Some(Precision::F32) => Opened::F32(Cpu::new()),
            _ => Opened::Bf16(Cpu::new()),
        };
        let on_gpu = !matches!(self.precision, Some(Precision::F32 | Precision::Int8));
        let f16 = self.precision == Some(Precision::F16);
        match self.device {
            Device::Cuda(index) => {
                anyhow::ensure!(
                    on_gpu,
                    "a GPU computes in bf16 or f16; leave --precision out, or use --device cpu"
                );
                Ok(Opened::Cuda(Box::new(open_cuda(index, f16)?)))
            }
            _ if f16 => anyhow::bail!("f16 is for GPUs: use --device cuda, or another --precision"),
            Device::Auto if on_gpu => Ok(open_cuda(0, false).map_or_else(
                |error| {
                    // A machine without NVIDIA's driver is like most machines, and nothing to be told about.
                    if !error.is_no_driver() {
                        SAID.call_once(|| say!("running on the processor: {error}"));
                    }
                    processor
                },
                |cuda| Opened::Cuda(Box::new(cuda)),
            )),
            Device::Auto | Device::Cpu => Ok(processor),
        }
    }
}

fn open_cuda(index: usize, f16: bool) -> Result<Cuda, CudaError> {
    let open = if f16 { Cuda::open_f16 } else { Cuda::open };
    open(index, Some(Hub::from_env().home.join("kernels")))
}

/// A place to run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// The best that is there.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this index.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(index))) => Ok(Self::Cuda(index)),
            _ => Err("expected auto, cpu, cuda or cuda:N".into()),
        }
    }
}

/// An open device.
pub(crate) enum Opened {
    F32(Cpu<f32>),
    Bf16(Cpu<bf16>),
    Cuda(Box<Cuda>),
}

/// Arithmetic of activations and weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// Products of 8-bit integers, sums in 32; all else in 16 bits.
    Int8,
    /// 16 bits, sums in 32.
    Bf16,
    /// 16 bits with more of them for precision and fewer for range, sums in 32, the loss scaled.
    F16,
    /// 32 bits.
    F32,
}

/// Calls `$function::<B>(backend, …)` with the backend that the flags ask for.
macro_rules! on_device {
    ($args:expr, $function:path, $($argument:expr),* $(,)?) => {
        match $args.open() {
            Ok($crate::device::Opened::F32(backend)) => $function(backend, $($argument),*),
            Ok($crate::device::Opened::Bf16(backend)) => $function(backend, $($argument),*),
            Ok($crate::device::Opened::Cuda(backend)) => $function(*backend, $($argument),*),
            Err(error) => Err(error),
        }
    };
}
pub(crate) use on_device;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        for (text, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(text.parse::<Device>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }
}
