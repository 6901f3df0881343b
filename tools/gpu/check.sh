#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can show: every op against the processor's, the engine against transformers
# and PEFT, training to the accuracy that the processor reaches, and the speed. Needs a Rust toolchain and what
# `frontdesk pull smollm2-135m` needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly RUN=runs/gpu-check ACCURACY_BAR=0.75
export FRONTDESK_CUDA=1

frontdesk() { cargo run --release --quiet -- "$@"; }
bench() { frontdesk bench train --base random:llama-3.2-1b --rank 16 --json "$@"; }
learns() {
    local -r device=$1
    rm -rf "$RUN"
    frontdesk train --device "$device" --data examples/insurance/train.json --out "$RUN"
    frontdesk eval --device cuda --model "$RUN" --data examples/insurance/test.json --min-accuracy "$ACCURACY_BAR"
}

cargo test --release -p kernels --test cuda
cargo test --release -p engine a_gpu_

learns cuda

for batch in 2 16 256; do
    bench --device cuda --batch "$batch"
done
bench --device cuda --batch 8 --example-tokens 2048

# As many examples a GPU as one alone had above.
gpus=$(nvidia-smi --list-gpus | wc -l)
readonly gpus
if ((gpus > 1)); then
    learns cuda:all
    for batch in 16 256; do
        bench --device cuda:all --batch "$((batch * gpus))"
    done
fi
