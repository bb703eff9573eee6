"""Every kernel compiles ahead of time for every architecture, without spills and with wide accesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from deeplight.engine.network.config import PRESETS
from deeplight.kernels import launch
from deeplight.kernels.variants import DTYPES, variants
from tests.conftest import ROOT
from tests.kernels.compiling import ARCHS, access_widths, parameter_count

KERNELS = {
    "fuse",
    "upsample_epilogue",
    "upsample_conv",
    "align",
    "refine",
    "refine_narrow",
    "finish",
    "residuals",
    "posterior",
    "suggest",
    "observe",
    "start",
    "believe",
    "look",
    "decide",
    "settle",
}
WIDE = {"refine"}
"""Of `base` alone."""
SHARED_LIMIT = 99 * 1024
"""Bytes a program may have on sm_86, sm_89 and sm_120; the others have more."""


def reports(archs: tuple[int, ...], presets: str, dtype: str, which: str) -> list[dict[str, Any]]:
    """The interpreter's switch breaks the compiler, so this needs a process of its own."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    # the folder view of the sources, where there is one, before an installed package
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [
        sys.executable,
        "-m",
        "tests.kernels.aot_report",
        ",".join(map(str, archs)),
        presets,
        dtype,
        which,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


FEW = 32
"""Bytes that a thread of `refine_narrow` may spill in float32, whose three TF32 products need three copies of all
weights. Nobody runs float32 on a GPU for speed."""


def assert_no_local_memory(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        wide = row["kernel"] == "refine_narrow" and row["constants"]["PRECISION"] == "tf32x3"
        assert row["stack"] <= FEW * wide and row["local"] == 0, f"spills or local memory: {row}"
        assert 0 < row["registers"] <= 255 and row["shared"] <= SHARED_LIMIT, row
        assert row["instructions"] > 0, row


OFTEN = (90,)
"""Of the default tests; the others come with the slow ones."""


@pytest.fixture(
    scope="module",
    params=[OFTEN, pytest.param(tuple(a for a in ARCHS if a not in OFTEN), marks=pytest.mark.slow)],
    ids=["often", "others"],
)
def archs(request: pytest.FixtureRequest) -> tuple[int, ...]:
    chosen: tuple[int, ...] = request.param
    return chosen


@pytest.fixture(scope="module")
def tiny_fp16(archs: tuple[int, ...]) -> list[dict[str, Any]]:
    return reports(archs, "tiny", "fp16", "one")


@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_every_architecture(
    tiny_fp16: list[dict[str, Any]], archs: tuple[int, ...]
) -> None:
    assert {(r["kernel"], r["arch"]) for r in tiny_fp16} == {(k, a) for k in KERNELS - WIDE for a in archs}
    assert_no_local_memory(tiny_fp16)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_kernels_of_wide_networks_compile() -> None:
    rows = [row for kernel in sorted(WIDE) for row in reports((80, 90), "base", "fp16", kernel)]
    assert {(r["kernel"], r["arch"]) for r in rows} == {(k, a) for k in WIDE for a in (80, 90)}
    assert_no_local_memory(rows)
    assert all(row["widths"]["16"][0] > 0 for row in rows)


@pytest.mark.timeout(900)
def test_features_are_read_and_written_16_bytes_at_a_time(tiny_fp16: list[dict[str, Any]]) -> None:
    for row in tiny_fp16:
        channels = row["constants"].get("OUT", 8)
        loads, stores = row["widths"].get("16", (0, 0))
        narrow_stores = sum(n for w, (_, n) in row["widths"].items() if int(w) < 16)
        if row["kernel"] == "refine_narrow":
            # one band of output: 4 bytes a thread
            assert loads > 0, row
        elif row["kernel"] == "finish":
            # eight pixels of a row begin at a multiple of 32 bytes, wherever the core lies
            assert loads > 0 and stores > 0 and narrow_stores == 0, row
        elif row["kernel"] in ("residuals", "posterior", "observe", "believe", "look", "decide"):
            continue  # bands of one value a pixel, whose rows may start anywhere
        elif row["kernel"] == "start":
            # maps on the lights' grid in, rows of pixels out
            assert stores > 0 and narrow_stores == 0, row
        elif row["kernel"] == "suggest":
            # ten channels of float32
            assert row["widths"]["8"][0] > 0, row
        elif channels % 8 == 0:
            assert loads > 0 and stores > 0 and narrow_stores == 0, row


@pytest.mark.slow
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.timeout(1800)
def test_every_variant_compiles(dtype: str) -> None:
    assert_no_local_memory(reports((80, 90, 100), ",".join(PRESETS), dtype, "all"))


def test_the_table_of_kernels_is_complete() -> None:
    assert (
        {v.kernel for p in PRESETS.values() for v in variants(p, DTYPES["fp16"])}
        == KERNELS
        == set(launch.MODULES)
    )


def test_parameters_are_counted() -> None:
    ptx = ".version 8.7\n.visible .entry fuse(\n .param .u64 .ptr .global .align 1 a,\n .param .u32 b\n)\n{ ld.param"
    assert parameter_count(ptx) == 2


def test_access_widths_reads_ptx() -> None:
    ptx = """
    ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    @%p1 ld.global.L1::evict_last.b16 { %rs1 }, [ %rd2 + 0 ];
    st.global.v2.b64 [ %rd3 + 0 ], { %rd4, %rd5 };
    cp.async.cg.shared.global [ %r5 + 0 ], [ %rd6 + 0 ], 0x10, %r6;
    """
    assert access_widths(ptx) == {2: (1, 0), 16: (2, 1)}
