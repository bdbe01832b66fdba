"""What goes wrong stays where it went wrong: the rest finishes, and the cause has a name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load, save

from kldcloud.errors import EngineError, FormatError
from kldcloud.report.llama_text import render_llama
from kldcloud.store import open_store
from tests.model_folders import folder_of
from tests.pipeline.odd_models import hungry, with_nan
from tests.pipeline.sweeps import Notes, corpus, facts, launch, sweep
from tests.tiny_models import TinyPair, tiny_pair

CHUNKS = 4
MIB = 2**20

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("pair"), vocabulary=320, bos=True)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose name leaves room for those of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="k-") as folder:
        yield Path(folder)


@pytest.mark.slow  # a candidate without enough memory goes the same way, in the default run
def test_a_candidate_with_broken_weights_fails_alone_and_by_name(
    pair: TinyPair, tmp_path: Path, short_folder: Path
) -> None:
    broken = with_nan(pair.candidate, tmp_path / "broken.gguf")
    candidates = [broken, pair.candidate]
    job = facts(pair.base, candidates, [corpus(128, CHUNKS)], encoding="logits", shard_chunks=1)
    store = tmp_path / "store"
    code, out, errors = launch(short_folder, job, store).wait()
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith("kldcloud: broken on text failed at runs/tiny-")
    assert "/partials/broken/text/" in last
    assert "candidate logits are not finite at scored position 0" in last
    assert last.endswith("; the same command tries just these again")
    assert "Traceback" not in errors
    table = [line.split()[0] for line in out.splitlines() if line.startswith(("broken", "cand"))]
    assert {"broken", "candidate"} <= set(table)

    runs = list((store / "runs").iterdir())
    assert len(runs) == 1
    names = {path.name for path in runs[0].iterdir()}
    assert "summary-partial.json" in names
    assert "summary.json" not in names
    assert "tokens.parquet" not in names

    code, _, errors = launch(short_folder, job, store).wait()
    assert code == 1
    assert "base stage for text is there already" in errors
    assert f"measuring: {CHUNKS} of {2 * CHUNKS} chunks are done already" in errors


def test_a_candidate_that_needs_too_much_memory_fails_alone(pair: TinyPair, tmp_path: Path) -> None:
    # 2,048 tokens x 32,768 units x 16 bytes: a cache of 1 GiB, where a worker may have 1.2.
    big = hungry(tmp_path / "hungry.gguf", 320, 32768)
    engine = {"kv_type_k": "f32", "kv_type_v": "f32"}
    job = facts(pair.base, [big, pair.candidate], [corpus(2048, 2)], engine=engine)
    notes = Notes()
    outcome = sweep(job, tmp_path, memory=1200 * MIB, progress=notes)
    assert [each.status for each in outcome.summary.results] == ["failed", "complete"]
    (failure,) = outcome.failures.values()
    assert failure.group == "hungry on text"
    assert "could not make a context of 2048 tokens" in failure.cause
    assert "use a smaller context, or a machine with more memory" in failure.cause

    again = sweep(job, tmp_path, memory=1200 * MIB, progress=notes)
    assert "measuring: 2 of 4 chunks are done already" in notes.notes
    assert list(again.failures) == ["hungry on text"]
    assert render_llama(again.summary, "candidate") == render_llama(outcome.summary, "candidate")


@pytest.mark.parametrize("encoding", ["hidden", "logits"])
def test_a_base_with_broken_weights_is_no_base(
    pair: TinyPair, encoding: str, tmp_path: Path
) -> None:
    broken = with_nan(pair.base, tmp_path / "broken.gguf")
    job = facts(broken, [pair.candidate], [corpus(128, CHUNKS)], encoding=encoding)
    with pytest.raises(EngineError, match=r"base broken on text: stages/.*not finite"):
        sweep(job, tmp_path / "store")


def test_a_candidate_of_another_vocabulary_is_refused_before_anything_runs(
    pair: TinyPair, tmp_path: Path
) -> None:
    other = tiny_pair(tmp_path / "other", vocabulary=321, bos=True).candidate
    job = facts(pair.base, [other], [corpus(128, CHUNKS)])
    with pytest.raises(FormatError, match="vocabulary of 321, the base 320"):
        sweep(job, tmp_path / "store")
    assert not list((tmp_path / "store").rglob("*.shard"))


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flip_in_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_last, cut])
def test_a_damaged_base_stage_fails_what_needs_it_and_is_named(
    pair: TinyPair, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    job = facts(
        pair.base,
        [pair.candidate],
        [corpus(128, CHUNKS)],
        encoding="logits",
        shard_chunks=1,
    )
    sweep(job, tmp_path)
    shard = sorted(tmp_path.rglob("*.shard"))[2]
    damage(shard)
    outcome = sweep(job | {"name": "again"}, tmp_path)
    (failure,) = outcome.failures.values()
    assert str(shard.relative_to(tmp_path)) in failure.cause


def test_a_damaged_partial_is_refused_by_name(pair: TinyPair, tmp_path: Path) -> None:
    job = facts(pair.base, [pair.candidate], [corpus(128, CHUNKS)], shard_chunks=1)
    first = sweep(job, tmp_path)
    run = tmp_path / "runs" / first.run
    before = (run / "summary.json").read_bytes()
    (run / "summary.json").unlink()
    (run / "tokens.parquet").unlink()
    partial = sorted((run / "partials").rglob("*.parquet"))[1]
    whole = partial.read_bytes()
    for damage in (flip_last, flip_in_the_middle, cut):
        damage(partial)
        with pytest.raises(FormatError, match=str(partial.relative_to(tmp_path))):
            sweep(job, tmp_path)
        partial.write_bytes(whole)
    partial.write_bytes(sorted((run / "partials").rglob("*.parquet"))[2].read_bytes())
    with pytest.raises(FormatError, match="belongs to another first_chunk"):
        sweep(job, tmp_path)
    partial.unlink()
    sweep(job, tmp_path)
    assert (run / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("encoding", "limit"), [("hidden", 1e-8), ("logits", 1e-6), ("auto", 1e-8)]
)
def test_a_model_against_itself_diverges_by_nothing(
    pair: TinyPair, encoding: str, limit: float, tmp_path: Path
) -> None:
    itself = {"model": str(pair.base), "name": "itself"}
    job = facts(pair.base, [itself], [corpus(128, CHUNKS)], encoding=encoding)
    (measured,) = sweep(job, tmp_path).summary.results
    assert measured.result is not None
    assert abs(measured.result.kld.mean.value) <= limit
    assert measured.result.same_top.value == 1


def test_hidden_states_that_do_not_rebuild_the_logits_are_staged_as_codes_for_good(
    pair: TinyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No file that loads defeats the check, so here nothing passes it.
    monkeypatch.setattr("kldcloud.pipeline.session.HIDDEN_LIMIT", -1.0)
    job = facts(pair.base, [pair.candidate], [corpus(128, CHUNKS)], encoding="hidden")
    notes = Notes()
    first = sweep(job, tmp_path, progress=notes)
    assert first.summary.encoding == "logits"
    (warning,) = notes.warnings
    assert warning.startswith("staging logits instead of hidden states: rebuilt logits are ")

    monkeypatch.undo()
    later = Notes()
    assert sweep(job, tmp_path, progress=later).run == first.run
    assert later.notes == [f"run {first.run} is complete already"]
    second = sweep(job | {"name": "other"}, tmp_path, progress=later)
    assert second.summary.encoding == "logits"
    assert later.warnings == []
    assert len({info.key.split("/")[1] for info in open_store(str(tmp_path)).list("stages/")}) == 2


@pytest.mark.slow
def test_a_base_that_does_not_load_is_named_and_leaves_no_word_on_its_states(
    pair: TinyPair, tmp_path: Path
) -> None:
    folder = folder_of(pair.base, tmp_path / "hf")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load(whole)
    del tensors["model.norm.weight"]
    store, notes = tmp_path / "store", Notes()
    job = facts(folder, [pair.candidate], [corpus(128, CHUNKS)], encoding="hidden")
    weights.write_bytes(save(tensors))
    with pytest.raises(FormatError, match=r"^base hf: .*has no tensor model\.norm\.weight"):
        sweep(job, store, progress=notes)
    assert notes.warnings == []
    assert not list(store.rglob("refused.json"))
    weights.write_bytes(whole)
    assert sweep(job, store).summary.encoding == "hidden"
