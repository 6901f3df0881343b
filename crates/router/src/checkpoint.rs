//! Where an interrupted run goes on: one file, replaced atomically.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use engine::{LossScale, Snapshot};
use formats::store;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use crate::best::Best;
use crate::run::{CHECKPOINT, RunFolder};
use crate::{Error, Result};

const STATE: &str = "state.safetensors";
const PLAN: &str = "plan.json";
const LOCK: &str = "lock";
const KEY: &str = "frontdesk";

/// All that a run needs to go on as if nothing had happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(crate) snapshot: Snapshot,
    pub(crate) best: Option<Best>,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    /// Of everything that decides the result; a run goes on only with the same.
    fingerprint: String,
    steps: u64,
    loss_scale: LossScale,
    best: Option<Cow<'a, Best>>,
}

/// The checkpoint folder of a run, held by one process.
pub(crate) struct Checkpoint {
    folder: PathBuf,
    fingerprint: String,
    /// Released by the system when the process ends, however it ends.
    _lock: File,
}

impl Checkpoint {
    /// Takes `out` for a new run, or with `resume` for the interrupted one in it.
    ///
    /// # Errors
    /// When there is another run, or another process trains there.
    pub(crate) fn begin(out: &Path, fingerprint: String, resume: bool) -> Result<Self> {
        let occupied = || Error::Occupied { path: out.to_path_buf() };
        if RunFolder::is_in(out) {
            return Err(occupied());
        }
        let held = Self::hold(out, fingerprint)?;
        // Another process may have come to its end between the two.
        if RunFolder::is_in(out) {
            held.remove()?;
            return Err(occupied());
        }
        if !resume && Self::plan_path(out).exists() { Err(occupied()) } else { Ok(held) }
    }

    /// Creates the folder if need be and locks it.
    fn hold(out: &Path, fingerprint: String) -> Result<Self> {
        let folder = out.join(CHECKPOINT);
        let failed = |path: &Path, source| Error::Io { path: path.to_path_buf(), action: "written", source };
        std::fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(|source| failed(&path, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, fingerprint, _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::Busy { path: out.to_path_buf() }),
            Err(std::fs::TryLockError::Error(source)) => Err(failed(&path, source)),
        }
    }

    /// Where the plan of the run in `out` lies.
    pub(crate) fn plan_path(out: &Path) -> PathBuf {
        out.join(CHECKPOINT).join(PLAN)
    }

