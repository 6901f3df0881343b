//! What a run keeps of the large model behind it: when it is asked, and the file that makes its prompt again.
//!
//! The file's name holds its hash, so that the file of an older choice stays whole until the manifest names the new one.

use std::path::Path;

use formats::store;

use crate::manifest::{CascadeRecord, Manifest};
use crate::run::{MANIFEST, RunFolder, write_json};
use crate::{Error, Result};

impl CascadeRecord {
    /// Puts the cascade into the run folder, in place of one that is there; `prompt` is what makes its prompts again.
    ///
    /// # Errors
    /// When the folder is no finished run, a file of it was changed, or it cannot be written.
    pub fn save(mut self, run: &Path, prompt: &[u8]) -> Result<()> {
        let sha256 = store::sha256_hex(prompt);
        store::write_atomically(run.join(file_name(&sha256)), prompt)?;
        self.prompt_file = Some(sha256);
        rewrite(run, |manifest| manifest.cascade = Some(self))
    }

    /// The name of the file that makes its prompts again.
    pub fn prompt_file(&self) -> Option<String> {
        self.prompt_file.as_deref().map(file_name)
    }
}

impl RunFolder {
    /// The large model behind the run, and what makes its prompts again.
    ///
    /// # Errors
    /// [`Error::NoCascade`] when none was chosen, or by a version that did not keep its prompt; [`Error::Changed`] when
    /// the file is not the one that was written.
    pub fn cascade(&self) -> Result<(&CascadeRecord, Vec<u8>)> {
        let kept = self.manifest.cascade.as_ref().and_then(|it| Some((it, it.prompt_file.as_ref()?)));
        let (cascade, sha256) = kept.ok_or_else(|| Error::NoCascade { path: self.path.clone() })?;
        let path = self.path.join(file_name(sha256));
        let failed = |source| Error::Io { path: path.clone(), action: "read", source };
        let bytes = std::fs::read(&path).map_err(failed)?;
        let found = store::sha256_hex(&bytes);
        if found != *sha256 {
            return Err(Error::Changed { path, expected: sha256.clone(), found });
        }
        Ok((cascade, bytes))
    }
}

fn file_name(sha256: &str) -> String {
    format!("cascade-{sha256:.12}.json")
}

/// Changes the manifest, and removes a prompt's file that is named no more.
pub(crate) fn rewrite(run: &Path, change: impl FnOnce(&mut Manifest)) -> Result<()> {
    let RunFolder { path, mut manifest } = RunFolder::open(run)?;
    let kept = |manifest: &Manifest| manifest.cascade.as_ref().and_then(CascadeRecord::prompt_file);
    let before = kept(&manifest);
    change(&mut manifest);
    write_json(&path.join(MANIFEST), &manifest)?;
    if let Some(old) = before.filter(|old| kept(&manifest).as_ref() != Some(old)) {
        // One that stays behind does no harm.
        let _ = std::fs::remove_file(path.join(old));
    }
    Ok(())
}
