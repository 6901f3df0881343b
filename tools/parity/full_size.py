"""One training step of models of published sizes with random weights, as transformers + PEFT compute it on a GPU.

    python full_size.py OUT [NAME...]       default: llama-3.2-1b llama-3.2-3b phi-3.5-mini; about 17 GB on disk
Writes OUT/NAME: the model in bf16, an adapter, and the loss and gradients of one batch in f32. `deviation_bf16` says how
far the same code in bf16 lands from them: the largest relative error of a gradient, and of the loss.
`FRONTDESK_FULL_SIZE=OUT cargo test --release -p engine a_gpu_computes_full_sizes` then holds the engine to them.
"""
import argparse
import math
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config
from transformers.utils import logging

import manifest
from training import OPTIMIZER, PROJECTIONS, adapter_key

LLAMA = dict(vocab_size=128256, intermediate_size=8192, num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5,
             tie_word_embeddings=True, rope_parameters={
                 "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192})
MODELS = {
    "llama-3.2-1b": (LlamaConfig(**LLAMA, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64), PROJECTIONS),
    "llama-3.2-3b": (LlamaConfig(**LLAMA, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128), PROJECTIONS),
    "phi-3.5-mini": (Phi3Config(
        vocab_size=32064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=131072, original_max_position_embeddings=4096, rms_norm_eps=1e-5,
        tie_word_embeddings=False, sliding_window=262144, pad_token_id=0, rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 4096,
            "short_factor": [1 + i / 48 for i in range(48)], "long_factor": [1 + i for i in range(48)]}),
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
}
RANK, BATCH, PREFIX = 16, 8, 24
DEVICE = "cuda"


def fill(parameters, scale):
    for name, p in parameters:
        if p.dim() == 2:
            p.data.normal_(std=scale(name, p))


def of_base(name, p):
    return 0.02 if "embed" in name or "lm_head" in name else 1 / math.sqrt(p.shape[1])


def of_adapter(name, p):
    return 0.5 / math.sqrt(p.shape[1]) if "lora_A" in name else 0.02


def sequences(vocabulary):
    draw = random.Random(0)
    tokens = lambda count: [draw.randrange(1000, vocabulary) for _ in range(count)]
    prefix = tokens(PREFIX)
    rows = [(prefix + tokens(draw.randint(6, 40)), tokens(draw.randint(2, 6))) for _ in range(BATCH)]
    return prefix, [{"ids": query + label, "prompt": len(query)} for query, label in rows]


def make(folder, config, targets):
    """The model and its adapter, every value one that bf16 holds."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fill(model.named_parameters(), of_base)
    model.save_pretrained(folder)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=targets)
    peft = get_peft_model(model, lora, autocast_adapter_dtype=False)
    fill([(n, p) for n, p in peft.named_parameters() if p.requires_grad], of_adapter)
    peft.to(torch.bfloat16).peft_config["default"].base_model_name_or_path = folder.name
    peft.save_pretrained(folder / "adapter")


def step(folder, dtype, batch):
    """Loss and gradients of the adapter, in f32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=DEVICE)
    model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True, autocast_adapter_dtype=False).to(dtype).eval()
    total = sum(len(row["ids"]) - row["prompt"] for row in batch)
    loss = 0.0
    for row in batch:
        ids = torch.tensor([row["ids"]], device=DEVICE)
        logits = model(input_ids=ids, use_cache=False).logits[0, row["prompt"] - 1:-1].float()
        part = torch.nn.functional.cross_entropy(logits, ids[0, row["prompt"]:], reduction="sum") / total
        part.backward()
        loss += part.item()
    return loss, {adapter_key(n): p.grad.float().cpu() for n, p in model.named_parameters() if p.requires_grad}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    logging.disable_progress_bar()
    for name in args.names:
        began, folder, (config, targets) = time.perf_counter(), args.out / name, MODELS[name]
        folder.mkdir(parents=True)
        make(folder, config, targets)
        prefix, batch = sequences(config.vocab_size)
        loss, gradients = step(folder, torch.float32, batch)
        rough_loss, rough = step(folder, torch.bfloat16, batch)
        save_file({f"lora.grad.{n}": g.contiguous() for n, g in gradients.items()}, folder / "case.safetensors")
        off = {n: ((g - rough[n]).norm() / g.norm()).item() for n, g in gradients.items()}
        manifest.write_json(folder / "case.json", {
            "prefix": prefix, "sequences": batch, "loss": {"lora": loss}, "optimizer": {**OPTIMIZER, "lr": 1e-3},
            "deviation_bf16": {"gradients": max(off.values()), "loss": abs(loss - rough_loss) / loss}})
        print(f"{name}: loss {loss:.5f}, in bf16 {rough_loss:.5f}, worst gradient {max(off.values()):.4f}, "
              f"median {sorted(off.values())[len(off) // 2]:.4f}, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
