//! The product's words: examples, labels, splits, metrics, calibration, the linear baseline and the report.
