"""Loss, gradients and AdamW steps of a Hugging Face model, in f32 as everybody runs it or in f64 as the reference."""
import contextlib

import torch
from transformers import get_linear_schedule_with_warmup
from transformers.models.llama import modeling_llama

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPTIMIZER = {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0,
             "schedule": "linear to 0 without warm-up: lr * (steps - step) / steps, step from 0", "steps": 10}


@contextlib.contextmanager
def double_norms(norm=modeling_llama.LlamaRMSNorm):
    """Keeps a RMSNorm in f64 for a f64 model: as released it computes in f32 whatever the dtype."""
    def forward(self, x):
        x = x.double()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    released = norm.forward
    norm.forward = forward
    try:
        yield
    finally:
        norm.forward = released


def batch_loss(model, sequences):
    """Mean cross-entropy over all labelled tokens of the batch, as Trainer has it; the prompt carries no loss."""
    total, count = 0.0, 0
    for sequence in sequences:
        ids, prompt = torch.tensor([sequence["ids"]]), sequence["prompt"]
        logits = model(input_ids=ids, use_cache=False).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[prompt - 1:-1], ids[0, prompt:], reduction="sum")
        count += ids.shape[1] - prompt
    return total / count


def gradients(model, sequences):
    """The batch's loss and the gradient of every parameter that trains."""
    model.zero_grad()
    loss = batch_loss(model, sequences)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def train(model, sequences, lr):
    """Runs OPTIMIZER["steps"] steps on the same batch: loss and gradient norm (before clipping) of each, and its rate."""
    params = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(params, lr=lr, betas=tuple(OPTIMIZER["betas"]), eps=OPTIMIZER["eps"],
                              weight_decay=OPTIMIZER["weight_decay"])
    schedule = get_linear_schedule_with_warmup(adamw, 0, OPTIMIZER["steps"])
    steps = []
    model.zero_grad()
    for _ in range(OPTIMIZER["steps"]):
        loss = batch_loss(model, sequences)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, OPTIMIZER["max_grad_norm"])
        steps.append({"loss": loss.item(), "grad_norm": norm.item(), "lr": schedule.get_last_lr()[0]})
        adamw.step()
        schedule.step()
        adamw.zero_grad()
    return steps


def adapter_key(name):
    """The name of a LoRA parameter in adapter_model.safetensors: PEFT leaves the adapter's own name out."""
    return name.replace(".default.", ".")
