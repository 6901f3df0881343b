"""Writes fixtures/quant/mixes.json: what llama.cpp's quantiser makes of small models, tensor by tensor.

    python mixes.py        writes fixtures/quant of this repository; needs requirements-llama.txt
For each model and mix: the type of every tensor and the first 16 digits of the SHA-256 of its bytes. The values follow
from a tensor's name and a value's index (`values` below), so that the Rust tests make the same ones. llama.cpp must be
built for x86-64 or without fused multiply-adds: those round differently.
"""
import ctypes
import hashlib
import json
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader, GGUFWriter

import manifest

OUT = Path(__file__).resolve().parents[2] / "fixtures/quant"
MIXES = {"q8_0": 7, "q4_k_m": 15, "q5_k_m": 17}
SIZES = ["vocab", "width", "feed_forward", "layers", "heads", "kv_heads", "head_dim"]
MODELS = {
    "super_blocks": (dict(zip(SIZES, [96, 256, 512, 10, 4, 2, 64])), False),
    "blocks_of_32": (dict(zip(SIZES, [64, 96, 256, 8, 3, 1, 32])), True),
    "no_blocks": (dict(zip(SIZES, [32, 80, 96, 1, 5, 5, 16])), True),
    "eighty_layers": (dict(zip(SIZES, [32, 256, 256, 80, 4, 1, 64])), False),
}
# Too many values to hash in a quick test; its types are what it is there for.
TYPES_ONLY = {"eighty_layers"}


def values(name, shape):
    """Between -1 and 1, most of them small; some rows zero, some positive throughout."""
    seed = 0
    for byte in name.encode():
        seed = (seed * 31 + byte) % 2**32
    x = np.arange(np.prod(shape), dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)
    x = (x & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    x ^= x >> np.uint32(15)
    x *= np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    half = (x >> np.uint32(8)).astype(np.float32) / np.float32(16777216) - np.float32(0.5)
    out = (half * half * half * np.float32(8)).reshape(-1, shape[-1])
    out[5::11] = 0
    out[7::11] = np.abs(out[7::11]) + np.float32(0.5)
    return out.reshape(shape)


def tensors(sizes, tied):
    vocab, width, feed_forward, layers, heads, kv_heads, head_dim = (sizes[name] for name in SIZES)
    q, kv = heads * head_dim, kv_heads * head_dim
    yield "token_embd.weight", (vocab, width)
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", (width,)
        yield f"blk.{i}.attn_q.weight", (q, width)
        yield f"blk.{i}.attn_k.weight", (kv, width)
        yield f"blk.{i}.attn_v.weight", (kv, width)
        yield f"blk.{i}.attn_output.weight", (width, q)
        yield f"blk.{i}.ffn_norm.weight", (width,)
        yield f"blk.{i}.ffn_gate.weight", (feed_forward, width)
        yield f"blk.{i}.ffn_up.weight", (feed_forward, width)
        yield f"blk.{i}.ffn_down.weight", (width, feed_forward)
    yield "output_norm.weight", (width,)
    if not tied:
        yield "output.weight", (vocab, width)


def write(path, sizes, tied):
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(sizes["vocab"])
    writer.add_context_length(64)
    writer.add_embedding_length(sizes["width"])
    writer.add_feed_forward_length(sizes["feed_forward"])
    writer.add_block_count(sizes["layers"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_key_length(sizes["head_dim"])
    writer.add_value_length(sizes["head_dim"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    for name, shape in tensors(sizes, tied):
        writer.add_tensor(name, values(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source, target, mix):
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = mix
    options.nthread = 1
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if failed:
        raise RuntimeError(f"llama.cpp could not quantise {source} to {mix}")
    return {tensor.name: tensor for tensor in GGUFReader(target).tensors}


def main():
    llama_cpp.llama_backend_init()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, (sizes, tied) in MODELS.items():
            source = Path(folder) / f"{model}.gguf"
            write(source, sizes, tied)
            mixes = {}
            for mix, number in MIXES.items():
                made = quantise(source, Path(folder) / "quantised.gguf", number)
                mixes[mix] = {}
                for name, _ in tensors(sizes, tied):
                    digest = hashlib.sha256(made[name].data.tobytes()).hexdigest()[:16]
                    mixes[mix][name] = [made[name].tensor_type.name, None if model in TYPES_ONLY else digest]
            found[model] = {**sizes, "tied": tied, "mixes": {mix: [[n, *row] for n, row in rows.items()] for mix, rows in mixes.items()}}
    path = OUT / "mixes.json"
    lines = json.dumps(found, separators=(",", ":")).replace("],[", "],\n[")
    path.write_text(lines + "\n", encoding="utf-8")
    manifest.update(OUT, "mixes.py", [path], packages=["gguf", "llama-cpp-python", "numpy"], seed="the tensors' names")


if __name__ == "__main__":
    main()
