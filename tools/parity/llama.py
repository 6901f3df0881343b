"""Tiny random Llama models with odd sizes, their PEFT adapters, and what transformers + PEFT compute with them.

    python llama.py [OUT]        default OUT: fixtures/llama of this repository
Values are computed in f64 from f32 weights and stored as f32; `deviation_f32` in case.json says how far the same code
in f32 lands from them, which is what a f32 implementation may be held to.
"""
import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

import manifest
from training import OPTIMIZER, PROJECTIONS, adapter_key, double_norms, gradients, train

SEED = 20
RANK, ALPHA, LR = 3, 5, 1e-2
END = 2
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
CONFIGS = {
    "tied": dict(vocab_size=97, hidden_size=40, intermediate_size=52, num_attention_heads=4, num_key_value_heads=2,
                 tie_word_embeddings=True, rms_norm_eps=1e-5, max_position_embeddings=128,
                 rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "scaled": dict(vocab_size=103, hidden_size=42, intermediate_size=58, num_attention_heads=6, num_key_value_heads=3,
                   head_dim=12, tie_word_embeddings=False, rms_norm_eps=1e-6, max_position_embeddings=512,
                   rope_parameters={"rope_theta": 10000.0, **LLAMA3}),
}
# Labels share first tokens, one label begins another, two differ in their last token alone.
LABELS = [[11], [11, 23], [11, 23, 31], [11, 23, 31, 47], [11, 23, 31, 48], [12, 23], [13, 60, 61, 62], [13, 60], [14, 11, 23]]
PREFIX = [1, 5, 9, 80, 81, 7, 7]
# The second query begins the third; the fifth repeats a token; lengths differ.
QUERIES = [[33], [40, 41], [40, 41, 42, 43, 90], [55, 3, 71], [66, 66, 66, 66, 66, 66, 66, 66], [20, 95, 36, 27]]
ANSWERS = [3, 0, 5, 6, 8, 1]
SUFFIX = [4, 6]


def sequences():
    """Prompt (shared beginning, query, suffix), then the answer's tokens and the end token, which carry the loss."""
    out = []
    for query, answer in zip(QUERIES, ANSWERS):
        prompt = PREFIX + query + SUFFIX
        out.append({"ids": prompt + LABELS[answer] + [END], "prompt": len(prompt), "label": answer})
    return out


def fill(params, generator, scale):
    for name, p in params:
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.2 * noise if p.dim() == 1 else scale(name, p) * noise)


def weight_scale(name, p):
    """Large enough that logits differ by whole units (errors hide behind a near-uniform softmax); an untied head
    smaller, so that the gradient norm of that case falls below the clipping bound on the way."""
    if "embed" in name:
        return 0.4
    return (0.6 if "lm_head" in name else 1.0) / math.sqrt(p.shape[1])


def base_model(name, folder):
    config = LlamaConfig(num_hidden_layers=2, bos_token_id=1, eos_token_id=END, pad_token_id=0, **CONFIGS[name])
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(SEED)
    fill(model.named_parameters(), generator, weight_scale)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    return load(folder, torch.float32)


def write_hub_config(folder):
    """The same configuration with the keys that model folders on the hub still use (`rope_theta`, `rope_scaling`)."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] == "llama3" else None
    config["torch_dtype"] = config.pop("dtype")
    manifest.write_json(folder / "config.hub.json", config)
    ours, theirs = LlamaConfig.from_pretrained(folder), LlamaConfig(**config)
    assert ours.rope_parameters == theirs.rope_parameters, (ours.rope_parameters, theirs.rope_parameters)


def load(folder, dtype):
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def write_adapter(model, folder, base_name, **options):
    """A PEFT adapter folder as PEFT saves it, A and B both random (PEFT's own start has B = 0)."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                        target_modules=PROJECTIONS, **options)
    peft = get_peft_model(model, config)
    lora = [(n, p) for n, p in peft.named_parameters() if p.requires_grad]
    fill(lora, torch.Generator().manual_seed(SEED + 1), lambda n, p: 0.6 / math.sqrt(p.shape[1]) if "lora_A" in n else 0.15)
    peft.peft_config["default"].base_model_name_or_path = base_name
    peft.save_pretrained(folder)
    (folder / "README.md").unlink()
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved["target_modules"] = sorted(saved["target_modules"])  # a set in PEFT: its order changes from run to run
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2))


def with_adapter(base, adapter, dtype):
    return PeftModel.from_pretrained(load(base, dtype), adapter, is_trainable=True, autocast_adapter_dtype=False).to(dtype).eval()


@torch.no_grad()
def logits(model, sequence):
    return model(input_ids=torch.tensor([sequence["ids"]]), use_cache=False).logits[0]


