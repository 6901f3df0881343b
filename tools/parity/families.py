"""Tiny random models of the other families with odd sizes, and what transformers + PEFT compute with them.

    python families.py [OUT]        default OUT: fixtures/families of this repository
Decoders (Phi-3, GPT-Neo) are asked what Llama is asked in llama.py, and also for the gradient of every weight; Phi-3 also
about a text beyond its original window. Encoders (BERT, DistilBERT) are asked for their outputs, the mean of them, and for
the loss, gradients and training of a linear head on that mean; also for a head on the first output. Values are computed in f64 from f32 weights, as there.
"""
import argparse
import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, DistilBertConfig, GPTNeoConfig, Phi3Config
from transformers.models.phi3 import modeling_phi3
from transformers.utils import logging

import llama
import manifest
from llama import ALPHA, END, PREFIX, RANK, SEED, deviation, fill, logits, sequences
from training import OPTIMIZER, adapter_key, double_norms, gradients

SHORT, LONG = [1.0, 1.3, 2.0, 1.7, 1.1], [1.2, 4.0, 6.5, 3.0, 5.0]
DECODERS = {
    "phi3": (Phi3Config, dict(
        vocab_size=97, hidden_size=60, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
        max_position_embeddings=256, original_max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=END, pad_token_id=0, sliding_window=262144,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG,
                         "original_max_position_embeddings": 64}),
        ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "gpt-neo": (GPTNeoConfig, dict(
        vocab_size=97, hidden_size=36, intermediate_size=52, num_layers=2, num_heads=3, max_position_embeddings=48,
        attention_types=[[["global", "local"], 1]], window_size=5, bos_token_id=1, eos_token_id=END, pad_token_id=0,
        attention_dropout=0.0, embed_dropout=0.0, resid_dropout=0.0),
        ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"]),
}
ENCODERS = {
    "bert": (BertConfig, dict(
        vocab_size=89, hidden_size=36, intermediate_size=58, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=40,
        type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]),
    "distilbert": (DistilBertConfig, dict(
        vocab_size=89, dim=36, hidden_dim=50, n_layers=2, n_heads=3, max_position_embeddings=40, dropout=0.0,
        attention_dropout=0.0),
        ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]),
}
TEXTS = [[1, 33, 2], [1, 40, 41, 2], [1, 40, 41, 42, 43, 88, 7, 2], [1, 55, 3, 71, 2], [1] + [66] * 19 + [2], [1, 20, 85, 36, 27, 2]]
LABELS, CLASSES = [3, 0, 2, 4, 1, 3], 5
BEYOND = {"ids": PREFIX + [(7 * i * i + 3 * i) % 90 + 5 for i in range(80)] + [11, 23, END], "prompt": len(PREFIX) + 80}
LR = 1e-2


def scale(name, p):
    if "embed" in name or "wte" in name or "wpe" in name:
        return 0.4
    return (0.6 if "lm_head" in name else 1.0) / math.sqrt(p.shape[1])


def bias_too(params, generator):
    """As llama.fill, with biases around zero."""
    for name, p in params:
        if name.endswith(".bias"):
            p.data.copy_(0.2 * torch.randn(p.shape, generator=generator))
        else:
            fill([(name, p)], generator, scale)


def base_model(name, kind, options, auto, folder):
    config = kind(**options)
    model = auto.from_config(config).eval()
    bias_too(model.named_parameters(), torch.Generator().manual_seed(SEED))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def load(folder, auto, dtype):
    return auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval().to(dtype)


def write_adapter(folder, auto, targets, task):
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", task_type=task, target_modules=targets)
    peft = get_peft_model(load(folder, auto, torch.float32), config)
    lora = [(n, p) for n, p in peft.named_parameters() if p.requires_grad]
    fill(lora, torch.Generator().manual_seed(SEED + 1), lambda n, p: 0.6 / math.sqrt(p.shape[1]) if "lora_A" in n else 0.15)
    peft.peft_config["default"].base_model_name_or_path = folder.name
    peft.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    path = folder / "adapter" / "adapter_config.json"
    saved = llama.json.loads(path.read_text())
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(llama.json.dumps(saved, indent=2))


def adapted(folder, auto, dtype):
    model = PeftModel.from_pretrained(load(folder, auto, dtype), folder / "adapter", is_trainable=True, autocast_adapter_dtype=False)
    return model.to(dtype).eval()


def decoder(folder, dtype):
    tensors, losses = {}, {}
    batch = sequences()
    auto = AutoModelForCausalLM
    for name, model in [("base", load(folder, auto, dtype)), ("lora", adapted(folder, auto, dtype))]:
        for i, sequence in enumerate(batch):
            tensors[f"{name}.logits.{i}"] = logits(model, sequence)
        losses[name], grads = gradients(model, batch)
        tensors |= {f"{name}.grad.{adapter_key(n)}": g for n, g in grads.items()}
    if folder.name == "phi3":
        tensors["beyond.logits"] = logits(model, BEYOND)
        losses["beyond"], grads = gradients(model, [BEYOND])
        tensors |= {f"beyond.grad.{adapter_key(n)}": g for n, g in grads.items()}
    return tensors, losses


