"""Ahead-of-time compilation of the kernels for CUDA, on a machine with or without a GPU.

Its command line, which knows the presets, is deeplight.engine.network.kernel_library. Not under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deeplight.kernels.launch import UNALIGNED, Launch, device_function
from deeplight.kernels.variants import DTYPES, Widths, variants

ARCHS = (80, 86, 89, 90, 100, 120)
"""Compute capabilities. Code for 9.0 and above runs on exactly that one; 8.0 also on 8.6 and 8.9."""

SCRATCH_POINTERS = 2
"""Parameters that Triton appends to a kernel's own; the library passes null for them."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture. registers: a thread. stack, local: bytes a thread in local memory, where spills
    go. shared: bytes a program. widths: bytes of a global access → (loads, stores) in the PTX."""

    launch: Launch
    arch: int
    cubin: bytes
    shared: int
    registers: int
    stack: int
    local: int
    widths: dict[int, tuple[int, int]]


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile for compute capability arch / 10 and read the report.

    Raises RuntimeError where the compiled kernel needs scratch memory, which a plain launch cannot give it, or takes
    other parameters than `launch` has.
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
    return Compiled(
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
    """REG, STACK, LOCAL … of the only kernel."""
    text = _tool("cuobjdump", "-res-usage", cubin)
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def instructions(cubin: bytes) -> int:
    """Of a thread, as they stand in the machine code: the body of a loop counts once."""
    text = _tool("nvdisasm", "-c", cubin)
    found = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text, re.MULTILINE)
    return sum(name != "NOP" for name in found)


def _tool(name: str, option: str, cubin: bytes) -> str:
    """What a tool in Triton's wheel prints of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [str(tool), option, file.name], capture_output=True, text=True, check=True
        ).stdout


def access_widths(ptx: str) -> dict[int, tuple[int, int]]:
    """Bytes of a thread's global access (cp.async too) → how many loads and stores of it the PTX has."""
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
    """Parameters of the only entry point of a PTX file."""
    entry = ptx[ptx.index(".entry") :]
    return entry[: entry.index(")")].count(".param")


def build(
    out: Path, archs: Sequence[int], networks: Sequence[Widths], dtypes: Sequence[str], jobs: int
) -> int:
    """Write kernels.bin (all cubins) and kernels.inc (the table that libdeeplight_kernels is built with).

    networks: picklable. dtypes: of DTYPES. jobs: processes. Returns how many cubins there are.
    """
    launches = {v.key: (n, d) for n in networks for d in dtypes for v in variants(n, DTYPES[d])}
    tasks = [(key, *launches[key], arch) for key in sorted(launches) for arch in archs]
    blob, rows = bytearray(), []
    for (key, _, _, arch), (launch, cubin, shared) in zip(tasks, _compiled(tasks, jobs), strict=True):
        blob += b"\0" * (-len(blob) % 64)
        rows.append(
            f'{{"{key}", "{launch.kernel}", {arch}, {len(blob)}ull, {len(cubin)}ull, '
            f"{32 * launch.config.warps}, {shared}, {len(launch.arguments) + SCRATCH_POINTERS}}},"
        )
        blob += cubin
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernels.bin").write_bytes(bytes(blob))
    (out / "kernels.inc").write_text("\n".join(rows) + "\n")
    return len(rows)


Task = tuple[str, Widths, str, int]
"""Key, network, dtype, architecture: what finds a launch in another process, since meta tensors do not travel."""


def _compiled(tasks: list[Task], jobs: int) -> Iterator[tuple[Launch, bytes, int]]:
    """Launch, cubin and shared memory of every task, in order."""
    jobs = min(jobs, len(tasks))
    results: Iterator[tuple[bytes, int]]
    if jobs <= 1:
        results = map(_compile_task, tasks)
    else:
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
        with pool:
            results = iter(list(pool.map(_compile_task, tasks)))
    for task, (cubin, shared) in zip(tasks, results, strict=True):
        yield _find(task), cubin, shared


def _compile_task(task: Task) -> tuple[bytes, int]:
    compiled = compile_launch(_find(task), task[3])
    return compiled.cubin, compiled.shared


def _find(task: Task) -> Launch:
    key, widths, dtype, _ = task
    return next(v for v in variants(widths, DTYPES[dtype]) if v.key == key)
