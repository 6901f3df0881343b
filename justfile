# The verbs of this repository; each is one plain command, so `just` is a convenience and nothing more.

# Everything that must hold before a merge.
ci:
    .ci/run

# The fast loop: format, lints.
check:
    cargo fmt --check && cargo clippy --release --workspace --all-targets

# All tests; name the model with FRONTDESK_SMOLLM2 to include those that need it.
test:
    cargo test --release --workspace

# The kernels and the engine on the plain reference path.
test-scalar:
    KERNELS_ISA=scalar cargo test --release -p kernels -p engine

# Everything at once on the bundled sample.
demo:
    cargo run --release -- demo

# API pages; broken links are errors.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --workspace

# Licences, advisories and sources of the dependencies (needs cargo-deny).
deny:
    cargo deny check

# Lines per crate, so that growth is seen.
size:
    @for crate in crates/*; do printf '%6d  %s\n' "$(find "$crate" -name '*.rs' -exec cat {} + | wc -l)" "$crate"; done
