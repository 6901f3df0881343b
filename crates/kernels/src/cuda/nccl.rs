//! Sums over several GPUs: NVIDIA's NCCL where it is there and each device takes part once, else the host.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{result, sys};
use libloading::Library;

use super::device::{Device, Lane, Values};
use super::{Cuda, library};
use crate::host_sum::{HostSum, sum_on_host};

/// `ncclFloat32` and `ncclSum` of `nccl.h`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;
/// A file name that both the system's package and Python's have.
const LIBRARY: &str = "libnccl.so.2";

/// How some devices add up their buffers.
#[derive(Debug)]
pub enum Group {
    /// From device to device.
    Nccl(Nccl),
    /// By way of the host, and why.
    Host(String),
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nccl(Nccl { version, .. }) => {
                write!(f, "by NCCL {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
            }
            Self::Host(why) => write!(f, "{HostSum}: {why}"),
        }
    }
}

impl Group {
    pub(super) fn join(devices: &[&Cuda]) -> Self {
        let devices: Vec<_> = devices.iter().map(|cuda| cuda.device.clone()).collect();
        Nccl::open(devices).map_or_else(Self::Host, Self::Nccl)
    }

    /// See [`crate::Backend::sum`].
    pub(super) fn sum(&self, parts: &mut [(&Cuda, &mut Values<f32>)]) {
        match self {
            Self::Nccl(nccl) => nccl.sum(parts),
            Self::Host(_) => sum_on_host(parts),
        }
    }
}

type Comm = *mut c_void;
type Code = c_int;

/// What is used of the library, as `nccl.h` declares it since 2.0.
#[derive(Debug)]
struct Functions {
    version: unsafe extern "C" fn(*mut c_int) -> Code,
    error: unsafe extern "C" fn(Code) -> *const c_char,
    init_all: unsafe extern "C" fn(*mut Comm, c_int, *const c_int) -> Code,
    destroy: unsafe extern "C" fn(Comm) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    all_reduce: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Comm, sys::CUstream) -> Code,
}

impl Functions {
    fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: the types are those of `nccl.h`, where device pointers are addresses of 64 bits.
        unsafe {
            Ok(Self {
                version: *library.get(b"ncclGetVersion\0")?,
                error: *library.get(b"ncclGetErrorString\0")?,
                init_all: *library.get(b"ncclCommInitAll\0")?,
                destroy: *library.get(b"ncclCommDestroy\0")?,
                group_start: *library.get(b"ncclGroupStart\0")?,
                group_end: *library.get(b"ncclGroupEnd\0")?,
                all_reduce: *library.get(b"ncclAllReduce\0")?,
            })
        }
    }

    /// The library's words for what went wrong.
    fn check(&self, code: Code) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a text of its own for every code.
        Err(unsafe { CStr::from_ptr((self.error)(code)) }.to_string_lossy().into_owned())
    }
}

/// A communicator of each of some devices, all in this process.
#[derive(Debug)]
pub struct Nccl {
    functions: Functions,
    version: c_int,
    comms: Vec<Comm>,
    /// In the order of `comms`, which need their contexts.
    devices: Vec<Arc<Device>>,
    /// Which the functions are in.
    _library: Library,
}

// SAFETY: a communicator may be used from any thread, by one at a time: `Trainer` sums with `&mut self`.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// # Errors
    /// Why it cannot be used, in words.
    fn open(devices: Vec<Arc<Device>>) -> Result<Self, String> {
        let ordinals: Vec<c_int> = devices.iter().map(|device| device.ordinal()).collect();
        if (1..ordinals.len()).any(|i| ordinals[..i].contains(&ordinals[i])) {
            return Err("a GPU takes part more than once".into());
        }
        let library = library::open(LIBRARY).ok_or_else(|| {
            format!("no {LIBRARY}; pip install nvidia-nccl-cu13, or install NCCL, to sum from GPU to GPU")
        })?;
        let functions = Functions::of(&library).map_err(|error| format!("{LIBRARY} is not NCCL: {error}"))?;
        let (mut version, mut comms) = (0, vec![null_mut(); devices.len()]);
        // SAFETY: the places are as many as the devices, which exist and are used through their primary contexts, as
        // the library uses them.
        unsafe {
            functions.check((functions.version)(&raw mut version))?;
            let count = ordinals.len() as c_int;
            functions
                .check((functions.init_all)(comms.as_mut_ptr(), count, ordinals.as_ptr()))
                .map_err(|error| format!("NCCL cannot join these GPUs: {error}"))?;
        }
        Ok(Self { functions, version, comms, devices, _library: library })
    }

    fn sum(&self, parts: &mut [(&Cuda, &mut Values<f32>)]) {
        let len = parts.first().map_or(0, |(_, buffer)| buffer.len);
        let same = |((cuda, _), device): (&(&Cuda, _), _)| Arc::ptr_eq(&cuda.device, device);
        assert!(
            parts.len() == self.devices.len() && parts.iter().zip(&self.devices).all(same),
            "the devices are those that were joined, in their order"
        );
        for (cuda, _) in &*parts {
            cuda.side.join();
        }
        let sum = || {
            // SAFETY: each buffer holds `len` values on the device of its communicator and stream, and is read and
            // written in place, which the library allows.
            unsafe {
                self.functions.check((self.functions.group_start)())?;
                for ((cuda, buffer), comm) in parts.iter().zip(&self.comms) {
                    let (at, stream) = (buffer.first(len), cuda.device.stream(Lane::Main));
                    self.functions
                        .check((self.functions.all_reduce)(at, at, len, FLOAT32, SUM, *comm, stream))?;
                }
                self.functions.check((self.functions.group_end)())
            }
        };
        sum().unwrap_or_else(|error| panic!("NCCL could not add up the gradients: {error}"));
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        for (device, comm) in self.devices.iter().zip(&self.comms) {
            device.bind();
            // A failure here has been seen before by whoever summed.
            // SAFETY: the stream is the device's; the communicator was made by `open` and is destroyed once, when its
            // work is over.
            unsafe {
                let _ = result::stream::synchronize(device.stream(Lane::Main));
                let _ = (self.functions.destroy)(*comm);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_has_what_is_used_of_it() {
        let Some(library) = library::open(LIBRARY) else {
            eprintln!("skipped: no {LIBRARY}");
            return;
        };
        let functions = Functions::of(&library).unwrap();
        let mut version = 0;
        // SAFETY: writes one integer.
        functions.check(unsafe { (functions.version)(&raw mut version) }).unwrap();
        assert!((20_000..40_000).contains(&version), "{version}");
        assert!(functions.check(4).unwrap_err().contains("argument"), "4 is ncclInvalidArgument");
    }

    #[test]
    fn without_it_the_reason_is_said() {
        let host = Group::Host("no library".into());
        assert_eq!(host.to_string(), "in the host's memory: no library");
    }
}
