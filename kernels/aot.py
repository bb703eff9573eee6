"""Run the kernels from libdeeplight_kernels: no Triton and no compiler on the machine.

aot.use(aot.Library.open())     # from here on, CUDA tensors take the library's kernels
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deeplight.kernels import launch
from deeplight.kernels.launch import UNALIGNED, Launch

NAME = "libdeeplight_kernels.so"
ABI = 1
NOT_FOUND = 3
LARGEST_INT = 2**31 - 1


class KernelError(RuntimeError):
    """A launch failed or the library does not fit. status: deeplight_status, 0 where no launch was tried."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _Info(ctypes.Structure):
    _fields_ = [
        ("key", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("arch", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared", ctypes.c_int),
        ("arguments", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Variant:
    """One compiled kernel of the library: see deeplight_kernel_info."""

    key: str
    kernel: str
    arch: int
    threads: int
    shared: int
    arguments: int


class Library:
    """libdeeplight_kernels, loaded."""

    def __init__(self, path: Path) -> None:
        """Raises KernelError where the file cannot be loaded or has another interface."""
        try:
            self._c = ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelError(f"cannot load {path}: {error}") from error
        self._c.deeplight_kernels_version.restype = ctypes.c_char_p
        self._c.deeplight_kernels_message.restype = ctypes.c_char_p
        self._c.deeplight_kernels_get.restype = ctypes.POINTER(_Info)
        self._c.deeplight_kernels_launch.argtypes = [
            ctypes.c_char_p, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_void_p,
        ]  # fmt: skip
        abi = self._c.deeplight_kernels_abi()
        if abi != ABI:
            raise KernelError(f"{path} has interface {abi}, this package needs {ABI}")

    @staticmethod
    def open(path: Path | None = None) -> Library:
        """The library at `path`, else at DEEPLIGHT_KERNELS, else beside this file."""
        given = path or os.environ.get("DEEPLIGHT_KERNELS") or Path(__file__).with_name(NAME)
        return Library(Path(given))

    @property
    def version(self) -> str:
        """The project's version that the library was built from."""
        return bytes(self._c.deeplight_kernels_version()).decode()

    def variants(self) -> list[Variant]:
        """Everything that the library holds."""
        found = []
        for i in range(self._c.deeplight_kernels_count()):
            info = self._c.deeplight_kernels_get(i).contents
            found.append(
                Variant(
                    info.key.decode(),
                    info.kernel.decode(),
                    info.arch,
                    info.threads,
                    info.shared,
                    info.arguments,
                )
            )
        return found

    def launch(self, launch: Launch) -> None:
        """Launch on PyTorch's current stream of the arguments' device.

        Raises KernelError, naming the kernel, for anything the library or the driver refuses.
        """
        values = [_c_value(name, value) for name, value in launch.arguments.items()]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        device = next(v.device for v in launch.arguments.values() if isinstance(v, Tensor))
        on_gpu = device.type == "cuda"
        with torch.cuda.device(device if on_gpu else -1):
            stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else None
            status = self._c.deeplight_kernels_launch(
                launch.key.encode(), launch.programs, pointers, len(values), stream
            )
        if status:
            message = bytes(self._c.deeplight_kernels_message(status)).decode()
            code = f" (CUresult {self._c.deeplight_kernels_last_cuda_error()})" if status == 5 else ""
            raise KernelError(f"{launch.key}: {message}{code}", status)


def _c_value(name: str, value: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_float | ctypes.c_int:
    if isinstance(value, Tensor):
        if name not in UNALIGNED and value.data_ptr() % 16:
            raise KernelError(f"{name} must start at a multiple of 16 bytes")
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    if abs(value) > LARGEST_INT:
        raise KernelError(f"{name} is {value}, more than 32 bits hold: take smaller tiles")
    return ctypes.c_int(value)


def use(library: Library | None) -> None:
    """Let `library` run all kernels in this process; None: Triton's JIT again."""
    launch.install(None if library is None else library.launch)
