//! How a download tells how far it is.

/// Told about each file on its way: `start`, any number of `advance`, `finish`, then the next file.
pub trait Progress {
    /// A file begins; `total_bytes` is its whole size where that is known.
    fn start(&mut self, what: &str, total_bytes: Option<u64>);
    /// `bytes` more are here; what an earlier run had left counts too.
    fn advance(&mut self, bytes: u64);
    /// The file is whole, or its download has ended with an error.
    fn finish(&mut self);
}

/// Tells nobody.
impl Progress for () {
    fn start(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
}