def head(dtype, width):
    generator = torch.Generator().manual_seed(SEED + 2)
    weight = (torch.randn(CLASSES, width, generator=generator) / math.sqrt(width)).to(dtype).requires_grad_()
    bias = (0.1 * torch.randn(CLASSES, generator=generator)).to(dtype).requires_grad_()
    return weight, bias


def mean_of(outputs):
    return outputs.mean(0)


def first_of(outputs):
    return outputs[0]


def head_loss(model, weight, bias, pooled=mean_of):
    features = torch.stack([pooled(model(input_ids=torch.tensor([ids])).last_hidden_state[0]) for ids in TEXTS])
    return torch.nn.functional.cross_entropy(features @ weight.T + bias, torch.tensor(LABELS))


def train_steps(parameters, loss_of):
    adamw = torch.optim.AdamW(parameters, lr=LR, betas=tuple(OPTIMIZER["betas"]), eps=OPTIMIZER["eps"], weight_decay=OPTIMIZER["weight_decay"])
    steps = []
    for step in range(OPTIMIZER["steps"]):
        for group in adamw.param_groups:
            group["lr"] = LR * (OPTIMIZER["steps"] - step) / OPTIMIZER["steps"]
        adamw.zero_grad()
        loss = loss_of()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER["max_grad_norm"])
        steps.append({"loss": loss.item(), "grad_norm": norm.item()})
        adamw.step()
    return steps


def encoder(folder, dtype):
    tensors, losses, steps = {}, {}, {}
    for name in ["base", "lora"]:
        model = load(folder, AutoModel, dtype) if name == "base" else adapted(folder, AutoModel, dtype)
        weight, bias = head(dtype, model.config.hidden_size)
        for i, ids in enumerate(TEXTS):
            with torch.no_grad():
                tensors[f"{name}.outputs.{i}"] = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        loss = head_loss(model, weight, bias)
        loss.backward()
        losses[name] = loss.item()
        named = [(adapter_key(n), p) for n, p in model.named_parameters() if p.requires_grad and "pooler" not in n]
        tensors |= {f"{name}.grad.{n}": p.grad.clone() for n, p in named}
        tensors |= {f"{name}.grad.head.weight": weight.grad.clone(), f"{name}.grad.head.bias": bias.grad.clone()}
        steps[name] = train_steps([p for _, p in named] + [weight, bias], lambda: head_loss(model, weight, bias))
    model, (weight, bias) = load(folder, AutoModel, dtype), head(dtype, model.config.hidden_size)
    loss = head_loss(model, weight, bias, first_of)
    loss.backward()
    losses["first"] = loss.item()
    vectors = {n: p.grad for n, p in model.named_parameters() if p.dim() == 1 and "pooler" not in n}
    tensors |= {f"first.grad.{n}": g for n, g in (vectors | {"head.weight": weight.grad, "head.bias": bias.grad}).items()}
    tensors["head.weight"], tensors["head.bias"] = (p.detach() for p in head(dtype, model.config.hidden_size))
    return tensors, losses, steps


def write_case(folder, exact, rough, **facts):
    tensors, losses, *steps = exact
    save_file({n: t.detach().float().contiguous() for n, t in tensors.items()}, folder / "case.safetensors")
    manifest.write_json(folder / "case.json", {
        **facts, "loss": losses, "optimizer": {**OPTIMIZER, "lr": LR}, **({"steps": steps[0]} if steps else {}),
        "deviation_f32": {**deviation(tensors, rough[0]), "loss": max(abs(losses[n] - rough[1][n]) for n in losses)}})
    print(folder.name, losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parents[2] / "fixtures" / "families")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name, (kind, options, targets) in (DECODERS | ENCODERS).items():
        folder, auto = out / name, AutoModelForCausalLM if name in DECODERS else AutoModel
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        base_model(name, kind, options, auto, folder)
        write_adapter(folder, auto, targets, "CAUSAL_LM" if name in DECODERS else None)
        compute = decoder if name in DECODERS else encoder
        with double_norms(modeling_phi3.Phi3RMSNorm):
            exact = compute(folder, torch.float64)
        facts = dict(prefix=PREFIX, sequences=sequences(), **({"beyond": BEYOND} if name == "phi3" else {})) if name in DECODERS else dict(texts=TEXTS, labels=LABELS, classes=CLASSES)
        write_case(folder, exact, compute(folder, torch.float32), **facts)
    files = [f for f in out.rglob("*") if f.is_file() and f.name != "manifest.json"]
    manifest.update(out, "families.py", files, seed=SEED)
    print(sum(f.stat().st_size for f in files), "bytes in", len(files), "files")


if __name__ == "__main__":
    main()
