"""The worker: one process that holds one loaded model and turns shards into committed objects."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kldcloud.corpus.chunks import ChunkShape, Tokens
from kldcloud.divergence.kernel import TokenStatistics
from kldcloud.divergence.partial import Partial, PartialIdentity
from kldcloud.divergence.records import TokenRecords, concatenate
from kldcloud.divergence.worst_file import dump_worst, of_chunks
from kldcloud.errors import EngineError, FormatError, KldcloudError
from kldcloud.models.engine import Engine
from kldcloud.models.engines import load_engine
from kldcloud.pipeline.ahead import base_rows, code_frames, evaluated
from kldcloud.pipeline.compared import Compared, compare_logits
from kldcloud.pipeline.life import worker_key
from kldcloud.pipeline.machines import Seat, WorkerSettings
from kldcloud.pipeline.pulse import WorkerPulse
from kldcloud.pipeline.sources import local_copy
from kldcloud.pipeline.tasks import EngineRef, MeasureTask, ModelRef, Reply, StageTask, Task
from kldcloud.staging.encodings import Encoding, HiddenEncoding, LogitsEncoding
from kldcloud.staging.folder_head import read_base_head
from kldcloud.staging.stage import StageIdentity, write_shard
from kldcloud.staging.stage_reader import StageReader, make_encoding
from kldcloud.store import open_store

if TYPE_CHECKING:
    from kldcloud.divergence.linear.side import LinearSide
    from kldcloud.pipeline.compared_states import BaseSide


class SweepWorker:
    """Runs tasks one at a time; keeps the model, the stage and their buffers between them.

    Args:
        settings: what all workers of a launch are told.
        seat: what this one has of its machine: threads for the engine, the kernel and rebuilds.
        number: which worker this is.
    """

    def __init__(self, settings: WorkerSettings, seat: Seat, number: int) -> None:
        if seat.memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (seat.memory, seat.memory))
        self._started_cpu = time.process_time()
        self._store = open_store(settings.store)
        self._threads = seat.threads
        self._remote = settings.remote
        self._pulse = WorkerPulse(
            self._store, worker_key(settings.run, settings.attempt, number), number
        )
        self._engine: tuple[EngineRef, Engine] | None = None
        self._encoding: tuple[StageIdentity, Encoding] | None = None
        self._stage: tuple[str, StageReader, Tokens] | None = None
        self._base: tuple[str, BaseSide] | None = None

    def ping(self) -> int:
        """This process's id: proof that it answers."""
        return os.getpid()

    def usage(self) -> dict[str, float]:
        """What this process has used: CPU seconds at work and before it, peak resident bytes."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu_seconds": time.process_time() - self._started_cpu,
            "start_cpu_seconds": self._started_cpu,
            "peak_bytes": usage.ru_maxrss * 1024.0,
        }

    def run(self, task: Task) -> Reply:
        """Do a task and commit its object. Failures that people can read come back as a reply."""
        self._pulse.begin(task.key)
        try:
            if isinstance(task, StageTask):
                self._run_stage(task)
            else:
                self._run_measure(task)
        except KldcloudError as error:
            return Reply(task.key, error)
        except MemoryError:
            exhausted = EngineError("out of memory", hint="use fewer workers or a smaller context")
            return Reply(task.key, exhausted)
        finally:
            self._pulse.rest()
        return Reply(task.key)

    def hidden_error(
        self, ref: EngineRef, identity: StageIdentity, chunk: bytes
    ) -> float | str | Reply:
        """Mean KLD in nats between the engine's logits of a chunk and those rebuilt from states.

        Returns:
            Words if there are no such states; an error if the engine fails without them as well.
        """
        try:
            tokens = np.frombuffer(chunk, "<i4")
            next_tokens = ChunkShape(identity.context).next_tokens(tokens)
            encoding = self._encoding_for(ref, identity)
            output = self._engine_for(ref).evaluate(tokens, hidden=True)
            frame = encoding.encode(output, next_tokens)
            statistics = compare_logits(
                encoding.pieces(frame),
                output.logits,
                next_tokens,
                threads=self._threads,
                llama_compat=False,
            ).statistics
            # Its buffer is a chunk of logits, which this worker may never need again.
            self._encoding = None
            return float(statistics.kld.mean())
        except KldcloudError as error:
            return self._without_states(ref, chunk) or str(error)

    def _without_states(self, ref: EngineRef, chunk: bytes) -> Reply | None:
        try:
            self._engine_for(ref).evaluate(np.frombuffer(chunk, "<i4"))
        except KldcloudError as error:
            return Reply("", error)
        return None

    def _run_stage(self, task: StageTask) -> None:
        identity = task.identity
        chunks = list(np.frombuffer(task.tokens, "<i4").reshape(task.shard.count, identity.context))
        encoding = self._encoding_for(task.engine, identity)
        engine = self._engine_for(task.engine)
        shape = ChunkShape(identity.context)
        following = [shape.next_tokens(chunk) for chunk in chunks]
        made: Iterable[bytes]
        if engine.on_gpu and isinstance(encoding, LogitsEncoding):
            made = code_frames(engine, encoding, chunks, following)
        else:
            made = (_frame(engine, encoding, *each) for each in zip(chunks, following, strict=True))
        frames = []
        for frame in made:
            frames.append(frame)
            self._pulse.step()
        write_shard(self._store, identity, task.shard, frames)

    def _run_measure(self, task: MeasureTask) -> None:
        reader, tokens = self._stage_for(task.stage, task.upto)
        engine = self._engine_for(task.engine)
        if engine.vocabulary.size != reader.identity.vocabulary:
            raise FormatError(
                f"{task.candidate} has a vocabulary of {engine.vocabulary.size}, "
                f"the base {reader.identity.vocabulary}",
                hint="only models with the base's tokenizer can be compared with it",
            )
        shape = ChunkShape(reader.identity.context)
        parts, worst = [], []
        chunks = task.shard.chunks
        found = self._compared(engine, reader, [tokens[chunk] for chunk in chunks], chunks, task)
        for chunk, compared in zip(chunks, found, strict=True):
            next_tokens = shape.next_tokens(tokens[chunk])
            parts.append(_records(compared.statistics, chunk, shape, next_tokens))
            worst.append(compared.worst)
            self._pulse.step()
        identity = PartialIdentity(
            task.run, task.candidate, task.corpus, task.shard.first, task.shard.count
        )
        partial = Partial.from_records(concatenate(parts), identity=identity)
        # First, so that whoever sees the partial finds it too.
        kept = of_chunks(worst, first=task.shard.first, first_position=shape.first)
        self._store.write_new(task.worst_key, dump_worst(kept, identity))
        self._store.write_new(task.key, partial.to_bytes())

    def _compared(
        self,
        engine: Engine,
        reader: StageReader,
        tokens: Sequence[Tokens],
        chunks: Sequence[int],
        task: MeasureTask,
    ) -> Iterator[Compared]:
        """Chunk after chunk against the base: on the GPU where both sides can be there."""
        shape = ChunkShape(reader.identity.context)
        encoding, llama = reader.encoding, task.llama_compat
        first = engine.side(tokens[0]) if isinstance(encoding, HiddenEncoding) else None
        if first is not None:
            base = self._base_side(reader, first)
            before = None
            for at, chunk in enumerate(chunks):
                side = first if at == 0 else engine.side(tokens[at])
                assert side is not None  # noqa: S101 - one chunk has had one
                following = shape.next_tokens(tokens[at])
                soon = base.begin(reader.frame(chunk), side, following, llama_compat=llama)
                # Only now that the GPU has the next chunk's work: it never waits for the CPU.
                if before is not None:
                    yield before.result()
                before = soon
            assert before is not None  # noqa: S101 - a shard has chunks
            yield before.result()
            return
        bases = base_rows(reader, chunks, ahead=engine.on_gpu)
        for own, base_of, logits in zip(tokens, bases, evaluated(engine, tokens), strict=True):
            yield compare_logits(
                base_of,
                logits,
                shape.next_tokens(own),
                threads=self._threads,
                llama_compat=llama,
            )

    def _base_side(self, reader: StageReader, candidate: LinearSide) -> BaseSide:
        from kldcloud.pipeline.compared_states import BaseSide

        key, encoding = reader.identity.key, reader.encoding
        assert isinstance(encoding, HiddenEncoding)  # noqa: S101 - the caller has asked
        if self._base is None or self._base[0] != key:
            self._base = None
            self._base = (key, BaseSide(encoding, candidate.weight.device))
        return self._base[1]

    def _engine_for(self, ref: EngineRef) -> Engine:
        if self._engine is None or self._engine[0] != ref:
            if self._engine is not None:
                # Free the old model first: two never fit where one just does.
                self._engine[1].close()
                self._engine = None
            path = self._path_of(ref.model)
            engine = load_engine(path, ref.context, ref.options, threads=self._threads)
            self._engine = (ref, engine)
            self._pulse.moved()
        return self._engine[1]

    def _path_of(self, model: ModelRef) -> Path:
        """Where this machine has a model; on another machine than the driver's it may come now."""
        if not self._remote:
            return model.path
        return local_copy(model, self._store, lambda _done, _all: self._pulse.moved())

    def _encoding_for(self, ref: EngineRef, identity: StageIdentity) -> Encoding:
        if self._encoding is None or self._encoding[0] != identity:
            head = None
            if identity.encoding == "hidden":
                head = read_base_head(self._path_of(ref.model), ref.options)
            self._encoding = (identity, make_encoding(identity, head, threads=self._threads))
        return self._encoding[1]

    def _stage_for(self, key: str, upto: int | None) -> tuple[StageReader, Tokens]:
        if self._stage is None or self._stage[0] != key:
            self._stage = self._base = None
            reader = StageReader(self._store, key, upto, threads=self._threads)
            self._stage = (key, reader, reader.tokens())
        elif self._stage[1].upto != upto:
            self._stage[1].look(upto)
        return self._stage[1], self._stage[2]


def _frame(engine: Engine, encoding: Encoding, chunk: Tokens, next_tokens: Tokens) -> bytes:
    """What a stage keeps of one chunk."""
    if isinstance(encoding, HiddenEncoding) and (states := engine.states(chunk)) is not None:
        return encoding.encode_states(states)
    return encoding.encode(engine.evaluate(chunk, hidden=encoding.needs_hidden), next_tokens)


def _records(
    statistics: TokenStatistics, chunk: int, shape: ChunkShape, next_tokens: Tokens
) -> TokenRecords:
    columns: Mapping[str, object] = {
        name: getattr(statistics, name) for name in TokenStatistics.__slots__
    }
    return TokenRecords(
        chunk=np.full(shape.rows, chunk, np.int32),
        position=shape.positions(),
        token=next_tokens,
        **columns,  # type: ignore[arg-type]  # the same names, one type each
    )
