//! Why the GPU cannot be used.

/// Why the GPU cannot be used: one line that says what is missing and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library that is not there.
    #[error(
        "no {what}: the library `{library}` is not on the loader's path, below CUDA_HOME or in Python's packages; {remedy}"
    )]
    Library {
        /// What it is for.
        what: &'static str,
        /// Its name.
        library: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The driver is older than the libraries.
    #[error("the NVIDIA driver supports CUDA {}.{}, at least {}.0 is needed: update the driver", found / 1000, found % 1000 / 10, needed / 1000)]
    OldDriver {
        /// As `cuDriverGetVersion` says it.
        found: i32,
        /// The first version that will do.
        needed: i32,
    },
    /// There is no such device.
    #[error("there is no CUDA device {asked}; {found} found (CUDA_VISIBLE_DEVICES hides devices)")]
    NoDevice {
        /// Index from 0.
        asked: usize,
        /// How many there are.
        found: usize,
    },
    /// The device cannot compute so.
    #[error("{name} has compute capability {}.{}, bf16 needs 8.0 (Ampere) or later, f16 7.5 (Turing): use --precision f16 or --device cpu", capability.0, capability.1)]
    OldDevice {
        /// Its name.
        name: String,
        /// Major, minor.
        capability: (i32, i32),
    },
    /// The device's memory is taken.
    #[error("{name} has no {} MiB left, only {} MiB of {} MiB are free", wanted >> 20, free >> 20, total >> 20)]
    Memory {
        /// The device.
        name: String,
        /// Bytes asked for.
        wanted: usize,
        /// Bytes free.
        free: usize,
        /// Bytes of the device.
        total: usize,
    },
    /// The kernels do not compile.
    #[error("NVRTC could not compile `{program}` for {architecture}: {log}")]
    Compile {
        /// Which.
        program: String,
        /// For what.
        architecture: String,
        /// What the compiler said.
        log: String,
    },
    /// The driver refused something.
    #[error("the CUDA driver could not {doing}: {reason}")]
    Driver {
        /// What was asked of it.
        doing: &'static str,
        /// Its words.
        reason: String,
    },
}

impl CudaError {
    /// Whether NVIDIA's driver is not installed, as on every machine without such a GPU.
    pub fn is_no_driver(&self) -> bool {
        matches!(self, Self::Library { library: DRIVER, .. })
    }
}

/// The driver's library.
pub(super) const DRIVER: &str = "libcuda";

/// Says what the driver was doing when it failed.
pub(super) trait Doing<T> {
    /// Turns the driver's error into ours.
    fn doing(self, doing: &'static str) -> Result<T, CudaError>;
    /// For what only fails when an earlier kernel broke the device, or there is a bug.
    fn certain(self, doing: &'static str) -> T;
}

impl<T> Doing<T> for Result<T, cudarc::driver::DriverError> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| {
            let name = error
                .error_name()
                .map_or_else(|_| "unknown error".into(), |name| name.to_string_lossy().into_owned());
            let text = error
                .error_string()
                .map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned());
            CudaError::Driver { doing, reason: format!("{name} ({text})") }
        })
    }

    fn certain(self, doing: &'static str) -> T {
        self.doing(doing).unwrap_or_else(|error| panic!("{error}"))
    }
}
