//! frontdesk: one binary from labelled queries to a router.
fn main() {}
