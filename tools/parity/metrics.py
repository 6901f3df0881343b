"""What scikit-learn, statsmodels and scipy say about small sets of labels, and LinearSVC about a few texts.

    pip install numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1 statsmodels==0.15.0
    python metrics.py [OUT]      default OUT: fixtures/metrics of this repository
"""
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)
from sklearn.pipeline import make_union
from sklearn.svm import LinearSVC
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

import manifest

SEED = 20
PACKAGES = ["numpy", "scikit-learn", "scipy", "statsmodels"]


def scores(triple):
    return dict(zip(("precision", "recall", "f1"), map(float, triple[:3])))


def judged(labels, truth, predicted):
    """The metrics over an explicit list of labels."""
    index = list(range(len(labels)))
    prf = lambda average: precision_recall_fscore_support(truth, predicted, labels=index, average=average, zero_division=0.0)
    each = np.array(prf(None)).T
    return {
        "labels": labels,
        "truth": list(map(int, truth)),
        "predicted": list(map(int, predicted)),
        "metrics": {
            "n": len(truth),
            "accuracy": float(accuracy_score(truth, predicted)),
            "macro": scores(prf("macro")),
            "weighted": scores(prf("weighted")),
            "micro": scores(prf("micro")),
            "per_label": [{"label": l, **scores(row), "support": int(row[3])} for l, row in zip(labels, each)],
            "confusion": {"labels": labels, "matrix": confusion_matrix(truth, predicted, labels=index).tolist()},
            "zero_division": 0.0,
        },
        "table": report(labels, truth, predicted),
    }


def report(labels, truth, predicted):
    """The text table; none where scikit-learn prints a micro average instead of the accuracy, or counts as "3.0"."""
    index = list(range(len(labels)))
    if not set(truth) | set(predicted) >= set(index) or not np.any(np.equal(truth, predicted)):
        return None
    return classification_report(truth, predicted, labels=index, target_names=labels, zero_division=0.0)


def metric_cases(rng):
    names = lambda n: [f"label {i}" for i in range(n)]
    unbalanced = rng.choice(5, 400, p=[0.9, 0.05, 0.03, 0.015, 0.005])
    noisy = np.where(rng.random(400) < 0.7, unbalanced, rng.choice(5, 400))
    many = rng.integers(0, 77, 1000)
    return {
        "ordinary": judged(["billing", "claims", "life"], [0, 1, 2, 0, 1, 2, 0], [0, 2, 2, 0, 1, 0, 1]),
        "never predicted": judged(names(3), [0, 1, 2, 2, 1], [0, 1, 1, 0, 1]),
        "never true": judged(names(3), [0, 1, 1, 0], [0, 2, 1, 2]),
        "in neither": judged(names(4), [0, 1, 1, 0], [0, 0, 1, 1]),
        "one label": judged(["only"], [0, 0, 0], [0, 0, 0]),
        "all wrong": judged(["a", "b"], [0, 1, 0], [1, 0, 1]),
        "unbalanced": judged(["größte", "b", "c", "d", "a much longer name"], unbalanced, noisy),
        "77 labels": judged(names(77), many, np.where(rng.random(1000) < 0.8, many, rng.integers(0, 77, 1000))),
    }


def wilson_cases():
    pairs = [(0, 1), (1, 1), (0, 50), (50, 50), (17, 20), (912, 1000), (2810, 3080)]
    return [{"right": k, "n": n, "interval": list(map(float, proportion_confint(k, n, 0.05, method="wilson")))} for k, n in pairs]


def mcnemar_cases():
    pairs = [(0, 0), (0, 1), (5, 5), (1, 9), (10, 25), (120, 61), (900, 1100), (2500, 2490)]
    test = lambda b, c: float(mcnemar([[0, b], [c, 0]], exact=True).pvalue)
    return [{"only_first": b, "only_second": c, "p_value": test(b, c)} for b, c in pairs]


def bootstrap_case(rng):
    """Two models on 600 rows of 6 labels; scipy's paired percentile intervals of the two differences."""
    truth = rng.choice(6, 600, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    first = np.where(rng.random(600) < 0.88, truth, rng.integers(0, 6, 600))
    second = np.where(rng.random(600) < 0.82, truth, rng.integers(0, 6, 600))
    macro = lambda t, p: f1_score(t, p, average="macro", zero_division=0.0)
    accuracy = lambda t, a, b: np.mean(t == a) - np.mean(t == b)
    macro_f1 = lambda t, a, b: macro(t, a) - macro(t, b)
    out = {"truth": truth.tolist(), "first": first.tolist(), "second": second.tolist()}
    for name, statistic in (("accuracy", accuracy), ("macro_f1", macro_f1)):
        found = bootstrap((truth, first, second), statistic, paired=True, vectorized=False, n_resamples=10000,
                          method="percentile", rng=np.random.default_rng(SEED)).confidence_interval
        out[name] = {"difference": float(statistic(truth, first, second)), "interval": [float(found.low), float(found.high)]}
    return out


def linear_case():
    """LinearSVC's scores over TF-IDF features on a handful of texts."""
    texts = ["My card was stolen!", "I lost my card, my ONLY card", "top-up failed at the café", "Why did my top up fail?",
             "open a\nsavings account", "I'd like an account_2 please", "a b c", "größe der Überweisung"]
    labels = [0, 0, 1, 1, 2, 2, 0, 1]
    probes = ["cards stolen", "café top up", "unknown zzz", "", "Open an ACCOUNT"]
    features = make_union(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
                          TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))
    rows = features.fit_transform(texts)
    svm = LinearSVC(C=1.0, tol=1e-8, max_iter=100000, random_state=0).fit(rows, labels)
    return {
        "texts": texts, "labels": labels, "probes": probes, "n_features": rows.shape[1],
        "scores": svm.decision_function(features.transform(probes)).tolist(),
    }


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "fixtures" / "metrics"
    rng = np.random.default_rng(SEED)
    files = {
        "metrics.json": metric_cases(rng),
        "compare.json": {"wilson": wilson_cases(), "mcnemar": mcnemar_cases(), "bootstrap": bootstrap_case(rng)},
        "linear.json": linear_case(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        manifest.write_json(out / name, content)
    manifest.write_json(out / "manifest.json", {"metrics.py": {
        "seed": SEED,
        "versions": {name: version(name) for name in PACKAGES},
        "sha256": {name: manifest.sha256(out / name) for name in sorted(files)},
    }})


if __name__ == "__main__":
    main()
