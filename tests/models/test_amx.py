"""Builds whose AMX kernels crash are known by their compiler, and run without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kldcloud.models import amx
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions
from kldcloud.models.llama_library import build_facts
from kldcloud.models.quantize import quantized
from kldcloud.store.digest import sha256_bytes
from tests.tiny_models import tiny_pair

DEBIAN_12 = b"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was found out of a made-up build is not believed afterwards."""
    amx.extra_buffers_work.cache_clear()
    yield
    amx.extra_buffers_work.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "works"),
    [
        (DEBIAN_12, False),
        (b"GCC: (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0", False),
        (b"GCC: (GNU) 11.5.0 20240719 (Red Hat 11.5.0-5)", True),
        (b"GCC: (Ubuntu 12.4.0-2ubuntu1) 12.4.0", True),
        (b"GCC: (Ubuntu 13.2.0-4ubuntu3) 13.2.0", False),
        (b"GCC: (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0", True),
        (b"GCC: (Debian 14.2.0-19) 14.2.0", True),
        (b"GCC: (GNU) 10.5.0", False),
        (b"clang version 18.1.3", True),
        # Start-up code of a C library is no part of the kernels, but nobody can tell it apart.
        (b"GCC: (GNU) 14.1.0\0GCC: (Debian 12.2.0-14) 12.2.0", False),
    ],
)
def test_the_compiler_decides_where_there_is_amx(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: bytes, works: bool
) -> None:
    library = tmp_path / "libggml-cpu.so"
    library.write_bytes(b"\x7fELF" + b"\0" * 5000 + compiler + b"\0" * 100)
    monkeypatch.setattr(amx, "library_path", lambda _: library)
    monkeypatch.setattr(amx, "build_facts", lambda: {"instructions": "AVX2 AVX512 AMX_INT8"})
    assert amx.extra_buffers_work() is works
    amx.extra_buffers_work.cache_clear()
    monkeypatch.setattr(amx, "build_facts", lambda: {"instructions": "AVX2 AVX512"})
    assert amx.extra_buffers_work()


def test_options_say_what_is_really_done() -> None:
    assert LlamaOptions(repack=False).fingerprint()["repack"] == "false"
    expected = str(amx.extra_buffers_work()).lower()
    assert LlamaOptions().fingerprint()["repack"] == expected
    assert (expected == "true") or "AMX_INT8" in build_facts()["instructions"]


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_quantised_weights_multiply_whatever_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    base = tiny_pair(tmp_path, vocabulary=320, bos=True).base
    path = quantized(base, sha256_bytes(base.read_bytes()), quant)
    engine = LlamaEngine(path, 64, LlamaOptions())
    for seed in range(20):
        tokens = np.random.default_rng(seed).integers(0, 320, 64).astype(np.int32)
        assert np.isfinite(engine.evaluate(tokens).logits).all()
    engine.close()
