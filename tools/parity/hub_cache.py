"""Whether crate hub and the Python client of the hub read each other's cache, against one server in this process.

    pip install huggingface_hub==2.4.0
    python hub_cache.py [PROGRAM...]   default PROGRAM: cargo run --release -q -p hub --example pull --

PROGRAM gets a model's name and prints the path of the model. Exits with 1 at the first difference.
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parents[2]
ID, COMMIT = "org/repo", "0123456789abcdef0123456789abcdef01234567"
NEEDED = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": bytes(range(256)) * 4096,
    "model-2.safetensors": bytes(range(255)) * 4096,
}
FILES = {**NEEDED, "README.md": b"# a model", "quants/m.gguf": b"GGUF" * 10_000}


def is_file(path):
    return not path.startswith("/api/") or path.startswith("/api/resolve-cache/")


def is_large(name):
    return name.endswith((".safetensors", ".gguf"))


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(name):
    return hashlib.sha256(FILES[name]).hexdigest() if is_large(name) else git_sha1(FILES[name])


def listed(name):
    data = FILES[name]
    entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
    if is_large(name):
        entry["lfs"] = {"oid": etag(name), "size": len(data), "pointerSize": 134}
    return entry


class Origin(BaseHTTPRequestHandler):
    """The hub's own origin; the large files' bytes are on the other one."""

    protocol_version = "HTTP/1.1"
    other = None
    sent = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path).replace("/resolve/main/", f"/resolve/{COMMIT}/")
        resolve, moved = f"/{ID}/resolve/{COMMIT}/", f"/api/resolve-cache/models/{ID}/{COMMIT}/"
        commit = {"X-Repo-Commit": COMMIT}
        if path in (f"/api/models/{ID}/revision/{rev}" for rev in ("main", COMMIT)):
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(200, json.dumps({"id": ID, "modelId": ID, "sha": COMMIT, "siblings": siblings}).encode())
        elif path in (f"/api/models/{ID}/tree/{rev}" for rev in ("main", COMMIT)):
            self.answer(200, json.dumps([listed(name) for name in FILES]).encode(), commit)
        elif path.startswith(resolve) and is_large(name := path[len(resolve) :]):
            linked = {"X-Linked-Etag": f'"{etag(name)}"', "X-Linked-Size": str(len(FILES[name]))}
            self.answer(302, b"", {**commit, **linked, "Location": f"{self.other}/{name}?signature=1"})
        elif path.startswith(resolve):
            self.answer(307, b"", {**commit, "Location": moved + path[len(resolve) :]})
        elif path.startswith(moved):
            name = path[len(moved) :]
            self.answer(200, FILES[name], {**commit, "ETag": f'"{etag(name)}"'})
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status, body, headers=None):
        self.sent.append((self.command, self.path))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Bytes(Origin):
    def do_GET(self):
        self.answer(200, FILES[unquote(urlparse(self.path).path)[1:]], {"ETag": '"of-the-other-origin"'})


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def ours(program, home, name, offline=False):
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([*program, name], cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def tree(cache):
    """Every file and link of one cache that both clients must agree on."""
    model = cache / "models--org--repo"
    found = {"refs/main": (model / "refs/main").read_text()}
    for path in sorted(p for part in ("blobs", "snapshots") for p in (model / part).rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(model))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(model))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check(what, left, right):
    print("equal  " if left == right else "DIFFERS", what)
    if left != right:
        sys.exit(f"one:   {left}\nother: {right}")


def main():
    Origin.other = serve(Bytes)
    os.environ["HF_ENDPOINT"] = serve(Origin)
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    program = sys.argv[1:] or "cargo run --release -q -p hub --example pull --".split()
    # The client reads its environment when it is imported.
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder, "one"), Path(folder, "other")

        path = ours(program, one, ID)
        cache = one / "hub"
        check("a folder of ours, found by the client", str(path), snapshot_download(ID, cache_dir=cache, local_files_only=True))
        check("its bytes", {p.name: p.read_bytes() for p in path.iterdir()}, NEEDED)
        report = scan_cache_dir(cache)
        check("the client's own check of our cache", ([], 1), (report.warnings, len(report.repos)))
        before = len(Origin.sent)
        snapshot_download(ID, cache_dir=cache, allow_patterns=list(NEEDED))
        fetched = [path for method, path in Origin.sent[before:] if method == "GET" and is_file(path)]
        check("files of ours that the client fetches again", fetched, [])

        theirs = snapshot_download(ID, cache_dir=other / "hub", allow_patterns=list(NEEDED))
        check("a folder of the client's, found by ours offline", ours(program, other, ID, offline=True), Path(theirs))
        check("the two caches, file by file and link by link", tree(cache), tree(other / "hub"))

        path = ours(program, one, f"{ID}:quants/m.gguf")
        found = hf_hub_download(ID, "quants/m.gguf", cache_dir=cache, local_files_only=True)
        check("a GGUF file of ours, found by the client", str(path), found)
        theirs = hf_hub_download(ID, "quants/m.gguf", cache_dir=other / "hub")
        check("a GGUF file of the client's, found by ours offline", ours(program, other, f"{ID}:quants/m.gguf", offline=True), Path(theirs))
        check("the two caches again", tree(cache), tree(other / "hub"))


if __name__ == "__main__":
    main()
