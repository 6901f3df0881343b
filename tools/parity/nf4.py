"""Writes fixtures/quant/nf4.safetensors: what bitsandbytes makes of some values in NF4 with double quantisation.

    python nf4.py        writes fixtures/quant of this repository
`source` are the values; `levels` the level of each, two a byte, the first in the upper four bits; `magnitudes` those of
the blocks of 64 after their own quantisation.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file

import manifest

SEED = 1
OUT = Path(__file__).resolve().parents[2] / "fixtures/quant"
# More than one group of 256 magnitudes, and neither a whole number of them.
BLOCKS = 300


def source() -> torch.Tensor:
    """Blocks of several magnitudes, some of them zero, constant, of one sign, or with one value that is far larger."""
    blocks = torch.randn(BLOCKS, 64, generator=torch.Generator().manual_seed(SEED)) * 0.03
    blocks[10:20] *= 1e-3
    blocks[20:30] *= 10.0
    blocks[30] = 0
    blocks[31] = 0.5
    blocks[32] = blocks[32].abs()
    blocks[33, 7] = -4.0
    return blocks.bfloat16()


def main() -> None:
    values = source()
    packed, state = bnb.quantize_4bit(
        values.float().flatten(), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    magnitudes = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    path = OUT / "nf4.safetensors"
    tensors = {"source": values, "levels": packed.flatten(), "magnitudes": magnitudes.float()}
    save_file(tensors, path)
    manifest.update(OUT, "nf4.py", [path], packages=["torch", "bitsandbytes", "safetensors"], seed=SEED)


if __name__ == "__main__":
    main()
