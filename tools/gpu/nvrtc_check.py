#!/usr/bin/env python3
"""Compile the CUDA kernels with NVRTC for several architectures; no GPU is needed.

    pip install nvidia-cuda-nvrtc
    python tools/gpu/nvrtc_check.py            # exit code 1 when something does not compile
    python tools/gpu/nvrtc_check.py --usage    # registers, spills and static shared memory of each kernel
    python tools/gpu/nvrtc_check.py --out DIR  # keep the machine code, for cuobjdump or nvdisasm
"""

import argparse
import ctypes
import importlib.util
import pathlib
import re
import sys

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "crates/kernels/src/cuda/source"
ARCHITECTURES = ["75", "80", "90a"]
# Older devices have no bf16.
WITHOUT_BF16 = ["75"]
HEAD_SIZES = [6, 10, 64, 96, 128]
# What comes after attention.cu in each of its programs.
ATTENTION = [
    ["attention_plain.cu"],
    ["attention_forward.cu"],
    ["attention_backward.cu"],
    ["attention_hopper.cu", "attention_hopper_backward.cu"],
]


def library():
    """NVRTC from pip's wheel, or from the loader's path."""
    spec = importlib.util.find_spec("nvidia")
    folders = [pathlib.Path(folder) for folder in spec.submodule_search_locations] if spec else []
    found = sorted(path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*"))
    names = [str(path) for path in found] + ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    sys.exit("NVRTC was not found: pip install nvidia-cuda-nvrtc")


def programs():
    """Name, source and definitions of each program."""
    common = f'#line 1 "common.cu"\n{(SOURCES / "common.cu").read_text()}'
    for path in sorted(SOURCES.glob("*.cu")):
        if path.name == "common.cu" or path.name.startswith("attention_"):
            continue
        source = f'{common}\n#line 1 "{path.name}"\n{path.read_text()}'
        if path.name != "attention.cu":
            yield path.stem, source, []
            continue
        for parts in ATTENTION:
            whole = source
            for more in parts:
                whole += f'\n#line 1 "{more}"\n{path.with_name(more).read_text()}'
            for size in HEAD_SIZES:
                yield f"{parts[0].removesuffix('.cu')} {size}", whole, [f"-DHEAD_SIZE={size}"]


def compile_program(nvrtc, source, options):
    """The machine code (None when it failed) and the compiler's log."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"program.cu", 0, None, None)
    encoded = [option.encode() for option in options]
    result = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    code = None
    if result == 0:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code and code.raw, log.value.decode()


def usage(log):
    """One line a kernel, from the assembler's report."""
    for entry in re.split(r"(?=Compiling entry function)", log)[1:]:
        name = re.search(r"'(\w+)'", entry).group(1)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", entry)
        used = re.search(r"Used \d+ registers[^\n]*", entry)
        yield f"  {name}: {used.group(0) if used else '?'}, stack {spills.group(1)}, spilled {spills.group(2)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--usage", action="store_true", help="registers and spills of each kernel")
    parser.add_argument("--only", default="", help="programs whose name begins like this")
    parser.add_argument("--arch", action="append", help="75, 80, 90a; may be given again")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the machine code")
    given = parser.parse_args()
    nvrtc, failed = library(), 0
    architectures = given.arch or ARCHITECTURES
    types = [(architecture, kind) for architecture in architectures for kind in ("bf16", "f16")]
    for architecture, kind in types:
        if kind == "bf16" and architecture in WITHOUT_BF16:
            continue
        for name, source, definitions in programs():
            if not name.startswith(given.only):
                continue
            options = ["--std=c++17", f"--gpu-architecture=sm_{architecture}", *definitions]
            options += ["-DF16"] if kind == "f16" else []
            options += ["--ptxas-options=-v"] if given.usage else []
            code, log = compile_program(nvrtc, source, options)
            print(f"sm_{architecture} {kind} {name}: {'failed' if code is None else f'{len(code)} bytes'}")
            if code is None or "warning" in log:
                failed += 1
                print(log)
            if given.usage:
                print("\n".join(usage(log)))
            if code and given.out:
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / f"{name.replace(' ', '_')}_{kind}_sm{architecture}.cubin").write_bytes(code)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
