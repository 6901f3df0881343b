//! Finds NVIDIA's libraries, which the loader may not know.

use std::path::{Path, PathBuf};

use super::CudaError;
use super::error::DRIVER;

/// Checks that the driver, NVRTC and cuBLASLt can be loaded.
///
/// # Errors
/// [`CudaError::Library`] for the first that is not there.
pub(super) fn load() -> Result<(), CudaError> {
    // SAFETY: loading these libraries runs their initialisers, which do nothing that concerns this process' memory.
    let driver = unsafe { cudarc::driver::sys::is_culib_present() };
    if !driver {
        let remedy = "install NVIDIA's driver, or use --device cpu";
        return Err(CudaError::Library { what: "NVIDIA driver", library: DRIVER, remedy });
    }
    let toolkit = "install the CUDA 13 toolkit, or pip install nvidia-cuda-nvrtc nvidia-cublas";
    // NVRTC opens its second half by name when it first compiles.
    let nvrtc = ["libnvrtc-builtins.so", "libnvrtc.so"];
    if !found(cudarc::nvrtc::sys::is_culib_present, &nvrtc) {
        return Err(CudaError::Library { what: "CUDA compiler", library: "libnvrtc", remedy: toolkit });
    }
    if !found(cudarc::cublaslt::sys::is_culib_present, &["libcublasLt.so"]) {
        return Err(CudaError::Library { what: "cuBLASLt", library: "libcublasLt", remedy: toolkit });
    }
    Ok(())
}

/// The library of this file name, from the loader's path or from where [`load`] looks as well.
pub(super) fn open(file: &str) -> Option<libloading::Library> {
    let places = std::iter::once(file.into()).chain(folders().into_iter().map(|folder| folder.join(file)));
    // SAFETY: as in `load`.
    places.into_iter().find_map(|path: PathBuf| unsafe { libloading::Library::new(path) }.ok())
}

/// Whether a library can be loaded, at the latest after its files were looked for.
fn found(is_present: unsafe fn() -> bool, files: &[&str]) -> bool {
    // SAFETY: as in `load`.
    if unsafe { is_present() } {
        return true;
    }
    for folder in folders() {
        for file in files {
            preload(&folder, file);
        }
    }
    // SAFETY: as in `load`.
    unsafe { is_present() }
}

/// Loads the library, so that it is found by its name from now on.
fn preload(folder: &Path, file: &str) {
    let Ok(entries) = folder.read_dir() else { return };
    let names = entries.flatten().map(|entry| entry.path());
    let found =
        names.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(file)));
    for path in found {
        // SAFETY: as in `load`.
        if let Ok(library) = unsafe { libloading::Library::new(path) } {
            std::mem::forget(library);
        }
    }
}

/// Where toolkits and Python's packages put libraries.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let toolkits = [variable("CUDA_HOME"), variable("CUDA_PATH"), Some("/usr/local/cuda".into())];
    let mut folders: Vec<PathBuf> =
        toolkits.into_iter().flatten().flat_map(|root| [root.join("lib64"), root.join("lib")]).collect();
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&on_path).filter(|bin| bin.join("python3").exists());
    let roots = [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX")].into_iter().flatten();
    for root in roots.chain(pythons.filter_map(|bin| bin.parent().map(Path::to_owned))) {
        let versions = below(&root.join("lib")).into_iter().filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        });
        let packages =
            versions.flat_map(|python| ["site-packages", "dist-packages"].map(|name| python.join(name)));
        folders.extend(
            packages.flat_map(|packages| below(&packages.join("nvidia"))).map(|part| part.join("lib")),
        );
    }
    folders
}

fn below(folder: &Path) -> Vec<PathBuf> {
    folder
        .read_dir()
        .map_or_else(|_| Vec::new(), |entries| entries.flatten().map(|entry| entry.path()).collect())
}
