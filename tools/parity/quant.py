"""Writes fixtures/quant/blocks.gguf: a few blocks of every tensor type that `formats` reads, with their values.

    python quant.py        writes fixtures/quant of this repository
For each type T the file has `T.stored` in that type and `T.values`, what gguf-py makes of it, in F32. Types that
gguf-py can write are quantised from `source`; the others are random bits around finite scales.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

import manifest

SEED = 1
OUT = Path(__file__).resolve().parents[2] / "fixtures/quant"
ROWS = 3
QUANTISED = [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
# Where the half-precision scales stand in a block of each type that gguf-py cannot write.
RANDOM = {
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}


def source(rng: np.random.Generator) -> np.ndarray:
    """Rows of several magnitudes, with blocks that are zero, constant, one-sided and tied for the largest."""
    rows = rng.standard_normal((ROWS, 256)).astype(np.float32)
    rows[0, 128:] *= 1e-3
    rows[1] = np.abs(rows[1]) + 1
    rows[2, 0:32] = 0
    rows[2, 32:64] = 0.75
    rows[2, 64:96] = np.tile([1.0, -1.0], 16)
    rows[2, 96:128] = -np.abs(rows[2, 96:128])
    rows[2, 128:160] *= 1e-7
    rows[2, 160:192] *= 1e4
    return rows


def random_blocks(rng: np.random.Generator, kind: Type) -> np.ndarray:
    block_bytes = GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (ROWS, block_bytes), dtype=np.uint8)
    for at in RANDOM[kind]:
        scales = (rng.standard_normal(ROWS) * [0.01, 100.0, 1e-7]).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(ROWS, 2)
    return blocks


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "blocks.gguf"
    rng = np.random.default_rng(SEED)
    writer = GGUFWriter(path, "quant")
    values = source(rng)
    writer.add_tensor("source", values)
    for kind in [*QUANTISED, *RANDOM]:
        stored = quantize(values, kind) if kind in QUANTISED else random_blocks(rng, kind)
        raw = stored.view(np.uint8).reshape(ROWS, -1)
        writer.add_tensor(f"{kind.name}.stored", raw, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.values", dequantize(stored, kind).astype(np.float32).reshape(ROWS, 256))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    manifest.update(OUT, "quant.py", [path], seed=SEED)


if __name__ == "__main__":
    main()
