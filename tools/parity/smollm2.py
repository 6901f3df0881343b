"""What transformers + PEFT compute with the real SmolLM2-135M-Instruct, read from its Q4_1 GGUF.

    python smollm2.py GGUF [OUT]        default OUT: fixtures/llama of this repository; writes smollm2.json there
Values are computed in f64 from the dequantised f32 weights; `deviation_f32` says how far the same code in f32 lands.
"""
import argparse
import math
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

import manifest
from training import OPTIMIZER, PROJECTIONS, adapter_key, batch_loss, double_norms, gradients, train

RANK, ALPHA, LR = 4, 8, 1e-3
FORMULA = ("module m = 7 * layer + index in [q, k, v, o, gate, up, down], element i of the row-major matrix, in f64 rounded to f32: "
           "A[i] = sin(0.37 * i + m) * 0.02, B[i] = cos(0.53 * i + m) * 0.02")
STRINGS = [
    "How do I locate my card?",
    "  two leading spaces,  two inside, one behind ",
    "I'm sure they've charged me twice; it's £12.50 (or $15)!",
    "Order 1234567890 from 2024-05-06",
    "line one\nline two\r\n\n\tindented\n",
    "Où est ma carte de crédit? Größe, naïve, Ærø",
    "我的卡在哪里? カードはどこですか",
    "🚗💥 my car 👍🏽",
    "٣ يوم and ½ of Ⅳ",
    "<|im_start|>user\nhello<|im_end|>",
    "fn main() { println!(\"{:?}\", a_b[0]); } // https://example.com/a?b=c&d=%20",
    "",
]
SYSTEM = "You are a helpful assistant who can route the following query to the relevant department."
CONVERSATIONS = [
    {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Someone hit my parked car."}],
     "add_generation_prompt": True},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! How can I help?"},
                  {"role": "user", "content": "Cancel my policy, please."}],
     "add_generation_prompt": False},
]
PROMPTS = ["The capital of France is", "<|im_start|>user\nWhat is two plus two?<|im_end|>\n<|im_start|>assistant\n",
           "Once upon a time there was a bank that lost"]
EXAMPLES = [("Where is the card I ordered last week?", "card arrival"), ("Why was I charged twice?", "transaction charged twice"),
            ("I forgot my PIN", "passcode forgotten"), ("My new card still has not come", "card arrival")]


def values(tensor):
    """To seven digits, finer than f32 code agrees."""
    return [float(f"{x:.7g}") for x in tensor.flatten().tolist()]


def load_tokenizer(gguf):
    """The file names its splitting `smollm` (single digits, then GPT-2's), which transformers reads as plain GPT-2's."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return tokenizer


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def render(tokenizer, messages, add_generation_prompt):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def examples(tokenizer):
    """Rendered prompt, then the label and the end-of-turn token, which carry the loss."""
    out = []
    for query, label in EXAMPLES:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": query}]
        prompt = encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))
        out.append({"query": query, "label": label, "prompt": len(prompt), "ids": prompt + encode(tokenizer, label + "<|im_end|>")})
    return out


@torch.no_grad()
def look(model, ids):
    """(log-probabilities of the next token, hidden states): the states are the embeddings' and each layer's output,
    the last layer's after the final norm."""
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return out.logits[0, -1].log_softmax(-1), [h[0] for h in out.hidden_states]


def fill_adapter(model):
    layers = model.base_model.model.model.layers
    for number, layer in enumerate(layers):
        for index, name in enumerate(PROJECTIONS):
            module = getattr(layer.self_attn if index < 4 else layer.mlp, name)
            m = 7 * number + index
            for weight, wave, step in [(module.lora_A["default"].weight, math.sin, 0.37), (module.lora_B["default"].weight, math.cos, 0.53)]:
                numbers = [wave(step * i + m) * 0.02 for i in range(weight.numel())]
                weight.data.copy_(torch.tensor(numbers, dtype=torch.float64).float().view(weight.shape))


def with_adapter(model):
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=PROJECTIONS)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    fill_adapter(adapted)
    return adapted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parents[2] / "fixtures" / "llama")
    args = parser.parse_args()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(args.gguf)
    model = AutoModelForCausalLM.from_pretrained(args.gguf.parent, gguf_file=args.gguf.name, dtype=torch.float32,
                                                 quantization_config=GgufConfig(dequantize=True)).eval()
    batch = examples(tokenizer)
    prompts = [encode(tokenizer, text) for text in PROMPTS]

    rough = [look(model, ids)[0] for ids in prompts]
    with double_norms():
        model = model.double()
        exact = [look(model, ids) for ids in prompts]
        with torch.no_grad():
            base_loss = batch_loss(model, batch).item()
        model = with_adapter(model)
        lora_loss, grads = gradients(model, batch)
        steps = train(model, batch, LR)
    model = model.float()
    fill_adapter(model)
    rough_loss, rough_grads = gradients(model, batch)
    rough_steps = train(model, batch, LR)

    next_tokens = []
    for text, ids, (logprobs, states) in zip(PROMPTS, prompts, exact):
        top = logprobs.topk(20)
        next_tokens.append({"text": text, "ids": ids, "top_ids": top.indices.tolist(), "top_logprobs": values(top.values),
                            "last_token_norms": values(torch.stack([h[-1].norm() for h in states])),
                            "final_norms": values(states[-1].norm(dim=-1)), "final_last": values(states[-1][-1, :8])})
    path = args.out / "smollm2.json"
    manifest.write_json(path, {
        "gguf": {"file": args.gguf.name, "sha256": manifest.sha256(args.gguf)},
        "strings": [{"text": s, "ids": encode(tokenizer, s)} for s in STRINGS],
        "conversations": [{**c, "text": render(tokenizer, **c)} for c in CONVERSATIONS],
        "next_tokens": next_tokens,
        "training": {
            "examples": batch, "lora": {"rank": RANK, "alpha": ALPHA, "formula": FORMULA}, "base_loss": base_loss,
            "lora_loss": lora_loss, "optimizer": {**OPTIMIZER, "lr": LR}, "steps": steps,
            "gradients": {adapter_key(n): values(torch.cat([g.norm()[None], g.flatten()[:8]])) for n, g in grads.items()},
        },
        "deviation_f32": {
            "logprobs": max((a - b[0]).abs().max().item() for a, b in zip(rough, exact)),
            "lora_loss": abs(lora_loss - rough_loss),
            "gradient_relative": max(((g - rough_grads[n]).norm() / g.norm()).item() for n, g in grads.items()),
            "steps.loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(steps, rough_steps)),
        },
    })
    manifest.update(args.out, "smollm2.py", [path], gguf_sha256=manifest.sha256(args.gguf), seed=FORMULA)
    print(path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