@torch.no_grad()
def label_table(model):
    """[prompts, labels]: log of the product of the label's token probabilities, end token included, not normalised."""
    rows = []
    for query in QUERIES:
        prompt = PREFIX + query + SUFFIX
        row = []
        for label in LABELS:
            answer = label + [END]
            logp = logits(model, {"ids": prompt + answer}).log_softmax(-1)[len(prompt) - 1:-1]
            row.append(logp.gather(1, torch.tensor(answer)[:, None]).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def compute(folder, dtype):
    """Every number of a case: (tensors by name, losses by name, the AdamW steps)."""
    tensors, losses = {}, {}
    batch = sequences()
    base, adapted = load(folder, dtype), with_adapter(folder, folder / "adapter", dtype)
    for name, model in [("base", base), ("lora", adapted)]:
        for i, sequence in enumerate(batch):
            tensors[f"{name}.logits.{i}"] = logits(model, sequence)
        tensors[f"{name}.label_logprobs"] = label_table(model)
        losses[name], grads = gradients(model, batch)
        if name == "lora" or folder.name == "tied":
            tensors |= {f"{name}.grad.{adapter_key(n)}": g for n, g in grads.items()}
    steps = train(adapted, batch, LR)
    tensors |= {f"lora.trained.{adapter_key(n)}": p.detach() for n, p in adapted.named_parameters() if p.requires_grad}
    if (folder / "rslora").exists():
        tensors["rslora.logits.0"] = logits(with_adapter(folder, folder / "rslora", dtype), batch[0])
    return tensors, losses, steps


def padded_loss(folder):
    """The loss as the usual training loop gets it: one right-padded batch with an attention mask, in f32."""
    batch = sequences()
    width = max(len(s["ids"]) for s in batch)
    ids = torch.tensor([s["ids"] + [0] * (width - len(s["ids"])) for s in batch])
    mask = torch.tensor([[1] * len(s["ids"]) + [0] * (width - len(s["ids"])) for s in batch])
    column = torch.arange(width)[None]
    labelled = (column >= torch.tensor([[s["prompt"]] for s in batch])) & (mask == 1)
    model = with_adapter(folder, folder / "adapter", torch.float32)
    return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~labelled, -100)).loss.item()


def deviation(exact, rough):
    """The largest difference per kind of tensor, absolute, between the f64 and the f32 run."""
    out = {}
    for name, tensor in exact.items():
        kind = ".".join(name.split(".")[:2])
        out[kind] = max(out.get(kind, 0.0), (tensor - rough[name]).abs().max().item())
    return out


def make_case(name, out):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    write_adapter(base_model(name, folder), folder / "adapter", name)
    write_hub_config(folder)
    if name == "tied":
        write_adapter(load(folder, torch.float32), folder / "rslora", name, use_rslora=True)
        a, b = (load_file(folder / kind / "adapter_model.safetensors") for kind in ("adapter", "rslora"))
        assert all(torch.equal(a[k], b[k]) for k in a), "the two adapters differ in their scale alone"
    with double_norms():
        tensors, losses, steps = compute(folder, torch.float64)
    rough, rough_losses, rough_steps = compute(folder, torch.float32)
    padded = padded_loss(folder)
    assert abs(padded - losses["lora"]) < 1e-5, (padded, losses["lora"])
    save_file({n: t.float().contiguous() for n, t in tensors.items()}, folder / "case.safetensors")
    manifest.write_json(folder / "case.json", {
        "end": END, "prefix": PREFIX, "labels": LABELS, "sequences": sequences(),
        "lora": {"rank": RANK, "alpha": ALPHA}, "loss": losses, "optimizer": {**OPTIMIZER, "lr": LR}, "steps": steps,
        "deviation_f32": {**deviation(tensors, rough),
                          "loss": max(abs(losses[n] - rough_losses[n]) for n in losses),
                          "steps.loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(steps, rough_steps))},
    })
    print(name, losses, [round(s["grad_norm"], 3) for s in steps], [round(s["loss"], 4) for s in steps])


def llama32_frequencies():
    """Rotary inverse frequencies of Llama 3.2 1B (f32 values), whose scaling parameters are public in its config."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=64, max_position_embeddings=131072, rope_parameters=dict(rope))
    frequencies, attention_scaling = ROPE_INIT_FUNCTIONS["llama3"](config)
    assert attention_scaling == 1.0
    return {"head_dim": 64, "rope_parameters": rope, "inverse_frequencies": frequencies.tolist()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parents[2] / "fixtures" / "llama")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    for name in CONFIGS:
        make_case(name, out)
    manifest.write_json(out / "llama32_rope.json", llama32_frequencies())
    files = [f for name in CONFIGS for f in (out / name).rglob("*") if f.is_file()] + [out / "llama32_rope.json"]
    manifest.update(out, "llama.py", files, seed=SEED)
    print(sum(f.stat().st_size for f in files), "bytes in", len(files), "files")


if __name__ == "__main__":
    main()
