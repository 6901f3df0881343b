//! Compiles the kernels when they are first needed, and keeps what came out of it on disk.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

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

    /// Lets a kernel use so many bytes of dynamic shared memory.
    ///
    /// # Errors
    /// When the device has not as much.
    pub(super) fn allow_shared(&self, name: &str, bytes: usize) -> Result<(), CudaError> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
        // SAFETY: the function is of a loaded module.
        unsafe { result::function::set_function_attribute(self.get(name).0, MOST, bytes as i32) }
            .doing("give a kernel shared memory")
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
