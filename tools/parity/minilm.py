"""What transformers says of all-MiniLM-L6-v2's real weights: token ids and mean outputs of some texts.

    python minilm.py FOLDER [OUT]        FOLDER: what `frontdesk pull minilm-l6` prints; default OUT: fixtures/families/minilm.json
"""
import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import manifest

TEXTS = ["I am still waiting on my card?", "What's the $ exchange-rate, please?", "Ünïcödé and 中文 text", "naïve café 12:30",
         "antidisestablishmentarianism " * 12, "emoji 🙂 and zero\u200bwidth", "a", "tab\tand\nnewline", "x" * 120, "don't re-order #4711"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parents[2] / "fixtures" / "families" / "minilm.json")
    args = parser.parse_args()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model = AutoModel.from_pretrained(args.folder, dtype=torch.float64, attn_implementation="eager").eval()
    texts = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=False)["input_ids"]
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        texts.append({"text": text, "ids": ids, "mean": [round(value, 7) for value in mean.tolist()]})
    manifest.write_json(args.out, {"weights_sha256": manifest.sha256(args.folder / "model.safetensors"), "texts": texts})
    manifest.update(args.out.parent, "minilm.py", [args.out])


if __name__ == "__main__":
    main()
