"""libdeeplight_kernels, built from one preset: what it says it holds, and what it says where it cannot launch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deeplight import kernels
from deeplight.kernels import aot, launch
from deeplight.kernels.variants import variants
from tests.conftest import ROOT

ARCHS = {80, 90}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> aot.Library:
    pytest.importorskip("triton")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    out = tmp_path_factory.mktemp("aot")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    options = ["--out", str(out), "--archs", "80,90", "--presets", "tiny", "--dtypes", "fp16"]
    command = [sys.executable, "-m", "deeplight.kernels.compile", *options]
    subprocess.run(command, check=True, env=environment, cwd=out, timeout=280)
    definitions = [f'-DDEEPLIGHT_KERNELS_BLOB="{out / "kernels.bin"}"', '-DDEEPLIGHT_VERSION="1.2.3"']
    target = out / aot.NAME
    source = ROOT / "kernels" / "native" / "deeplight_kernels.cpp"
    flags = ["-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{out}"]
    subprocess.run(["c++", *flags, *definitions, str(source), "-o", str(target), "-ldl"], check=True)
    return aot.Library.open(target)


@pytest.mark.timeout(600)
def test_it_holds_every_kernel_for_every_architecture(library: aot.Library) -> None:
    held = library.variants()
    wanted = {v.key: v for v in variants("tiny", torch.float16)}
    assert {(v.key, v.arch) for v in held} == {(key, arch) for key in wanted for arch in ARCHS}
    for v in held:
        assert v.kernel in launch.MODULES and v.threads == 32 * wanted[v.key].config.warps
        assert v.arguments == len(wanted[v.key].arguments)
    assert library.version == "1.2.3"


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
@pytest.mark.timeout(600)
def test_without_a_driver_it_says_so(library: aot.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = [v for v in variants("tiny", torch.float16) if v.kernel == "upsample_conv"]
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


@pytest.mark.timeout(600)
def test_an_unknown_variant_is_named(library: aot.Library) -> None:
    ready = next(iter(variants("tiny", torch.float16)))
    with pytest.raises(aot.KernelError, match=r"nothing\(.*holds no such kernel") as error:
        library.launch(_Keyed("nothing()", {"x": torch.zeros(4)}, ready))  # type: ignore[arg-type]
    assert error.value.status == aot.NOT_FOUND


@pytest.mark.timeout(600)
def test_arguments_are_checked(library: aot.Library) -> None:
    ready = next(iter(variants("tiny", torch.float16)))
    with pytest.raises(aot.KernelError, match="x must start at a multiple of 16 bytes"):
        library.launch(_Keyed(ready.key, {"x": torch.zeros(4)[1:]}, ready))  # type: ignore[arg-type]
    with pytest.raises(aot.KernelError, match="pixels is 2147483648, more than 32 bits"):
        library.launch(_Keyed(ready.key, {"x": torch.zeros(4), "pixels": 2**31}, ready))  # type: ignore[arg-type]
    with pytest.raises(aot.KernelError, match="number of arguments is wrong"):
        library.launch(_Keyed(ready.key, {"x": torch.zeros(4)}, ready))  # type: ignore[arg-type]


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_text("no")
    with pytest.raises(aot.KernelError, match="cannot load"):
        aot.Library.open(tmp_path / "x.so")


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_it_computes_what_the_jit_computes(library: aot.Library) -> None:
    args = small_upsample("cuda")
    want = kernels.upsample(*args, implementation="triton")
    aot.use(library)
    try:
        assert torch.equal(kernels.upsample(*args, implementation="triton"), want)
    finally:
        aot.use(None)
