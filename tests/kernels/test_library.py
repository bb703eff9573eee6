"""libdeeplight_kernels, built from one preset: what it says it holds, and what it says where it cannot launch."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from deeplight import kernels
from deeplight.engine.network.config import PRESETS
from deeplight.kernels import aot, launch
from deeplight.kernels.upsample import entry as upsample_entry
from deeplight.kernels.variants import variants
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(1800)

ARCHS = {80, 90} | ({launch.arch_of(torch.device("cuda"))} if torch.cuda.is_available() else set())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as CMake builds it, of one preset and element type."""
    pytest.importorskip("triton")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no CMake or no C++ compiler")
    out = tmp_path_factory.mktemp("aot")
    settings = {
        "Python_EXECUTABLE": sys.executable,
        "DEEPLIGHT_AOT_ARCHS": ",".join(map(str, sorted(ARCHS))),
        "DEEPLIGHT_AOT_PRESETS": "tiny",
        "DEEPLIGHT_AOT_DTYPES": "fp16",
        "CMAKE_CXX_FLAGS": "-Werror",
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.run(["cmake", "-S", str(ROOT / "kernels" / "native"), "-B", str(out), *options], check=True)
    subprocess.run(["cmake", "--build", str(out)], check=True, timeout=1700)
    return out / aot.NAME


@pytest.fixture(scope="module")
def library(built: Path) -> aot.Library:
    return aot.Library.open(built)


def test_it_holds_every_kernel_for_every_architecture(library: aot.Library) -> None:
    held = library.variants()
    wanted = {v.key: v for v in variants(PRESETS["tiny"], torch.float16)}
    assert {(v.key, v.arch) for v in held} == {(key, arch) for key in wanted for arch in ARCHS}
    for v in held:
        assert v.kernel in launch.MODULES and v.threads == 32 * wanted[v.key].config.warps
        assert v.arguments == len(wanted[v.key].arguments)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert library.version == declared


def test_it_exports_what_the_header_declares(built: Path) -> None:
    header = (ROOT / "kernels" / "native" / "deeplight_kernels.h").read_text()
    declared = set(re.findall(r"\b(deeplight_kernels_\w+)\(", header))
    assert len(declared) == 7
    loaded = ctypes.CDLL(str(built))
    assert all(hasattr(loaded, name) for name in declared)


def test_the_header_compiles_as_c(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    program = tmp_path / "use.c"
    program.write_text(
        '#include "deeplight_kernels.h"\nint main(void) { return deeplight_kernels_abi() == 0; }\n'
    )
    include = f"-I{ROOT / 'kernels' / 'native'}"
    subprocess.run(["cc", "-std=c99", "-Wall", "-Werror", include, "-fsyntax-only", str(program)], check=True)


def small_upsample(device: str) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    shapes = ((1, 32, 64, 64), (32, 32, 3, 3), (32,))
    return tuple(torch.randn(s, generator=g).to(device, torch.float16) * 0.1 for s in shapes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_it_says_so(library: aot.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = [v for v in variants(PRESETS["tiny"], torch.float16) if v.kernel == "upsample_conv"]
    values = {
        k: torch.zeros(8) if isinstance(v, torch.Tensor) else v for k, v in launches[0].arguments.items()
    }
    found = launch.Launch(
        "upsample_conv", 1, launches[0].arguments, launches[0].constants, launches[0].config
    )
    ready = _Keyed(found.key, values, found)
    with pytest.raises(aot.KernelError, match=r"upsample_conv.*libcuda\.so\.1.*not installed") as error:
        library.launch(ready)  # type: ignore[arg-type]
    assert error.value.status == 1
    ready.programs = 0
    with pytest.raises(aot.KernelError, match="the grid is empty") as error:
        library.launch(ready)  # type: ignore[arg-type]
    assert error.value.status == 4


class _Keyed:
    """A launch under the key of another one, for the library's own checks."""

    def __init__(self, key: str, arguments: dict[str, object], like: launch.Launch) -> None:
        self.key, self.arguments, self.programs, self.constants = key, arguments, 1, like.constants


def test_an_unknown_variant_is_named(library: aot.Library) -> None:
    ready = next(iter(variants(PRESETS["tiny"], torch.float16)))
    with pytest.raises(aot.KernelError, match=r"nothing\(.*holds no such kernel") as error:
        library.launch(_Keyed("nothing()", {"x": torch.zeros(4)}, ready))  # type: ignore[arg-type]
    assert error.value.status == aot.NOT_FOUND


def test_arguments_are_checked(library: aot.Library) -> None:
    ready = next(iter(variants(PRESETS["tiny"], torch.float16)))
    with pytest.raises(aot.KernelError, match="x must start at a multiple of 16 bytes"):
        library.launch(_Keyed(ready.key, {"x": torch.zeros(4)[1:]}, ready))  # type: ignore[arg-type]
    with pytest.raises(aot.KernelError, match="pixels is 2147483648, more than 32 bits"):
        library.launch(_Keyed(ready.key, {"x": torch.zeros(4), "pixels": 2**31}, ready))  # type: ignore[arg-type]
    with pytest.raises(aot.KernelError, match="number of arguments is wrong"):
        library.launch(_Keyed(ready.key, {"x": torch.zeros(4)}, ready))  # type: ignore[arg-type]


CASES: dict[str, dict[str, str]] = {
    # the one that cannot load comes before those that keep what they have loaded
    "does not load": {"FAKE_FAIL": "cuModuleLoadData"},
    "90": {"FAKE_ARCH": "90"},
    "90 again": {"FAKE_ARCH": "90"},
    "80": {"FAKE_ARCH": "80"},
    "89": {"FAKE_ARCH": "89"},
    "75": {"FAKE_ARCH": "75"},
    "103": {"FAKE_ARCH": "103"},
    "no context": {"FAKE_CONTEXT": "none"},
    "does not launch": {"FAKE_FAIL": "cuLaunchKernel"},
}
"""What the driver is asked to be, in one process."""

LAUNCHES = """
import json, os
import torch
from tests.kernels.test_library import CASES, conv_launch
from deeplight.kernels import aot
library, ready = aot.Library.open(), conv_launch()
values = [v.data_ptr() if isinstance(v, torch.Tensor) else v for v in ready.arguments.values()]
print(json.dumps({"key": ready.key, "programs": ready.programs, "values": values}), flush=True)
for name, settings in CASES.items():
    os.environ.update(settings)
    print(json.dumps({"case": name}), flush=True)
    try:
        library.launch(ready)
        print(json.dumps({"status": 0}), flush=True)
    except aot.KernelError as error:
        print(json.dumps({"status": error.status, "error": str(error)}), flush=True)
    for setting in settings:
        del os.environ[setting]
"""


def conv_launch() -> launch.Launch:
    """A launch of `tiny`'s ×4 → ×8 on the CPU's memory."""
    x, weight, bias = small_upsample("cpu")
    x, out = (launch.channels_last(t) for t in (x, torch.empty(1, 8, 128, 128, dtype=torch.float16)))
    return upsample_entry.plan_conv(
        x, upsample_entry.gemm_weight(weight), upsample_entry.phase_order(bias), None, out
    )


Record = dict[str, Any]


@pytest.fixture(scope="module")
def driven(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, dict[str, Record]]:
    """The launch, and by case what a CUDA driver that only records saw of it and what came back."""
    if torch.cuda.is_available():
        pytest.skip("there is a real driver")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = ROOT / "tests" / "kernels" / "fake_cuda.c"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(source), "-o", str(folder / "libcuda.so.1")], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "DEEPLIGHT_KERNELS": str(built),
        "FAKE_TYPES": "pppppii",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    command = [sys.executable, "-c", LAUNCHES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wanted, *lines = map(json.loads, done.stdout.splitlines())
    cases: dict[str, Record] = {}
    for line in lines:
        if "case" in line:
            cases[line["case"]] = {}
        else:
            cases[list(cases)[-1]] |= line
    return wanted, cases


@pytest.mark.parametrize(("name", "arch"), [("90", 90), ("90 again", 90), ("80", 80), ("89", 80)])
def test_the_driver_gets_the_arguments_of_the_launch(
    library: aot.Library, driven: tuple[Record, dict[str, Record]], name: str, arch: int
) -> None:
    wanted, cases = driven
    got = cases[name]
    (held,) = (v for v in library.variants() if (v.key, v.arch) == (wanted["key"], arch))
    assert got["status"] == 0 and got["kernel"] == "upsample_conv" and got["stream"] == 0
    assert got["arguments"] == wanted["values"] and len(wanted["values"]) == held.arguments
    assert (got["programs"], got["threads"], got["shared"]) == (wanted["programs"], held.threads, held.shared)


def test_machine_code_is_loaded_once_and_for_the_architecture(
    driven: tuple[Record, dict[str, Record]],
) -> None:
    loads = {name: record["load"] for name, record in driven[1].items() if "load" in record}
    assert set(loads) == {"does not load", "90", "80"}, "89 runs the code for 80, which is loaded"
    # where an ELF file for CUDA says its architecture depends on its version
    for name, flags in loads.items():
        arch = 90 if name == "does not load" else int(name)
        assert arch in (flags & 0xFF, flags >> 8 & 0xFF), name


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("75", aot.NOT_FOUND, "no such kernel for this GPU's architecture"),
        ("103", aot.NOT_FOUND, "no such kernel for this GPU's architecture"),
        ("no context", 2, "no current CUDA context"),
        ("does not launch", 5, "refused the launch (CUresult 700)"),
        ("does not load", 5, "refused the launch (CUresult 700)"),
    ],
)
def test_what_the_driver_refuses_is_one_clear_error(
    driven: tuple[Record, dict[str, Record]], name: str, status: int, message: str
) -> None:
    record = driven[1][name]
    assert record["status"] == status and message in record["error"] and "upsample_conv" in record["error"]


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_text("no")
    with pytest.raises(aot.KernelError, match="cannot load"):
        aot.Library.open(tmp_path / "x.so")


@pytest.mark.gpu
def test_it_computes_what_the_jit_computes(library: aot.Library) -> None:
    args = small_upsample("cuda")
    want = kernels.upsample(*args, implementation="triton")
    aot.use(library)
    try:
        assert torch.equal(kernels.upsample(*args, implementation="triton"), want)
    finally:
        aot.use(None)
