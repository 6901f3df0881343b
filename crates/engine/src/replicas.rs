//! Data parallel training: replicas of one model on several devices, a thread for each.
//!
//! Each computes the gradients of its share of a batch; their sum replaces them everywhere, and every replica takes the
//! same step from the same bits. Of a single replica nothing of this remains but plain calls.

use formats::BaseModel;
use kernels::Backend;

use crate::Result;
use crate::load::Storage;
use crate::loss_scale::LossScale;
use crate::model::Model;
use crate::replica::{Examples, Replica};
use crate::trainable::Trainable;
use crate::trainer::TrainerOptions;

impl<B: Backend> Model<B> {
    /// [`Model::load`] onto several devices at once.
    ///
    /// # Errors
    /// As there.
    pub fn load_each(backends: Vec<B>, base: &BaseModel, storage: Storage) -> Result<Vec<Self>> {
        on_each(backends, |backend| Self::load(backend, base, storage)).into_iter().collect()
    }
}

/// The replicas of a model, which hold the same values at all times.
pub(crate) struct Replicas<B: Backend> {
    /// Where there are several. It goes before its devices do.
    group: Option<B::Group>,
    all: Vec<Replica<B>>,
}

impl<B: Backend> Replicas<B> {
    /// Opens the models for what trains.
    pub(crate) fn new(models: Vec<Model<B>>, trainable: &Trainable, options: &TrainerOptions) -> Self {
        assert!(!models.is_empty(), "training needs a model");
        let all = on_each(models, |model| Replica::new(model, trainable, options));
        let backends: Vec<&B> = all.iter().map(|replica| &replica.model.backend).collect();
        let group = (backends.len() > 1).then(|| B::join(&backends));
        Self { group, all }
    }

    pub(crate) fn first(&self) -> &Replica<B> {
        &self.all[0]
    }

    pub(crate) fn first_mut(&mut self) -> &mut Replica<B> {
        &mut self.all[0]
    }

    pub(crate) fn all(&self) -> &[Replica<B>] {
        &self.all
    }

    pub(crate) fn into_models(self) -> Vec<Model<B>> {
        self.all.into_iter().map(|replica| replica.model).collect()
    }

    /// How gradients are summed, where there are several replicas.
    pub(crate) fn sums(&self) -> Option<String> {
        self.group.as_ref().map(ToString::to_string)
    }

    /// Does the same to each replica; returns what the first returned.
    pub(crate) fn each<R: Send>(&mut self, work: impl Fn(&mut Replica<B>) -> R + Sync) -> R {
        on_each(self.all.iter_mut().collect(), work).swap_remove(0)
    }

    /// The loss of a batch whose target tokens weigh `total`, the rows that were computed, and its gradients, times the
    /// loss scale, in each replica's optimizer.
    pub(crate) fn add_gradients(
        &mut self,
        examples: &Examples,
        batch: &[u32],
        total: f32,
        scale: LossScale,
    ) -> Result<(f32, usize)> {
        let shares = shares(&examples.rows(batch).collect::<Vec<_>>(), self.all.len());
        let work = self.all.iter_mut().zip(shares).collect();
        let found = on_each(work, |(replica, share): (&mut Replica<B>, _)| {
            replica.add_gradients(examples, &batch[share], total, scale)
        });
        let (mut loss, mut rows) = (0.0, 0);
        for part in found {
            let part = part?;
            (loss, rows) = (loss + part.0, rows + part.1);
        }
        if let Some(group) = &self.group {
            let all = self.all.iter_mut();
            let mut parts: Vec<(&B, _)> =
                all.map(|one| (&one.model.backend, &mut one.optimizer.gradients)).collect();
            B::sum(group, &mut parts);
        }
        Ok((loss as f32, rows))
    }
}

/// Splits a batch of examples of so many `rows` in its order, each cut as near as may be to where shares of equal rows
/// would meet. A share may be empty.
fn shares(rows: &[usize], count: usize) -> Vec<std::ops::Range<usize>> {
    let total: usize = rows.iter().sum();
    let mut before = 0;
    // Twice the row in the middle of each example.
    let middle = |&own: &usize| {
        before += own;
        2 * before - own
    };
    let middles: Vec<usize> = rows.iter().map(middle).collect();
    let cut = |share: usize| middles.partition_point(|middle| middle * count <= 2 * share * total);
    (0..count).map(|share| cut(share)..cut(share + 1)).collect()
}

/// Calls `work` with each item, on a thread of its own where there are several; the results are in order.
fn on_each<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    if items.len() < 2 {
        return items.into_iter().map(work).collect();
    }
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, R>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_the_batch_in_its_order_and_about_equal() {
        assert_eq!(shares(&[7], 2), [0..1, 1..1]);
        assert_eq!(shares(&[7, 7], 3), [0..1, 1..1, 1..2]);
        assert_eq!(shares(&[9, 1, 1, 1, 1, 1, 1, 1, 1, 1], 2), [0..1, 1..10]);
        assert_eq!(shares(&[3, 4, 5], 1).as_slice(), std::slice::from_ref(&(0..3)));
        let rows: Vec<usize> = (0..100).map(|i| 1 + i * 37 % 61).collect();
        let (total, longest): (usize, usize) = (rows.iter().sum(), 61);
        for count in 1..9 {
            let mut next = 0;
            for share in shares(&rows, count) {
                assert_eq!(share.start, next);
                next = share.end;
                let own: usize = rows[share].iter().sum();
                assert!(own.abs_diff(total / count) <= longest, "{own} of {total} rows for one of {count}");
            }
            assert_eq!(next, rows.len());
        }
    }
}
