"""Reads exports of frontdesk with other programs and compares their top labels with frontdesk's own, row by row.

    python export.py FOLDER --predictions FILE.jsonl [--base BASE] [--n 500] [--min-agreement 0.99]
FOLDER: what `frontdesk export` wrote, in any form. FILE: what `frontdesk eval --predictions` wrote for the run.
BASE: for an adapter, the GGUF file or the model folder that it belongs to.
Hugging Face forms are read by transformers (and PEFT), GGUF forms by llama.cpp through llama-cpp-python, and every key
and tensor of a GGUF file by `gguf`. P(label | query) is computed as in adapter.py: the product of the label's token
probabilities, end token included. The tokens of the query come from the export's own tokenizer: of a GGUF file, from
llama.cpp's. Exit code 1: agreement is below --min-agreement. Exit code 2: the inputs do not fit together.
Needs requirements.txt for the Hugging Face forms and requirements-llama.txt for the others.
"""
import argparse
import json
import random
import sys
import time
from pathlib import Path


def refuse(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class LlamaCpp:
    """Scores labels with llama.cpp: the prompt's prefix and the query once, then every label's tokens as sequences of
    their own that share it."""

    def __init__(self, folder, base, routing, threads):
        import llama_cpp
        import numpy

        self.cpp, self.np = llama_cpp, numpy
        llama_cpp.llama_backend_init()
        adapter = folder / "adapter.gguf"
        path = base if adapter.exists() else folder / "model.gguf"
        for file in {path, adapter} if adapter.exists() else {path}:
            self.read_all(file)
        self.labels, self.prompt = routing["labels"], routing["prompt"]
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        # One sequence of the prompt, one for each label.
        self.sequences = len(self.labels) + 1
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = 8192, 2048, 512, self.sequences
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.model or not self.context:
            refuse(f"llama.cpp could not open {path}")
        if adapter.exists():
            lora = llama_cpp.llama_adapter_lora_init(self.model, str(adapter).encode())
            if not lora or self.set_lora(lora):
                refuse(f"llama.cpp could not use {adapter}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.check_tokenizer()
        self.decode([(token, at, [0], False) for at, token in enumerate(self.prompt["prefix_ids"])])

    def set_lora(self, lora):
        import ctypes

        cpp = self.cpp
        if hasattr(cpp, "llama_set_adapters_lora"):
            return cpp.llama_set_adapters_lora(self.context, (type(lora) * 1)(lora), 1, (ctypes.c_float * 1)(1.0))
        return cpp.llama_set_adapter_lora(self.context, lora, 1.0)

    def read_all(self, path):
        from gguf import GGUFReader

        reader = GGUFReader(path)
        for field in reader.fields.values():
            field.contents()
        for tensor in reader.tensors:
            assert tensor.data.size
        print(f"{path.name}: {len(reader.fields)} keys, {len(reader.tensors)} tensors read by gguf", file=sys.stderr)

    def tokens(self, text, special=False):
        raw = text.encode()
        out = (self.cpp.llama_token * (len(raw) + 8))()
        count = self.cpp.llama_tokenize(self.vocab, raw, len(raw), out, len(out), False, special)
        return list(out[:count])

    def check_tokenizer(self):
        """llama.cpp cuts the prompt and the labels into the tokens that the model was trained with."""
        for part in ["prefix", "suffix"]:
            if self.tokens(self.prompt[part], special=True) != self.prompt[f"{part}_ids"]:
                refuse(f"llama.cpp tokenizes the prompt's {part} in another way")
        for label in self.labels:
            if self.tokens(label["answer"]) != label["ids"][:-1]:
                refuse(f"llama.cpp tokenizes the label {label['answer']!r} in another way")

    def decode(self, rows):
        """Runs `(token, position, sequences, wants logits)` rows; returns the log-probabilities of those that want them."""
        cpp = self.cpp
        batch = cpp.llama_batch_init(len(rows), 0, self.sequences)
        batch.n_tokens = len(rows)
        for i, (token, at, sequences, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, at, len(sequences), wanted
            for j, sequence in enumerate(sequences):
                batch.seq_id[i][j] = sequence
        failed = cpp.llama_decode(self.context, batch)
        cpp.llama_batch_free(batch)
        if failed:
            refuse(f"llama.cpp could not run {len(rows)} tokens ({failed})")
        found = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = self.np.ctypeslib.as_array(cpp.llama_get_logits_ith(self.context, i), shape=(self.size,)).astype("float64")
                top = logits.max()
                found.append(logits - top - self.np.log(self.np.exp(logits - top).sum()))
        return found

    def best(self, text):
        cpp, start = self.cpp, len(self.prompt["prefix_ids"])
        query = self.tokens(text)[: self.prompt["max_tokens"]] + self.prompt["suffix_ids"]
        last = len(query) - 1
        first = self.decode([(token, start + i, [0], i == last) for i, token in enumerate(query)])[0]
        # One row for each distinct beginning of a label; labels that share it share the row.
        begin, rows, row_of = start + len(query), [], {}
        for label, it in enumerate(self.labels):
            for length in range(1, len(it["ids"])):
                key = tuple(it["ids"][:length])
                if key not in row_of:
                    row_of[key] = len(rows)
                    rows.append([it["ids"][length - 1], begin + length - 1, [], True])
                rows[row_of[key]][2].append(label + 1)
        for label in range(len(self.labels)):
            cpp.llama_memory_seq_cp(self.memory, 0, label + 1, 0, begin)
        # Parents before children, so that every row finds what it attends to.
        order = sorted(range(len(rows)), key=lambda i: rows[i][1])
        found = dict(zip(order, self.decode([tuple(rows[i]) for i in order])))
        scores = []
        for it in self.labels:
            score = first[it["ids"][0]]
            for length in range(1, len(it["ids"])):
                score += found[row_of[tuple(it["ids"][:length])]][it["ids"][length]]
            scores.append(score)
        for label in range(len(self.labels)):
            cpp.llama_memory_seq_rm(self.memory, label + 1, -1, -1)
        cpp.llama_memory_seq_rm(self.memory, 0, start, -1)
        return max(range(len(scores)), key=scores.__getitem__)


class Transformers:
    """Scores labels with transformers, and PEFT for an adapter, by the label trie of adapter.py."""

    def __init__(self, folder, base, routing, threads):
        import adapter
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch, self.prompt = torch, routing["prompt"]
        torch.set_num_threads(threads)
        if (folder / "adapter_config.json").exists():
            model = adapter.load_model(base, folder, torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder)
            if model.dtype not in (torch.float16, torch.bfloat16):
                refuse(f"transformers loads {folder} as {model.dtype}, not in the type of its files")
            model = model.float().eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.backend_tokenizer.encode_special_tokens = True
        labels = [label["ids"] for label in routing["labels"]]
        with torch.inference_mode():
            self.scorer = adapter.Scorer(model, self.prompt["prefix_ids"], self.prompt["suffix_ids"], labels)

    def best(self, text):
        query = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids[: self.prompt["max_tokens"]]
        with self.torch.inference_mode():
            return int(self.scorer.score(query).argmax())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--min-agreement", type=float, default=0.99)
    args = parser.parse_args()

    adapter = any((args.folder / name).exists() for name in ["adapter_config.json", "adapter.gguf"])
    if adapter and args.base is None:
        refuse(f"{args.folder} is an adapter: name its base model with --base")
    routing = json.loads((args.folder / "routing.json").read_text(encoding="utf-8"))
    names = [label["label"] for label in routing["labels"]]
    rows = [json.loads(line) for line in args.predictions.read_text(encoding="utf-8").splitlines() if line.strip()]
    picked = [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), min(args.n, len(rows))))]
    gguf = (args.folder / "model.gguf").exists() or (args.folder / "adapter.gguf").exists()
    reader = (LlamaCpp if gguf else Transformers)(args.folder, args.base, routing, args.threads)
    agreed, right, theirs_right, began = 0, 0, 0, time.perf_counter()
    for row in picked:
        if row["predicted"] not in names:
            refuse(f"predicted label {row['predicted']!r} is not a label of {args.folder}")
        best = names[reader.best(row["text"].strip())]
        agreed += best == row["predicted"]
        right += best == row["label"]
        theirs_right += row["predicted"] == row["label"]
        if best != row["predicted"]:
            print(f"differs: {row['text']!r}: {best} there, {row['predicted']} here", file=sys.stderr)
    agreement = agreed / len(picked)
    print(json.dumps({"folder": args.folder.name, "reader": type(reader).__name__, "rows": len(picked), "agreement": agreement,
                      "accuracy": right / len(picked), "accuracy_predictions": theirs_right / len(picked),
                      "seconds_per_row": (time.perf_counter() - began) / len(picked)}))
    sys.exit(0 if agreement >= args.min_agreement else 1)


if __name__ == "__main__":
    main()
