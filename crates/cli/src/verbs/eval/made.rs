//! How a report's numbers came about: the command, and the hash of everything that they depend on.

use formats::store;
use router::Manifest;
use routing::Dataset;
use routing::report::{Fact, Input, Provenance};

use super::Args;
use crate::verbs::against::Competitor;

pub(super) fn provenance(
    args: &Args,
    manifest: &Manifest,
    data: &Dataset,
    large: &[Competitor],
) -> anyhow::Result<Provenance> {
    let rows = |rows: usize| format!("{rows} rows");
    let input = |role: &str, name: String, size: String, sha256: &str| Input {
        role: role.to_owned(),
        name,
        size,
        sha256: sha256.to_owned(),
    };
    let record = &manifest.data;
    let labels = format!("{} labels", manifest.labels.len());
    let prompt = store::sha256_hex(&serde_json::to_vec(&manifest.prompt)?);
    let mut inputs = vec![
        input("test data", data.path.display().to_string(), rows(data.examples.len()), &data.sha256),
        input("training data", record.path.display().to_string(), rows(record.rows), &record.sha256),
    ];
    inputs.extend(
        [("validation data", &manifest.valid), ("calibration data", &manifest.calibrated_on)]
            .into_iter()
            .filter_map(|(role, record)| {
                let record = record.as_ref()?;
                Some(input(role, record.path.display().to_string(), rows(record.rows), &record.sha256))
            }),
    );
    inputs.push(input("base model", manifest.base.name.clone(), labels, &manifest.base.sha256));
    for (name, sha256) in &manifest.files {
        inputs.push(input("run", name.clone(), String::new(), sha256));
    }
    inputs.push(input("prompt", "of the router".to_owned(), String::new(), &prompt));
    for it in large {
        let name = format!("of {}", it.judged.section.name);
        inputs.push(input("prompt", name, rows(it.header.count), &it.header.prompt));
    }
    Ok(Provenance {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        seed: manifest.recipe.seed,
        inputs,
        versions: vec![
            Fact::new("frontdesk", env!("CARGO_PKG_VERSION")),
            Fact::new("Run", format!("{}, by frontdesk {}", args.model.display(), manifest.version)),
            Fact::new("Trained on", manifest.device.clone()),
        ],
    })
}
