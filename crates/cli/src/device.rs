//! Which device runs the model, and in which arithmetic.

use std::str::FromStr;
use std::sync::Once;

use clap::ValueEnum;
use hub::Hub;
use kernels::{Cpu, Cuda, CudaError, Encoding, bf16};
use router::Method;

use crate::terminal::say;

/// Flags of every verb that runs a model.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where the model runs: cpu, cuda (an NVIDIA GPU; cuda:1 for the second), or auto, the GPU where there is one.
    /// Training can share each step among several GPUs: cuda:0,1 or cuda:all.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda[:N]")]
    pub(crate) device: Device,
    /// Arithmetic of activations and weights: int8 (for routing on a processor and for what a head on an encoder reads,
    /// where it is the default), bf16 (the default otherwise), f16 (for GPUs without bf16), f32 (slow, processor alone).
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

    /// Refuses to train weights in what only routing and a head's features are computed in.
    pub(crate) fn check_training(&self, method: Method) -> anyhow::Result<()> {
        let int8 = self.precision == Some(Precision::Int8) && method != Method::Head;
        anyhow::ensure!(!int8, "weights cannot train in int8; use --precision bf16 or f32, or --method head");
        Ok(())
    }

    /// `--precision` as it was given.
    pub(crate) fn named_precision(&self) -> Option<String> {
        let value = self.precision.as_ref().and_then(ValueEnum::to_possible_value);
        value.map(|value| value.get_name().to_owned())
    }

    /// The same in the arithmetic of this name.
    pub(crate) fn in_precision(&self, name: Option<&str>) -> anyhow::Result<Self> {
        let read = |name| Precision::from_str(name, false).map_err(anyhow::Error::msg);
        Ok(Self { precision: name.map(read).transpose()?, ..self.clone() })
    }

    /// The same with the first device alone.
    pub(crate) fn first(&self) -> Self {
        let device = match &self.device {
            Device::Cuda(gpus) => Device::Cuda(gpus[..1].to_vec()),
            Device::AllCuda => Device::Cuda(vec![0]),
            other => other.clone(),
        };
        Self { device, ..self.clone() }
    }

    /// Opens the devices; `auto` takes the processor where no GPU can be used, and says why where there is one.
    pub(crate) fn open(&self) -> anyhow::Result<Opened> {
        static SAID: Once = Once::new();
        let processor = match self.precision {
            Some(Precision::F32) => Opened::F32(Cpu::new()),
            _ => Opened::Bf16(Cpu::new()),
        };
        let on_gpu = !matches!(self.precision, Some(Precision::F32 | Precision::Int8));
        let f16 = self.precision == Some(Precision::F16);
        match &self.device {
            gpus @ (Device::Cuda(_) | Device::AllCuda) => {
                anyhow::ensure!(
                    on_gpu,
                    "a GPU computes in bf16 or f16; leave --precision out, or use --device cpu"
                );
                let indices = match gpus {
                    Device::Cuda(indices) => indices.clone(),
                    _ => (0..Cuda::count()?.max(1)).collect(),
                };
                let opened = indices.into_iter().map(|index| open_cuda(index, f16));
                Ok(Opened::Cuda(opened.collect::<Result<_, _>>()?))
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
                |cuda| Opened::Cuda(vec![cuda]),
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// The best that is there.
    Auto,
    /// The processor.
    Cpu,
    /// The GPUs of these indices, at least one, each once.
    Cuda(Vec<usize>),
    /// Every GPU.
    AllCuda,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(vec![0])),
            "cuda:all" => return Ok(Self::AllCuda),
            _ => {}
        }
        let indices = |list: &str| list.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>().ok();
        let indices = text
            .strip_prefix("cuda:")
            .and_then(indices)
            .ok_or("expected auto, cpu, cuda, cuda:N, cuda:N,M,… or cuda:all")?;
        match (1..indices.len()).find(|&i| indices[..i].contains(&indices[i])) {
            Some(twice) => Err(format!("GPU {} is named twice", indices[twice])),
            None => Ok(Self::Cuda(indices)),
        }
    }
}

/// An open device.
pub(crate) enum Opened {
    F32(Cpu<f32>),
    Bf16(Cpu<bf16>),
    Cuda(Vec<Cuda>),
}

/// The only one of these devices.
pub(crate) fn alone(mut devices: Vec<Cuda>) -> anyhow::Result<Cuda> {
    anyhow::ensure!(
        devices.len() == 1,
        "{} GPUs are asked for, but only training shares its work among several: use one, as in --device cuda:0",
        devices.len()
    );
    Ok(devices.swap_remove(0))
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
            Ok($crate::device::Opened::Cuda(backends)) => match $crate::device::alone(backends) {
                Ok(backend) => $function(backend, $($argument),*),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        }
    };
}
pub(crate) use on_device;

/// [`on_device`] for what takes one backend or several, of devices that were opened: `$function::<B>(backends, …)`.
macro_rules! on_devices {
    ($opened:expr, $function:path, $($argument:expr),* $(,)?) => {
        match $opened {
            Ok($crate::device::Opened::F32(backend)) => $function(vec![backend], $($argument),*),
            Ok($crate::device::Opened::Bf16(backend)) => $function(vec![backend], $($argument),*),
            Ok($crate::device::Opened::Cuda(backends)) => $function(backends, $($argument),*),
            Err(error) => Err(error),
        }
    };
}
pub(crate) use on_devices;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        for (text, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(vec![0])),
            ("cuda:3", Device::Cuda(vec![3])),
            ("cuda:2,0", Device::Cuda(vec![2, 0])),
            ("cuda:all", Device::AllCuda),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0,", "cuda:0,all"] {
            assert!(text.parse::<Device>().unwrap_err().contains("cuda:N"), "{text}");
        }
        assert!("cuda:1,0,1".parse::<Device>().unwrap_err().contains("GPU 1 is named twice"));
    }
}
