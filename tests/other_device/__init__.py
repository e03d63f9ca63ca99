"""A second device for machines that have none: what fails on a GPU because a tensor is on the CPU fails on it too.

    torch.ones(3, device="other") + torch.ones(3)  # RuntimeError: Expected all tensors to be on the same device

Tests that need a GPU skip themselves where there is none, which is everywhere but on the machines of a few. For years
of such runs nobody would see that no learner works on one. "other" is the CPU's memory and arithmetic under another
device's name: slow, and strict about devices as CUDA is. `make` compiles `device.cpp` (half a minute, once; kept by
the hash of the source and of PyTorch's version) and registers it with this process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import torch
from filelock import FileLock
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("device.cpp")
NAME = "other"


class NoCompiler(Exception):
    """The device cannot be had on this machine. A compiler that fails is not this: that is a mistake of ours."""


def make(folder: Path) -> torch.device:
    """The device, compiled into `folder` where it is not there yet. Several processes may ask at once."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        torch.ops.load_library(_compiled(folder))
        torch.utils.rename_privateuse1_backend(NAME)
        torch._register_device_module(NAME, _module())
        torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return torch.device(NAME, 0)


def _compiled(folder: Path) -> Path:
    mark = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode() + sys.version.encode()).hexdigest()[:16]
    library = folder / f"{NAME}-{mark}.so"
    with FileLock(folder / f"{NAME}.lock"):
        if not library.is_file():
            half = library.with_suffix(f".{os.getpid()}")
            _compile(half)
            half.replace(library)
    return library


def _compile(library: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        raise NoCompiler("it is compiled on Linux with a C++ compiler, c++ or what CXX names")
    where = [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_path("include"))]
    libraries = [f for path in cpp_extension.library_paths() for f in (f"-L{path}", f"-Wl,-rpath,{path}")]
    options = [
        "-std=c++20",
        "-O0",
        "-fPIC",
        "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    command = [compiler, *options, *where, str(SOURCE), "-o", str(library), *libraries, "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} failed on {SOURCE.name}:\n{done.stderr[-3000:]}")


def _module() -> types.ModuleType:
    """What PyTorch asks of a device's Python module."""
    module = types.ModuleType(f"torch.{NAME}")
    answers = {
        # To those who look for an accelerator of their own accord there is none: only who names it gets it. Otherwise
        # a test of another library's trainer, later in the same process, would pin memory for it.
        "is_available": lambda: False,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda device=None: None,
        "manual_seed_all": lambda seed: None,  # the CPU's stream serves it, and is seeded already
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    }
    vars(module).update(answers)
    return module
