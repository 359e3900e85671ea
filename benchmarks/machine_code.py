"""Registers, spills, shuffles and instructions of the triton scan's kernels, compiled for GPUs that are not there.

    python benchmarks/machine_code.py [sm_80 sm_90 gfx942]

Prints a line of JSON per kernel: both directions of 384 channels, 16 states, bfloat16, batch 64, with the Triton that
is installed. An older version of the kernels is counted by its own checkout: PYTHONPATH=CHECKOUT. Counted is

- for NVIDIA (sm_...) what `nvdisasm` shows of the finished kernel; spilled are bytes of a thread's stack,
- for AMD (gfx...) the assembly; spilled are registers. Triton 3.3 wants ROCm's linker, which comes after that: a
  command that links nothing takes its place.

loops are the instructions of one round of each outermost loop, in order; one of less than 100 is left out.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from lightning_modules.ops.launch import compile_only
from lightning_modules.ops.scan import triton as scan
from lightning_modules.ops.scan.direction import Direction

NO_LINKER = '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && echo > "$2"; shift; done\n'
KERNELS = ("scan_forward", "walk", "scan_backward")
BATCH, LENGTH, CHANNELS, STATES = 64, 1569, 384, 16
SMALLEST = 100
SHUFFLES = re.compile(r"SHFL|ds_bpermute|ds_permute|ds_swizzle|v_permlane|\w+_dpp")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        linker = Path(folder, "ld.lld")
        linker.write_text(NO_LINKER)
        linker.chmod(0o700)
        os.environ.setdefault("TRITON_HIP_LLD_PATH", str(linker))
        count()
    return 0


def count() -> None:
    for target in sys.argv[1:] or ["sm_80", "sm_90", "gfx942"]:
        seen = set()
        for training in (False, True):
            for name, kernel in compiled(target, training):
                if name in KERNELS and (name, training) not in seen:
                    seen.add((name, training))
                    about = {"triton": triton.__version__, "target": target, "kernel": name, "training": training}
                    print(json.dumps(about | counted(kernel, target)), flush=True)


def compiled(target: str, training: bool) -> Iterator[tuple[str, Any]]:
    """Names and kernels of a forward pass and, in training, of its backward."""

    def direction() -> Direction:
        projected = torch.empty(BATCH, LENGTH, CHANNELS // 32 + 2 * STATES, dtype=torch.bfloat16)
        u, delta = (torch.empty(BATCH, LENGTH, CHANNELS, dtype=torch.bfloat16) for _ in range(2))
        A, D, bias = torch.empty(CHANNELS, STATES), torch.empty(CHANNELS), torch.empty(CHANNELS)
        return Direction(u, delta, A, *projected[..., -2 * STATES :].chunk(2, dim=-1), D, bias)

    compile_for = triton.compile
    is_amd = target.startswith("gfx")

    def for_amd(source: Any, target: Any, options: dict[str, Any], name: str = target) -> Any:
        options = {key: value for key, value in options.items() if key != "maxnreg"}
        return compile_for(source, target=GPUTarget("hip", name, 64), options=options)

    if is_amd:
        triton.compile = for_amd
    try:
        with torch.device("meta"), compile_only(90 if is_amd else int(target.removeprefix("sm_"))) as kernels:
            both, z = (direction(), direction()), torch.empty(BATCH, LENGTH, 2 * CHANNELS, dtype=torch.bfloat16)
            gate = z[..., CHANNELS:]
            y, *saved = scan._forward(both, gate, True, False, training)
            if training:
                scan._backward(y, tuple(saved), both, gate, True, False)
    finally:
        triton.compile = compile_for
    for name, _, kernel in kernels:
        yield name, kernel


def counted(kernel: Any, target: str) -> dict[str, Any]:
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        registers, spilled = (int(re.search(rf"\.vgpr_{what}:\s+(\d+)", text)[1]) for what in ("count", "spill_count"))
        code, loops = read(amd_lines(text), r"s_c?branch")
    else:
        used, text = disassembled(kernel.asm["cubin"])
        registers, spilled = used["REG"], used["STACK"]
        code, loops = read(nvidia_lines(text), r"BRA")
    shuffles = sum(bool(SHUFFLES.match(line)) for line in code)
    return {"registers": registers, "spilled": spilled, "shuffles": shuffles, "instructions": len(code),
            "loops": [end - start for start, end in loops if end - start >= SMALLEST]}  # fmt: skip


def disassembled(cubin: bytes) -> tuple[dict[str, int], str]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(cubin)
        run = {"capture_output": True, "text": True, "check": True}
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], **run)
        text = subprocess.run([tools / "nvdisasm", "-c", path], **run).stdout
    found = re.findall(r"(REG|STACK):(\d+)", usage.stdout + usage.stderr)
    return {name: int(number) for name, number in found}, text


def nvidia_lines(text: str) -> Iterator[str]:
    """Labels, ending in a colon, and instructions without what they depend on."""
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+:)", line):
            yield label[1]
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+.*)", line):
            yield found[1]


def amd_lines(text: str) -> Iterator[str]:
    """As `nvidia_lines`, up to the end of the program."""
    for line in text.splitlines():
        line = line.partition(";")[0].strip()
        if line.startswith(".LBB") or (line and line[0] != "." and not line.endswith(":")):
            yield line
        if line.startswith("s_endpgm"):
            return


def read(lines: Iterator[str], branch: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Instructions, and first and last (not included) of each outermost loop: from a label to a branch back to it."""
    code, labels, loops = [], {}, []
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = len(code)
            continue
        code.append(line)
        found = re.match(rf"{branch}.*?(\.L\w+)", line)
        if found and found[1] in labels:
            loops.append((labels[found[1]], len(code)))
    outermost: list[tuple[int, int]] = []
    for start, end in sorted(loops):
        if outermost and start < outermost[-1][1]:
            outermost[-1] = outermost[-1][0], max(end, outermost[-1][1])
        else:
            outermost.append((start, end))
    return code, outermost


if __name__ == "__main__":
    sys.exit(main())
