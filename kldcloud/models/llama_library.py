"""libllama through llama-cpp-python: loading it, its log, and what its build tells of itself."""

# ctypes is untyped by nature; the seams around this file are typed.

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kldcloud.errors import UserError

_recent: deque[str] = deque(maxlen=50)
"""The library's latest warnings and errors: it reports a failed load only there."""

_WARNING = 3
_NO_BACKTRACE = "GGML_NO_BACKTRACE"
_MOVE_NOTHING = ("GGML_BACKEND_PATH", "GGML_VK_VISIBLE_DEVICES", _NO_BACKTRACE)
"""Of ggml's variables: two say which device computes, and its name is told anyway."""
_CPU_DEVICE, _GPU_DEVICES, _LIBRARY_DEVICE = 0, (1, 2), 3


@cache
def llama() -> ModuleType:
    """The binding, with backends initialised and its log kept instead of printed.

    Raises:
        UserError: if llama-cpp-python is not installed or does not load.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise UserError(
            "the llama.cpp engine is not installed",
            hint="pip install 'kldcloud[llama]' (the README names prebuilt wheels)",
        ) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"llama-cpp-python does not load: {error}",
            hint="reinstall it: pip install --force-reinstall --no-cache-dir llama-cpp-python",
        ) from error
    # Where it gives up it would call a debugger, which takes ten seconds and says a hundred lines.
    os.environ.setdefault(_NO_BACKTRACE, "1")
    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    binding: ModuleType = llama_cpp
    return binding


@cache
def _log_callback(binding: ModuleType) -> Any:  # noqa: ANN401
    @binding.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _user: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level >= _WARNING and line.strip("."):  # dots are progress
            _recent.append(line)

    return keep


def recent_complaints() -> str:
    """The last few warnings and errors of the library, in one line; forgets them."""
    lines = list(dict.fromkeys(_recent))[-3:]
    _recent.clear()
    return " | ".join(lines) or "it gave no reason"


@cache
def ggml(part: str) -> ctypes.CDLL:
    """One of ggml's own libraries (`base`, `cpu` or the umbrella ``) beside libllama."""
    return ctypes.CDLL(str(library_path(part)))


def library_path(part: str) -> Path:
    """Where one of ggml's own libraries lies."""
    folder = Path(str(llama().__file__)).parent / "lib"
    stem = f"libggml-{part}" if part else "libggml"
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return folder / f"{stem}{suffix}"


@cache
def build_facts(*, gpus: bool = True) -> Mapping[str, str]:
    """Version, backend, instruction set, devices and switches of this build: what decides rounding.

    Args:
        gpus: whether it may use those that it sees.
    """
    binding = llama()
    system = binding.llama_print_system_info().decode()
    backend = "GPU" if gpus and binding.llama_supports_gpu_offload() else "CPU"
    facts = {
        "name": "llama.cpp",
        "version": f"{binding.__version__} (llama-cpp-python)",
        "backend": backend,
        "instructions": " ".join(_switched_on(system)),
    }
    # Kinds of GPU round differently; how many of a kind there are does not matter to one worker.
    kinds = dict.fromkeys(_accelerators(gpus=gpus))
    more = {"devices": " + ".join(kinds), "switches": " ".join(_switches())}
    return facts | {name: value for name, value in more.items() if value}


def _switches() -> list[str]:
    """The variables by which ggml is told to compute in another way, such as without fusion."""
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith("GGML_") and name not in _MOVE_NOTHING
    )


def _switched_on(system_info: str) -> list[str]:
    """`CPU : AVX2 = 1 | FMA = 1 | ...` as the names that are on."""
    names = []
    for part in system_info.replace(" : ", " | ").split("|"):
        name, _, value = part.partition("=")
        if value.strip() not in ("", "0"):
            names.append(name.strip() if value.strip() == "1" else part.strip())
    return names


def buffer_type(name: str) -> int:
    """The address of ggml's buffer type of that name, such as CPU or CUDA0.

    Raises:
        UserError: if this build has none of that name; the message lists what it has.
    """
    base = _base()
    known: dict[str, int] = {}
    for device in _devices():
        address = base.ggml_backend_dev_buffer_type(device)
        if address:
            known[base.ggml_backend_buft_name(address).decode()] = address
    if name not in known:
        raise UserError(
            f"engine.tensor_overrides: no buffer type {name!r} in this build of llama.cpp",
            hint=f"it has {', '.join(sorted(known))}",
        )
    return known[name]


def free_on_gpus() -> list[int]:
    """Free bytes of each GPU that this build sees, in its order."""
    base = _base()
    free, whole = ctypes.c_size_t(), ctypes.c_size_t()
    found = []
    for device in _devices():
        if base.ggml_backend_dev_type(device) in _GPU_DEVICES:
            base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(whole))
            found.append(free.value)
    return found


def _accelerators(*, gpus: bool) -> list[str]:
    """What ggml calls the devices besides the CPU, such as NVIDIA H100 80GB HBM3; sorted.

    Args:
        gpus: whether GPUs are among them; a library of matrix products is in any case.
    """
    base = _base()
    return sorted(
        base.ggml_backend_dev_description(device).decode("utf-8", "replace")
        for device in _devices()
        if (kind := base.ggml_backend_dev_type(device)) == _LIBRARY_DEVICE
        or (gpus and kind != _CPU_DEVICE)
    )


@cache
def _base() -> ctypes.CDLL:
    """Ggml's base library, with the prototypes of what tells of a device."""
    base = ggml("base")
    base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    base.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_memory.restype = None
    base.ggml_backend_dev_memory.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.POINTER(ctypes.c_size_t),
    ]
    base.ggml_backend_dev_buffer_type.restype = ctypes.c_void_p
    base.ggml_backend_dev_buffer_type.argtypes = [ctypes.c_void_p]
    base.ggml_backend_buft_name.restype = ctypes.c_char_p
    base.ggml_backend_buft_name.argtypes = [ctypes.c_void_p]
    return base


def _devices() -> list[int]:
    """Addresses of ggml's devices, in its order."""
    library = ggml("")
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    return [
        library.ggml_backend_dev_get(index) for index in range(library.ggml_backend_dev_count())
    ]
