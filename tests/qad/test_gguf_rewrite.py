"""An export is the init file but for the trained tensors, whole or not there, and checked."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from kldcloud.errors import FormatError, StoreError, UserError
from kldcloud.models.gguf_header import read_gguf_header, read_tensor_bytes
from kldcloud.qad.formats import nvfp4
from kldcloud.qad.formats.grid import Grid
from kldcloud.qad.gguf_rewrite import rewrite_gguf, verify_export
from kldcloud.store.digest import sha256_bytes
from tests.qad.formats.ggml import SMOLLM2, dequantize_with_gguf_py, quantize

WIDTH, FEED_FORWARD = 64, 288  # rows of 162 bytes in Q4_0, so that padding follows a tensor
Trained = tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[np.float32]]]


@pytest.fixture
def init(tmp_path: Path) -> Path:
    """A GGUF of several types, with padding between tensors and metadata of several kinds."""
    rng = np.random.default_rng(0)
    path = tmp_path / "init.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_token_list([f"<{index}>" for index in range(9)])
    for name, type_name, shape in (
        ("token_embd.weight", "Q8_0", (9, WIDTH)),
        ("blk.0.attn_q.weight", "Q4_0", (5, FEED_FORWARD)),
        ("blk.0.ffn_down.weight", "Q4_1", (WIDTH, FEED_FORWARD)),
        ("blk.0.ffn_up.weight", "Q6_K", (3, 256)),
    ):
        data = quantize(type_name, rng.standard_normal(shape).astype(np.float32))
        kind = gguf.GGMLQuantizationType[type_name]
        writer.add_tensor(name, data.reshape(shape[0], -1), raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", rng.standard_normal(WIDTH).astype(np.float32))
    writer.add_tensor("output_norm.weight", rng.standard_normal(WIDTH).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def trained(path: Path, *names: str) -> Trained:
    """New bytes for these tensors, and the weights that training would have seen."""
    header = read_gguf_header(path)
    replaced: dict[str, npt.NDArray[Any]] = {}
    expected: dict[str, npt.NDArray[np.float32]] = {}
    generator = torch.Generator().manual_seed(1)
    for name in names:
        info = header.tensors[name]
        columns, rows = info.shape
        grid = Grid.from_bytes(info.type_name, read_tensor_bytes(path, info), (rows, columns))
        w = grid.dequantize()
        w += w.std() * torch.randn(w.shape, generator=generator)
        replaced[name] = grid.pack(w)
        expected[name] = grid.fake_quantize(w).numpy()
    return replaced, expected


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_but_the_trained_tensors_is_the_init_file(init: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "qad.gguf"
    replaced, expected = trained(init, "blk.0.attn_q.weight", "blk.0.ffn_up.weight")
    norm = np.linspace(0, 1, WIDTH, dtype=np.float32)
    replaced["blk.0.attn_norm.weight"] = norm
    rewrite_gguf(init, target, replaced.items())

    header = read_gguf_header(init)
    assert read_gguf_header(target) == header
    old, new = bytearray(init.read_bytes()), bytearray(target.read_bytes())
    for name, data in replaced.items():
        info = header.tensors[name]
        place = slice(info.offset, info.offset + info.nbytes)
        assert new[place] == data.tobytes() != old[place]
        old[place] = new[place] = bytes(info.nbytes)
    assert sha256_bytes(bytes(new)) == sha256_bytes(bytes(old))
    assert left_in(target.parent) == ["qad.gguf"]

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    for name, values in expected.items():
        read = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        np.testing.assert_array_equal(read, values)
    np.testing.assert_array_equal(tensors["blk.0.attn_norm.weight"].data, norm)


def test_an_export_without_training_is_the_same_file(init: Path, tmp_path: Path) -> None:
    header = read_gguf_header(init)
    same = ((name, read_tensor_bytes(init, info)) for name, info in header.tensors.items())
    rewrite_gguf(init, tmp_path / "qad.gguf", same)
    assert (tmp_path / "qad.gguf").read_bytes() == init.read_bytes()


def test_a_real_model_is_exported_and_holds_what_was_trained(tmp_path: Path) -> None:
    names = ("blk.0.attn_q.weight", "blk.29.ffn_down.weight")
    replaced, expected = trained(SMOLLM2, *names)
    target = tmp_path / "qad.gguf"
    rewrite_gguf(SMOLLM2, target, replaced.items())
    untouched = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(SMOLLM2).tensors
        if tensor.name.startswith("blk.3.")
    }
    compared = verify_export(target, (expected | untouched).items())
    assert compared == sum(values.size for values in (expected | untouched).values())
    with pytest.raises(FormatError, match=r"'blk\.0\.attn_q\.weight' does not hold"):
        verify_export(SMOLLM2, expected.items())


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("blk.0.attn_q.weight", 809, "has 810 bytes in the init file, and 809 came"),
        ("blk.0.attn_q.weight", 811, "has 810 bytes in the init file, and 811 came"),
        ("blk.0.attn_norm.weight", 0, "has 256 bytes in the init file, and 0 came"),
        ("blk.1.attn_q.weight", 810, r"the init file has no tensor 'blk\.1\.attn_q\.weight'"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(
    init: Path, tmp_path: Path, name: str, count: int, said: str
) -> None:
    target = tmp_path / "qad.gguf"
    with pytest.raises(FormatError, match=said):
        rewrite_gguf(init, target, [(name, np.zeros(count, np.uint8))])
    assert left_in(tmp_path) == ["init.gguf"]


def test_a_tensor_that_comes_twice_is_refused(init: Path, tmp_path: Path) -> None:
    pair = ("blk.0.attn_q.weight", np.zeros(810, np.uint8))
    with pytest.raises(FormatError, match="came twice"):
        rewrite_gguf(init, tmp_path / "qad.gguf", [pair, pair])
    assert left_in(tmp_path) == ["init.gguf"]


def test_the_init_file_is_never_the_target(init: Path, tmp_path: Path) -> None:
    before = init.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(init)
    for target in (init, link):
        with pytest.raises(UserError, match="is the init file itself; export to another path"):
            rewrite_gguf(init, target, [])
    assert init.read_bytes() == before


def test_an_older_export_stays_until_the_new_one_is_whole(init: Path, tmp_path: Path) -> None:
    target = tmp_path / "qad.gguf"
    target.write_bytes(b"older")

    def stops() -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        yield "blk.0.attn_q.weight", np.zeros(810, np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite_gguf(init, target, stops())
    assert target.read_bytes() == b"older"
    assert left_in(tmp_path) == ["init.gguf", "qad.gguf"]
    rewrite_gguf(init, target, [])
    assert target.read_bytes() == init.read_bytes()


def test_an_export_that_fails_its_check_gets_no_name(init: Path, tmp_path: Path) -> None:
    target = tmp_path / "qad.gguf"
    replaced, expected = trained(init, "blk.0.ffn_down.weight")
    expected["blk.0.ffn_down.weight"][3, 7] += 1
    with pytest.raises(FormatError, match="weight 871 is"):
        rewrite_gguf(
            init, target, replaced.items(), check=lambda part: verify_export(part, expected.items())
        )
    assert left_in(tmp_path) == ["init.gguf"]
    expected["blk.0.ffn_down.weight"][3, 7] -= 1
    rewrite_gguf(
        init, target, replaced.items(), check=lambda part: verify_export(part, expected.items())
    )
    assert target.exists()


def test_a_writer_killed_midway_leaves_nothing_under_the_final_name(
    init: Path, tmp_path: Path
) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; import numpy as np\n"
        "from kldcloud.qad.gguf_rewrite import rewrite_gguf\n"
        "def tensors():\n"
        "    yield 'blk.0.attn_q.weight', np.zeros(810, np.uint8)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "rewrite_gguf(Path(sys.argv[1]), Path(sys.argv[2]), tensors())"
    )
    target = tmp_path / "qad.gguf"
    done = subprocess.run([sys.executable, "-c", script, init, target], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    rewrite_gguf(init, target, [])
    assert target.read_bytes() == init.read_bytes()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 KiB, less than the init file."""
    mount = shutil.which("mount")
    point = tmp_path / "tiny"
    point.mkdir()
    options = ["-t", "tmpfs", "-o", "size=8k", "tmpfs", str(point)]
    if (
        mount is None
        or subprocess.run([mount, *options], capture_output=True, check=False).returncode
    ):
        pytest.skip("only root can mount a tiny file system")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(init: Path, tiny_disk: Path) -> None:
    assert init.stat().st_size > 8192
    with pytest.raises(StoreError, match=r"qad\.gguf: cannot be written: No space .*; free some"):
        rewrite_gguf(init, tiny_disk / "qad.gguf", [])
    assert left_in(tiny_disk) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(init: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be written: .*; check the folder"):
        rewrite_gguf(init, init / "qad.gguf", [])


def test_one_code_that_differs_is_found(init: Path, tmp_path: Path) -> None:
    replaced, expected = trained(init, "blk.0.attn_q.weight", "blk.0.ffn_up.weight")
    assert verify_export(init, iter(())) == 0
    replaced["blk.0.ffn_up.weight"][210] ^= 16  # the low bits of weight 64 of the second row
    target = tmp_path / "qad.gguf"
    rewrite_gguf(init, target, replaced.items())
    assert verify_export(target, [("blk.0.attn_q.weight", expected["blk.0.attn_q.weight"])])
    with pytest.raises(FormatError, match=r"'blk\.0\.ffn_up\.weight' does not .* weight 320 is"):
        verify_export(target, expected.items())


def test_large_tensors_are_compared_in_parts(init: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kldcloud.qad.gguf_rewrite._WEIGHTS_AT_ONCE", 96)
    header = read_gguf_header(init)
    name = "blk.0.ffn_down.weight"
    info = header.tensors[name]
    values = dequantize_with_gguf_py("Q4_1", read_tensor_bytes(init, info), (WIDTH, FEED_FORWARD))
    assert verify_export(init, [(name, values)]) == values.size
    values[-1, -1] = np.nextafter(values[-1, -1], np.float32(np.inf))
    with pytest.raises(FormatError, match="weight 18,431 is"):
        verify_export(init, [(name, values)])


def test_what_cannot_be_compared_is_refused(init: Path) -> None:
    with pytest.raises(FormatError, match=r"has no tensor 'output\.weight'"):
        verify_export(init, [("output.weight", np.zeros(4, np.float32))])
    with pytest.raises(FormatError, match="has 64 weights, and 63 were trained"):
        verify_export(init, [("output_norm.weight", np.zeros(63, np.float32))])
    nothing = np.full(64, np.nan, np.float32)
    with pytest.raises(FormatError, match=r"weight 0 is .* and should be nan"):
        verify_export(init, [("output_norm.weight", nothing)])


def test_an_nvfp4_tensor_is_compared_with_its_scale(tmp_path: Path) -> None:
    w = torch.randn(6, 128, generator=torch.Generator().manual_seed(2))
    path, target = tmp_path / "init.gguf", tmp_path / "qad.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    blocks = nvfp4.pack(w).gguf_blocks().reshape(6, -1)
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.NVFP4)
    writer.add_tensor("blk.0.ffn_up.scale", np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    packed = nvfp4.pack(w * 3)
    scale = packed.tensor_scale.numpy().reshape(1)
    new = {"blk.0.ffn_up.weight": packed.gguf_blocks(), "blk.0.ffn_up.scale": scale}
    rewrite_gguf(path, target, new.items())
    expected = nvfp4.fake_quantize(w * 3).numpy()
    assert verify_export(target, [("blk.0.ffn_up.weight", expected)]) == expected.size
    with pytest.raises(FormatError, match="does not hold what was trained"):
        verify_export(path, [("blk.0.ffn_up.weight", expected)])
