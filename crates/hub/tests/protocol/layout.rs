use std::{fs, sync::Barrier, thread};

use hub::Error;

use crate::{
    bench::{Bench, SMALL, Told, bytes, names},
    server::{COMMIT, ID, Side},
};

#[test]
fn a_model_lands_in_the_shared_layout_with_only_what_is_needed() {
    let weights = bytes(100_000);
    let bench = Bench::with_model(&weights);
    let mut told = Told::default();
    assert_eq!(bench.hub.find(ID).unwrap(), None);
    let pulled = bench.hub.pull(ID, &mut told).unwrap();

    assert_eq!((&pulled.path, pulled.name.as_str(), pulled.from_cache), (&bench.snapshot(), ID, false));
    let mut expected: Vec<_> = SMALL.into_iter().chain(["model.safetensors"]).map(String::from).collect();
    expected.sort();
    assert_eq!(names(&pulled.path), expected);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
    assert_eq!(fs::read_to_string(bench.repository().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(names(&bench.repository().join("blobs")).len(), expected.len());
    for file in &expected {
        let etag = bench.server.etag(file);
        assert!(bench.hub.cache.join(".locks/models--org--repo").join(format!("{etag}.lock")).exists());
        #[cfg(unix)]
        assert_eq!(
            fs::read_link(pulled.path.join(file)).unwrap().to_str().unwrap(),
            format!("../../blobs/{etag}")
        );
    }
    assert!(told.0.iter().all(|(_, total, count, finished)| *finished && *total == Some(*count)));
    assert_eq!(told.0.last().unwrap().0, "model.safetensors", "weights come last");
}

#[test]
fn what_is_cached_asks_nobody_not_even_offline() {
    let mut bench = Bench::with_model(b"weights");
    bench.pull(ID).unwrap();
    let asked = bench.server.state().log.len();
    for offline in [false, true] {
        bench.hub.offline = offline;
        let again = bench.pull(ID).unwrap();
        assert!(again.from_cache && again.path == bench.snapshot());
        assert_eq!(bench.hub.find(ID).unwrap(), Some(bench.snapshot()));
    }
    assert_eq!(bench.server.state().log.len(), asked);
}

#[test]
fn offline_and_not_cached_says_so_without_asking() {
    let mut bench = Bench::with_model(b"weights");
    bench.hub.offline = true;
    let error = bench.pull(ID).unwrap_err();
    assert!(
        matches!(error, Error::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"),
        "{error}"
    );
    assert!(bench.server.state().log.is_empty());
}

#[test]
fn an_index_brings_the_shards_that_it_names_and_no_others() {
    let bench = Bench::with_model(b"unused");
    let index =
        r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-1.safetensors"}}"#;
    bench.server.put("model.safetensors.index.json", index, false);
    for shard in ["model-1.safetensors", "model-2.safetensors", "model-3.safetensors"] {
        bench.server.put(shard, shard, true);
    }
    let path = bench.pull(ID).unwrap().path;
    assert_eq!(fs::read(path.join("model-2.safetensors")).unwrap(), b"model-2.safetensors");
    assert!(!path.join("model-3.safetensors").exists() && !path.join("model.safetensors").exists());
    assert!(bench.pull(ID).unwrap().from_cache);
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    assert_eq!(bench.hub.find(ID).unwrap(), None, "a shard is missing");
    assert!(!bench.pull(ID).unwrap().from_cache);
    assert_eq!(bench.server.gets("model-2.safetensors", Side::Cdn).len(), 1, "its blob was still there");
}

#[test]
fn one_gguf_file_comes_alone_by_either_spelling() {
    let bench = Bench::with_model(b"weights");
    bench.server.put("quants/m.gguf", "gguf", true);
    for name in ["org/repo:quants/m.gguf", "org/repo/quants/m.gguf"] {
        let pulled = bench.pull(name).unwrap();
        assert_eq!((fs::read(&pulled.path).unwrap(), pulled.name.as_str()), (b"gguf".to_vec(), name));
    }
    assert_eq!(names(&bench.snapshot()), ["quants"]);
    assert_eq!(bench.server.gets("quants/m.gguf", Side::Cdn).len(), 1);
    assert_eq!(bench.hub.find(ID).unwrap(), None, "one file is not the model");
}

#[test]
fn without_a_tokenizer_json_its_word_lists_come() {
    let bench = Bench::empty();
    for file in ["config.json", "vocab.json", "merges.txt", "model.safetensors"] {
        bench.server.put(file, file, false);
    }
    let path = bench.pull(ID).unwrap().path;
    assert_eq!(names(&path), ["config.json", "merges.txt", "model.safetensors", "vocab.json"]);
}

#[test]
fn an_empty_file_and_a_name_with_odd_characters_arrive() {
    let bench = Bench::with_model(b"weights");
    bench.server.put("tokenizer odd#1?.json", "", false);
    let path = bench.pull(ID).unwrap().path;
    assert_eq!(fs::read(path.join("tokenizer odd#1?.json")).unwrap(), b"");
}

#[test]
fn a_newer_commit_leaves_the_old_model_found_until_it_is_whole() {
    let bench = Bench::with_model(b"weights");
    let old = "a".repeat(40);
    let folder = bench.repository().join("snapshots").join(&old);
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(bench.repository().join("refs")).unwrap();
    fs::write(bench.repository().join("refs/main"), &old).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    fs::write(folder.join("model.safetensors"), "old").unwrap();
    assert!(bench.pull("org/repo:missing.gguf").is_err());
    assert_eq!(bench.pull(ID).unwrap().path, folder);
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert_eq!(bench.pull(ID).unwrap().path, bench.snapshot());
}

#[test]
fn two_pulls_at_once_download_once() {
    let bench = Bench::with_model(&bytes(3_000_000));
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let pulls = [(); 2].map(|()| {
            scope.spawn(|| {
                start.wait();
                bench.pull(ID).unwrap().path
            })
        });
        for pull in pulls {
            assert_eq!(pull.join().unwrap(), bench.snapshot());
        }
    });
    assert_eq!(bench.server.gets("model.safetensors", Side::Cdn).len(), 1);
    assert_eq!(
        bench
            .server
            .gets("resolve-cache/0123456789abcdef0123456789abcdef01234567/config.json", Side::Hub)
            .len(),
        1
    );
}

#[test]
fn local_paths_need_no_hub() {
    let bench = Bench::empty();
    let folder = bench.hub.cache.join("mine");
    fs::create_dir_all(&folder).unwrap();
    let (name, gguf) = (folder.to_str().unwrap(), folder.join("m.gguf"));
    assert!(matches!(bench.hub.find(name), Err(Error::NotAModel { .. })));
    for file in ["config.json", "model.safetensors", "m.gguf", "notes.txt"] {
        fs::write(folder.join(file), "").unwrap();
    }
    assert_eq!(bench.hub.find(name).unwrap(), Some(folder.clone()));
    let pulled = bench.pull(gguf.to_str().unwrap()).unwrap();
    assert!(pulled.from_cache && pulled.path == gguf);
    assert!(matches!(bench.pull(folder.join("notes.txt").to_str().unwrap()), Err(Error::NotAModel { .. })));
    let nowhere = folder.join("nowhere");
    assert_eq!(bench.hub.find(nowhere.to_str().unwrap()).unwrap(), None);
    assert!(
        matches!(bench.pull(nowhere.to_str().unwrap()), Err(Error::NoSuchPath { path }) if path == nowhere)
    );
}
