//! What a report shows, in plain words.

use super::format::{count, percent, seconds, usd};
use super::section::labels_by_errors;
use super::{ModelSection, Report};

/// One or two sentences a finding, the most important first.
pub(super) fn sentences(report: &Report) -> Vec<String> {
    let Some((model, others)) = report.models.split_first().filter(|(model, _)| model.metrics.n > 0) else {
        return Vec::new();
    };
    let mut out = vec![accuracy(model)];
    out.extend(report.comparisons.iter().map(crate::compare::Comparison::sentence));
    out.extend(scope(model));
    out.extend(routed(model));
    out.extend(cost(model, others));
    for cascade in &report.cascades {
        let point = cascade.point();
        let alone = cascade.points[0].accuracy;
        let price =
            point.cost_per_1000.map_or(String::new(), |cost| format!(", for {} a thousand", usd(cost)));
        out.push(if point.share > 0.0 {
            format!(
                "If {} were asked about the {} of the queries that the first model is least sure of, {} instead of \
                 {} would be right{price}.",
                cascade.second,
                percent(point.share),
                percent(point.accuracy),
                percent(alone)
            )
        } else {
            format!("Asking {} about unsure queries would add nothing here.", cascade.second)
        });
    }
    out.extend(labels(model));
    if let Some(found) = report.suspects_found.filter(|&found| found > 0) {
        let rows = if found == 1 { "row" } else { "rows" };
        out.push(format!(
            "{} training {rows} may be labelled wrongly; they are worth a look first.",
            count(found)
        ));
    }
    out
}

fn accuracy(model: &ModelSection) -> String {
    format!(
        "{} gives {} of {} queries the right label (95% interval {} to {}).",
        model.name,
        percent(model.metrics.accuracy),
        count(model.metrics.n),
        percent(model.accuracy_interval.low),
        percent(model.accuracy_interval.high)
    )
}

fn scope(model: &ModelSection) -> Option<String> {
    let scope = model.scope.as_ref()?;
    let scores = scope.scores;
    Some(format!(
        "Of the queries that a label covers it has {} right, and of those that none covers it recognises {}.",
        percent(scores.in_scope_accuracy),
        percent(scores.recall)
    ))
}

fn routed(model: &ModelSection) -> Option<String> {
    let (routed, thresholds) = model.routed.zip(model.thresholds.as_ref())?;
    Some(format!(
        "With the thresholds for {}, {} is routed without a person and {} of that is right; the rest goes to a person.",
        thresholds.goal.describe(),
        percent(routed.coverage),
        percent(routed.precision)
    ))
}

fn cost(model: &ModelSection, others: &[ModelSection]) -> Option<String> {
    let own = model.cost.as_ref()?;
    let dearer: Vec<String> = others
        .iter()
        .filter_map(|other| Some(format!("{} costs {}", other.name, usd(other.cost.as_ref()?.per_1000))))
        .collect();
    let waits = model
        .latency
        .map_or(String::new(), |it| format!(" One query takes {} at the median.", seconds(Some(it.p50_s))));
    let against = if dearer.is_empty() { String::new() } else { format!("; {}", dearer.join(", ")) };
    Some(format!("1,000 queries cost {} ({}){against}.{waits}", usd(own.per_1000), own.basis))
}

fn labels(model: &ModelSection) -> Option<String> {
    let errors = labels_by_errors(&model.metrics);
    let total: usize = errors.iter().map(|label| label.missed).sum();
    let named: Vec<&str> = errors
        .iter()
        .take(3)
        .filter(|label| label.missed + label.received > 0)
        .map(|label| label.label.label.as_str())
        .collect();
    if named.is_empty() || model.metrics.per_label.len() <= named.len() {
        return None;
    }
    Some(format!("Its {} mistakes touch {} most.", count(total), listed(&named)))
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
