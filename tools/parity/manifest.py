"""The manifest of a fixture folder: which script made which file from which seed and versions, and its SHA-256."""
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

PACKAGES = ["torch", "transformers", "peft", "safetensors", "tokenizers", "gguf"]


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def encode(value, indent=""):
    """JSON with one line a leaf: objects and lists of containers are spread out, lists of plain values are not."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {encode(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + "\n" + indent + "}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + encode(item, inner) for item in value) + "\n" + indent + "]"
    return json.dumps(value, ensure_ascii=False)


def write_json(path, value):
    Path(path).write_text(encode(value) + "\n", encoding="utf-8")


def update(folder, script, files, packages=PACKAGES, **facts):
    """Replaces the entry of `script` in folder/manifest.json, and leaves the other scripts' entries alone."""
    path = Path(folder) / "manifest.json"
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[script] = {
        **facts,
        "versions": {name: version(name) for name in packages},
        "sha256": {str(file.relative_to(folder)): sha256(file) for file in sorted(files)},
    }
    write_json(path, dict(sorted(entries.items())))