    /// Replaces the state on disk.
    pub(crate) fn save(&self, snapshot: &Snapshot, best: Option<&Best>) -> Result<()> {
        let Snapshot { parameters, first, second, steps, loss_scale } = snapshot;
        let fingerprint = self.fingerprint.clone();
        let (steps, loss_scale, best_values) = (*steps, *loss_scale, best.map(Cow::Borrowed));
        let header = Header { fingerprint, steps, loss_scale, best: best_values };
        let path = self.folder.join(STATE);
        let header =
            serde_json::to_string(&header).map_err(|source| Error::Json { path: path.clone(), source })?;
        let best = best.map_or(&[][..], |best| &best.values);
        let named = [("parameters", &parameters[..]), ("first", first), ("second", second), ("best", best)];
        let views = named.into_iter().filter_map(|(name, values)| {
            let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values));
            Some((name, view.ok()?))
        });
        let metadata = HashMap::from([(KEY.to_owned(), header)]);
        Ok(store::write_atomically_with(&path, |file| {
            safetensors::serialize_to_file(views, Some(metadata), file).map_err(std::io::Error::other)
        })?)
    }

    /// Reads the state, or `None` when the run was interrupted before its first checkpoint.
    pub(crate) fn load(&self) -> Result<Option<State>> {
        let path = self.folder.join(STATE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path, action: "read", source }),
        };
        let broken = |problem: String| Error::Checkpoint { path: path.clone(), problem };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(error.to_string()))?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(KEY));
        let header = header.ok_or_else(|| broken("it has no header".into()))?;
        let header: Header<'_> =
            serde_json::from_str(header).map_err(|source| Error::Json { path: path.clone(), source })?;
        if header.fingerprint != self.fingerprint {
            return Err(Error::PlanChanged { what: "its data, base model or recipe" });
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
        let values = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.tensor(name).map_err(|error| broken(error.to_string()))?;
            Ok(tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let mut best = header.best.map(Cow::into_owned);
        if let Some(best) = &mut best {
            best.values = values("best")?;
        }
        let (parameters, first, second) = (values("parameters")?, values("first")?, values("second")?);
        let Header { steps, loss_scale, .. } = header;
        Ok(Some(State { snapshot: Snapshot { parameters, first, second, steps, loss_scale }, best }))
    }

    /// Gives up a run that failed: where no state was saved there is nothing to go on with, and nothing is left.
    pub(crate) fn abandon(self, out: &Path) {
        if !self.folder.join(STATE).exists() {
            // What cannot be removed is said by the failure itself, or by the next run.
            let _ = std::fs::remove_dir_all(&self.folder);
            let _ = std::fs::remove_dir(out);
        }
    }

    /// Removes the folder: the run is finished.
    pub(crate) fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder).map_err(|source| Error::Io {
            path: self.folder.clone(),
            action: "removed",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let loss_scale = LossScale { factor: 1024.0, steps: 3 };
        let (parameters, first, second) = (vec![1.0, -2.5], vec![0.1, 0.2], vec![3.0, 4.0]);
        let snapshot = Snapshot { parameters, first, second, steps: 7, loss_scale };
        let mut best = None;
        for (step, macro_f1) in [(4, 0.1 + 0.2), (5, 0.2), (6, 0.1)] {
            Best::offer(&mut best, step, macro_f1, vec![1, 0], &[1, 1], || vec![9.0, 8.0]);
        }
        assert_eq!(best.as_ref().map(|best| best.misses), Some(2));
        State { snapshot, best }
    }

    #[test]
    fn comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::hold(folder.path(), "f".into()).unwrap();
        assert_eq!(checkpoint.load().unwrap(), None);
        checkpoint.save(&state().snapshot, state().best.as_ref()).unwrap();
        assert_eq!(checkpoint.load().unwrap(), Some(state()));
        let without = State { best: None, ..state() };
        checkpoint.save(&without.snapshot, None).unwrap();
        assert_eq!(checkpoint.load().unwrap(), Some(without));
    }

    #[test]
    fn another_plan_and_another_process_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::hold(folder.path(), "f".into()).unwrap();
        checkpoint.save(&state().snapshot, state().best.as_ref()).unwrap();
        assert!(matches!(Checkpoint::hold(folder.path(), "f".into()), Err(Error::Busy { .. })));
        drop(checkpoint);
        let other = Checkpoint::hold(folder.path(), "g".into()).unwrap();
        assert!(matches!(other.load(), Err(Error::PlanChanged { .. })));
    }

    #[test]
    fn a_folder_is_taken_by_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let begin = |resume| Checkpoint::begin(out, "f".into(), resume);
        let held = begin(false).unwrap();
        std::fs::write(Checkpoint::plan_path(out), "{}").unwrap();
        assert!(matches!(begin(false), Err(Error::Busy { .. })), "nobody shall delete a run at work");
        drop(held);
        assert!(matches!(begin(false), Err(Error::Occupied { .. })), "it was interrupted");
        begin(true).unwrap().remove().unwrap();
        std::fs::write(out.join("frontdesk.json"), "{}").unwrap();
        assert!(matches!(begin(true), Err(Error::Occupied { .. })), "it is finished");
        assert!(!out.join(CHECKPOINT).exists(), "a finished run is left as it is");
    }

    #[test]
    fn a_failed_run_leaves_what_it_can_go_on_from_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let begin = |resume| Checkpoint::begin(&out, "f".into(), resume).unwrap();
        begin(false).abandon(&out);
        assert!(!out.exists());
        let held = begin(false);
        held.save(&state().snapshot, None).unwrap();
        held.abandon(&out);
        assert!(begin(true).load().unwrap().is_some());
    }

    #[test]
    fn a_cut_file_is_an_error_not_a_start_from_zero() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::hold(folder.path(), "f".into()).unwrap();
        checkpoint.save(&state().snapshot, state().best.as_ref()).unwrap();
        let path = folder.path().join(CHECKPOINT).join(STATE);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(checkpoint.load().is_err());
    }
}
