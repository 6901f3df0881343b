//! Compiles the kernels when they are first needed, and keeps what came out of it on disk.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use cudarc::driver::{result, sys};
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use sha2::{Digest, Sha256};

use super::CudaError;
use super::device::{Device, Function};
use super::error::Doing;

const COMMON: &str = include_str!("source/common.cu");

/// A loaded module.
#[derive(Debug)]
pub(super) struct Program {
    device: Arc<Device>,
    module: sys::CUmodule,
    functions: HashMap<&'static str, Function>,
}

// SAFETY: a module may be used from any thread that binds its context.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

impl Program {
    /// Compiles `source` after what all programs share, or takes what an earlier process left in `cache`, and looks
    /// up its `kernels`.
    ///
    /// # Errors
    /// [`CudaError::Compile`]; a kernel that is not there.
    pub(super) fn load(
        device: &Arc<Device>,
        cache: Option<&Path>,
        name: &str,
        source: &str,
        defines: &[String],
        kernels: &[&'static str],
    ) -> Result<Self, CudaError> {
        let source = format!("{COMMON}\n{source}");
        let architecture = device.architecture();
        let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into()];
        options.extend_from_slice(defines);
        if device.f16 {
            options.push("-DF16".into());
        }
        let file = cache.map(|folder| folder.join(format!("{}.cubin", key(&source, &options))));
        device.bind();
        let kept = file.as_deref().and_then(|file| std::fs::read(file).ok());
        // A file that does not load, of another driver say, is made anew.
        let loaded = kept.and_then(|image| load(&image).ok());
        let module = if let Some(module) = loaded {
            module
        } else {
            let image = compile(&source, &options).map_err(|log| CudaError::Compile {
                program: name.into(),
                architecture,
                log,
            })?;
            if let Some(file) = &file {
                keep(file, &image);
            }
            load(&image).doing("load a program")?
        };
        let mut program = Self { device: device.clone(), module, functions: HashMap::new() };
        for &kernel in kernels {
            let c_name = CString::new(kernel).unwrap_or_default();
            // SAFETY: the module is loaded.
            let function = unsafe { result::module::get_function(module, c_name) }.doing("find a kernel")?;
            program.functions.insert(kernel, Function(function));
        }
        Ok(program)
    }

    /// All kernels.
    pub(super) fn functions(&self) -> impl Iterator<Item = (&'static str, Function)> + '_ {
        self.functions.iter().map(|(&name, &function)| (name, function))
    }

    /// One of the kernels.
    pub(super) fn get(&self, name: &str) -> Function {
        self.functions[name]
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: nothing runs the program's kernels any more: graphs are dropped with the recordings, and the
        // driver waits for what was started.
        unsafe {
            self.device.bind();
            let _ = result::module::unload(self.module);
        }
    }
}

/// A program on its way, made by a thread of its own.
#[derive(Debug)]
pub(super) struct Coming {
    thread: Mutex<Option<JoinHandle<Result<Program, CudaError>>>>,
    program: OnceLock<Program>,
}

impl Coming {
    pub(super) fn begin(load: impl FnOnce() -> Result<Program, CudaError> + Send + 'static) -> Self {
        Self { thread: Mutex::new(Some(thread::spawn(load))), program: OnceLock::new() }
    }

    /// The program, when it is there.
    ///
    /// # Panics
    /// When it could not be made.
    pub(super) fn get(&self) -> &Program {
        self.program.get_or_init(|| {
            let made = self.join().unwrap_or_else(|| unreachable!("a program is awaited once"));
            made.unwrap_or_else(|error| panic!("{error}"))
        })
    }

    fn join(&self) -> Option<Result<Program, CudaError>> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Coming {
    /// A process must not end while the compiler is at work.
    fn drop(&mut self) {
        let _ = self.join();
    }
}

fn load(image: &[u8]) -> Result<sys::CUmodule, cudarc::driver::DriverError> {
    // SAFETY: the driver reads the image's own length and checks its header.
    unsafe { result::module::load_data(image.as_ptr().cast()) }
}

/// Source, options and compiler decide what comes out.
fn key(source: &str, options: &[String]) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    let mut hash = Sha256::new();
    for part in [source, &options.join(" "), &format!("{major}.{minor}")] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Compiles to the device's own code, or says what the compiler said.
fn compile(source: &str, options: &[String]) -> Result<Vec<u8>, String> {
    let source = CString::new(source).map_err(|error| error.to_string())?;
    let program = nvrtc::create_program(&source, None).map_err(|error| error.to_string())?;
    // SAFETY: the program was just made, and is destroyed at the end; sizes are asked before bytes are written.
    unsafe {
        let compiled = nvrtc::compile_program(program, options).and_then(|()| {
            let mut size = 0;
            nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut size).result()?;
            let mut image = vec![0u8; size];
            nvrtc_sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result()?;
            Ok(image)
        });
        let compiled = compiled.map_err(|error| {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log =
                log.iter().map(|c: &c_char| c.to_ne_bytes()[0]).take_while(|&c| c != 0).collect::<Vec<u8>>();
            format!("{error}\n{}", String::from_utf8_lossy(&log))
        });
        let _ = nvrtc::destroy_program(program);
        compiled
    }
}

/// Keeps an image for later processes; without a disk to write on, each compiles for itself.
fn keep(file: &Path, image: &[u8]) {
    let write = || -> std::io::Result<()> {
        let folder = file.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(image)?;
        temporary.persist(file)?;
        Ok(())
    };
    let _ = write();
}
