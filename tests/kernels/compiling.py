"""What the compiler makes of a kernel for any GPU, on a machine without one: registers, memory, widths of accesses.

It does not work with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from deeplight.kernels.launch import UNALIGNED, Launch, device_function

ARCHS = (80, 86, 89, 90, 100, 120)
"""Compute capabilities that the reports are made for."""

SCRATCH_POINTERS = 2
"""Parameters that Triton appends to a kernel's own."""


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel for one architecture. registers: of a thread. stack, local: bytes of a thread in local memory, which
    spills use. shared: bytes of a program. widths: bytes of a global access → (loads, stores) in the PTX."""

    launch: Launch
    arch: int
    cubin: bytes
    shared: int
    registers: int
    stack: int
    local: int
    widths: dict[int, tuple[int, int]]


def compile_launch(launch: Launch, arch: int) -> CompiledKernel:
    """Compile for compute capability arch / 10 and read the report.

    Raises RuntimeError where the compiled kernel needs scratch memory in the GPU's memory, which none of ours should,
    or takes other parameters than `launch` has.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = device_function(launch.kernel)
    given = launch.signature
    signature = {name: given.get(name, "constexpr") for name in function.arg_names}
    constants = {(i,): launch.compile_time[n] for i, n in enumerate(signature) if n not in given}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") and name not in UNALIGNED
    }
    compiled = triton.compile(
        ASTSource(function, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": launch.config.warps, "num_stages": launch.config.stages},
    )
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        raise RuntimeError(f"{launch.key} for sm_{arch} needs scratch memory")
    parameters = parameter_count(compiled.asm["ptx"])
    if parameters != len(launch.arguments) + SCRATCH_POINTERS:
        raise RuntimeError(
            f"{launch.key} for sm_{arch} takes {parameters} parameters, not {len(launch.arguments)} and "
            f"{SCRATCH_POINTERS} scratch pointers: this version of Triton passes arguments otherwise"
        )
    cubin: bytes = compiled.asm["cubin"]
    usage = _resource_usage(cubin)
    return CompiledKernel(
        launch,
        arch,
        cubin,
        compiled.metadata.shared,
        usage["REG"],
        usage["STACK"],
        usage["LOCAL"],
        access_widths(compiled.asm["ptx"]),
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL … of the only kernel in a cubin."""
    text = _tool("cuobjdump", "-res-usage", cubin)
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def instructions(cubin: bytes) -> int:
    """Count a thread's instructions as they stand in the machine code: the body of a loop counts once."""
    text = _tool("nvdisasm", "-c", cubin)
    found = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text, re.MULTILINE)
    return sum(name != "NOP" for name in found)


def loops(cubin: bytes) -> list[int]:
    """Count the instructions of each loop, in the order of their ends; those of a loop within count, too."""
    at, labels, found = 0, {}, []
    for line in _tool("nvdisasm", "-c", cubin).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = at
        if not (one := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line)):
            continue
        at += one[1] != "NOP"
        target = re.search(r"\((\.L_x_\d+)\)", one[2])
        if (
            one[1].startswith("BRA") and target and at - labels.get(target[1], at) > 1
        ):  # at the end it branches to itself
            found.append(at - labels[target[1]])
    return found


def _tool(name: str, option: str, cubin: bytes) -> str:
    """The output of a tool in Triton's wheel for a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [str(tool), option, file.name], capture_output=True, text=True, check=True
        ).stdout


def access_widths(ptx: str) -> dict[int, tuple[int, int]]:
    """Return how many loads and stores the PTX has of each width: bytes of a thread's global access (cp.async too)."""
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    for kind, modifiers in re.findall(r"\b(ld|st)\.global([\w.:]*)", ptx):
        vector = re.search(r"\.v(\d)", modifiers)
        bits = re.search(r"\.[bfus](\d+)", modifiers)
        assert bits is not None, modifiers
        width = (int(vector.group(1)) if vector else 1) * int(bits.group(1)) // 8
        (loads if kind == "ld" else stores)[width] += 1
    for width in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\],\s*(?:\[[^\]]*\],\s*)?(\w+)", ptx):
        loads[int(width, 0)] += 1
    return {w: (loads[w], stores[w]) for w in sorted(loads | stores)}


def parameter_count(ptx: str) -> int:
    """Count the parameters of the only entry point of a PTX file."""
    entry = ptx[ptx.index(".entry") :]
    return entry[: entry.index(")")].count(".param")
