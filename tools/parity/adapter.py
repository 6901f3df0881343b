"""Reads a run folder of frontdesk with PEFT, scores every label of n rows, and compares with frontdesk's own answers.

    python adapter.py RUN BASE --data test.csv --predictions FILE.jsonl [--n 500] [--dtype f32|bf16]
RUN: run folder (adapter, tokenizer.json, frontdesk.json). BASE: GGUF file or model folder that RUN was trained on.
P(label | query) is the product of the label's token probabilities, end token included, normalised over the labels; a
calibration temperature in frontdesk.json divides the labels' log-probabilities before that. Exit code 1: agreement is
below --min-agreement. Exit code 2: the inputs do not fit together.
"""
import argparse
import csv
import json
import random
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache, GgufConfig
from transformers.utils import logging

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def refuse(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class Trie:
    """The labels' tokens as a tree under the prompt's last token, which is node -1 here and row 0 of the logits.

    Only nodes with children are fed to the model: a leaf (an end token) is scored at its parent and predicts nothing.
    """

    def __init__(self, labels):
        if len({ids[-1] for ids in labels}) != 1:
            refuse("`labels[].ids` must all end with the same end-of-turn token")
        self.tokens, self.parents, self.depths = [], [], []
        node_of = {(): -1}
        for ids in labels:
            for length in range(1, len(ids)):
                path = tuple(ids[:length])
                if path not in node_of:
                    node_of[path] = len(self.tokens)
                    self.tokens.append(ids[length - 1])
                    self.parents.append(node_of[path[:-1]])
                    self.depths.append(length - 1)
        steps = [(label, node_of[tuple(ids[:at])] + 1, token) for label, ids in enumerate(labels) for at, token in enumerate(ids)]
        self.step_labels, self.step_rows, self.step_tokens = torch.tensor(steps).T
        self.visible = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                self.visible[node] |= self.visible[parent]


class Scorer:
    """Scores all labels of a query in one pass: prompt's beginning from a cache, then query, suffix and label trie."""

    def __init__(self, model, prefix, suffix, labels):
        self.model, self.suffix, self.trie, self.labels = model, suffix, Trie(labels), len(labels)
        self.cache = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([prefix]), past_key_values=self.cache, logits_to_keep=1)
        self.start = len(prefix)

    def score(self, query):
        """Log of the product of each label's token probabilities, [labels], f64."""
        chain, nodes, start = query + self.suffix, len(self.trie.tokens), self.start
        length = len(chain)
        mask = torch.zeros(length + nodes, start + length + nodes, dtype=torch.bool)
        mask[:, :start] = True
        mask[:length, start:start + length] = torch.ones(length, length, dtype=torch.bool).tril()
        mask[length:, start:start + length] = True
        mask[length:, start + length:] = self.trie.visible
        positions = list(range(start, start + length)) + [start + length + depth for depth in self.trie.depths]
        logits = self.model(input_ids=torch.tensor([chain + self.trie.tokens]), attention_mask=mask[None, None],
                            position_ids=torch.tensor([positions]), past_key_values=self.cache, logits_to_keep=nodes + 1).logits[0].float()
        self.cache.crop(-(length + nodes))
        scored = logits[self.trie.step_rows, self.trie.step_tokens] - logits.logsumexp(-1)[self.trie.step_rows]
        return torch.zeros(self.labels, dtype=torch.float64).index_add(0, self.trie.step_labels, scored.double())


def load_model(base, run, dtype):
    options = {} if base.is_dir() else {"gguf_file": base.name, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(base if base.is_dir() else base.parent, dtype=dtype, **options)
    return PeftModel.from_pretrained(model, run, autocast_adapter_dtype=False).to(dtype).eval()


def read_rows(data, predictions, n):
    """n predictions of the data file's rows, a fixed sample in file order."""
    with open(data, newline="", encoding="utf-8") as file:
        texts = [row["text"].strip() for row in csv.DictReader(file)]
    with open(predictions, encoding="utf-8") as file:
        by_text = {row["text"].strip(): row for row in map(json.loads, filter(str.strip, file))}
    missing = [text for text in texts if text not in by_text]
    if missing:
        refuse(f"{predictions} lacks {len(missing)} of the {len(texts)} rows of {data}, the first: {missing[0]!r}")
    picked = sorted(random.Random(0).sample(range(len(texts)), min(n, len(texts))))
    return [by_text[texts[i]] for i in picked]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--min-agreement", type=float, default=0.995)
    args = parser.parse_args()
    logging.disable_progress_bar()

    frozen = json.loads((args.run / "frontdesk.json").read_text(encoding="utf-8"))
    names = [label["text"] for label in frozen["labels"]]
    temperature = (frozen.get("calibration") or {}).get("temperature", 1.0)
    tokenizer = Tokenizer.from_file(str(args.run / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a query that spells a special token is plain characters
    rows = read_rows(args.data, args.predictions, args.n)
    agreed, right, theirs_right, widest = 0, 0, 0, 0.0
    with torch.inference_mode():
        scorer = Scorer(load_model(args.base, args.run, DTYPES[args.dtype]), frozen["prompt"]["prefix_ids"],
                        frozen["prompt"]["suffix_ids"], [label["ids"] for label in frozen["labels"]])
        began = time.perf_counter()
        for row in rows:
            if row["predicted"] not in names:
                refuse(f"predicted label {row['predicted']!r} is not a label of {args.run}")
            query = tokenizer.encode(row["text"].strip(), add_special_tokens=False).ids[:frozen["prompt"]["max_tokens"]]
            probabilities = (scorer.score(query) / temperature).softmax(0)
            best = names[int(probabilities.argmax())]
            difference = abs(probabilities[names.index(row["predicted"])].item() - row["probability"])
            widest = max(widest, difference)
            agreed += best == row["predicted"]
            right += best == row["label"]
            theirs_right += row["predicted"] == row["label"]
            if best != row["predicted"]:
                print(f"differs: {row['text']!r}: {best} ({probabilities.max():.4f}) here, "
                      f"{row['predicted']} ({row['probability']:.4f}) there", file=sys.stderr)
    agreement = agreed / len(rows)
    print(json.dumps({"rows": len(rows), "dtype": args.dtype, "agreement": agreement, "max_probability_difference": widest,
                      "accuracy": right / len(rows), "accuracy_predictions": theirs_right / len(rows),
                      "seconds_per_row": (time.perf_counter() - began) / len(rows)}))
    sys.exit(0 if agreement >= args.min_agreement else 1)


if __name__ == "__main__":
    main()
