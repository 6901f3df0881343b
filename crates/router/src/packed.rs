//! Merged weights as they lie in memory, kept for the next process that opens the same run.
//!
//! Of each run there is a file `KEY.packed`, mapped when it is used, and `KEY.sha256` with its hash. The key is the hash
//! of all that the bytes depend on. A file that is cut off or changed is written anew, and nothing is lost
//! when any of them is deleted.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use engine::Model;
use formats::{BaseModel, store};
use kernels::{Backend, Encoding};

use crate::Result;
use crate::manifest::Manifest;

/// Most bytes of all files together; the oldest go first.
const MOST_BYTES: u64 = 4 << 30;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Keeps packed weights in `folder` from now on; the first call counts.
pub fn keep_packed(folder: PathBuf) {
    FOLDER.get_or_init(|| folder);
}

/// The run's model: the one that is kept, or else what `make` makes.
pub(crate) fn kept_or<B: Backend>(
    backend: B,
    base: &BaseModel,
    manifest: &Manifest,
    encoding: Encoding,
    make: impl FnOnce(B) -> Result<Model<B>>,
) -> Result<Model<B>> {
    match (FOLDER.get(), key(&backend, manifest, encoding)) {
        (Some(folder), Some(key)) => kept_in(folder, &key, MOST_BYTES, backend, base, make),
        _ => make(backend),
    }
}

/// What the bytes depend on; `None` where nothing is kept. In the compute type a matrix is most often read as it is.
fn key<B: Backend>(backend: &B, manifest: &Manifest, encoding: Encoding) -> Option<String> {
    let layout = backend.image_layout().filter(|_| encoding == Encoding::Int8)?;
    let files = manifest.files.iter().map(|(name, hash)| format!("{name} {hash}\n"));
    let (version, base, files) =
        (env!("CARGO_PKG_VERSION"), &manifest.base.sha256, files.collect::<String>());
    Some(store::sha256_hex(format!("{version}\n{layout}\n{encoding:?}\n{base}\n{files}").as_bytes()))
}

fn kept_in<B: Backend>(
    folder: &Path,
    key: &str,
    most: u64,
    backend: B,
    base: &BaseModel,
    make: impl FnOnce(B) -> Result<Model<B>>,
) -> Result<Model<B>> {
    let (packed, hash) = (folder.join(format!("{key}.packed")), folder.join(format!("{key}.sha256")));
    if let Ok(expected) = fs::read_to_string(&hash)
        && let Ok(bytes) = formats::map(&packed)
        && store::sha256_file(&packed).is_ok_and(|found| found == expected.trim_end())
    {
        return Ok(Model::load_image(backend, base, Arc::new(bytes))?);
    }
    let model = make(backend)?;
    // What cannot be kept costs time at the next start, nothing else.
    let size = model.weight_bytes() as u64;
    if size <= most && fs::create_dir_all(folder).is_ok() {
        make_room(folder, most - size);
        let write = |path: &Path| {
            let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
            model.write_image(&mut out)?;
            out.flush()
        };
        let kept = store::write_atomically_with(&packed, write).and_then(|()| store::sha256_file(&packed));
        let _ = kept.and_then(|kept| store::write_atomically(&hash, format!("{kept}\n").as_bytes()));
    }
    Ok(model)
}

/// Removes the oldest files until the rest have at most `most` bytes.
fn make_room(folder: &Path, most: u64) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let packed =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "packed"));
    let mut files: Vec<_> = packed
        .filter_map(|path| {
            let file = fs::metadata(&path).ok()?;
            Some((file.modified().ok()?, file.len(), path))
        })
        .collect();
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
    for (_, len, path) in files {
        if bytes <= most {
            break;
        }
        // Whoever has it mapped keeps its bytes.
        let _ = fs::remove_file(&path);
        let _ = fs::remove_file(path.with_extension("sha256"));
        bytes -= len;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for (age, name) in [(1, "new"), (3, "old"), (2, "middle")] {
            let file = File::create(place(&format!("{name}.packed"))).unwrap();
            file.set_len(100).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(60 * age)).unwrap();
            fs::write(place(&format!("{name}.sha256")), "").unwrap();
        }
        let left = |most| {
            make_room(folder.path(), most);
            ["new", "middle", "old"].map(|name| {
                let [packed, hash] = ["packed", "sha256"].map(|end| place(&format!("{name}.{end}")).exists());
                assert_eq!(packed, hash);
                packed
            })
        };
        assert_eq!(left(300), [true, true, true]);
        assert_eq!(left(299), [true, true, false]);
        assert_eq!(left(100), [true, false, false]);
        assert_eq!(left(0), [false, false, false]);
    }
}
