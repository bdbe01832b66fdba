"""A sweep from a validated job to a reported run: the order of things, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kldcloud.errors import EngineError
from kldcloud.models.llama_library import llama
from kldcloud.models.tokenizer import token_texts
from kldcloud.pipeline.dispatch import Failure
from kldcloud.pipeline.facts import rule_of
from kldcloud.pipeline.life import DriverLife, new_attempt
from kldcloud.pipeline.long_contexts import warn_of_long_contexts
from kldcloud.pipeline.machines import GPUS, Machines, NodeFacts, Seat
from kldcloud.pipeline.measuring import measure_all
from kldcloud.pipeline.model_files import KldBase, Model
from kldcloud.pipeline.options import Engines, engines, torch_device, uses_gpu
from kldcloud.pipeline.plan import MIXED, SweepPlan, make_plan
from kldcloud.pipeline.prepare import PreparedSweep, prepare
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.publish import finished, note_life, note_plan, publish
from kldcloud.pipeline.pulse import DriverPulse
from kldcloud.pipeline.reduce import reduce_run
from kldcloud.pipeline.session import Session
from kldcloud.pipeline.side_by_side import warn_of_another_driver
from kldcloud.pipeline.sources import HERE, Sources
from kldcloud.pipeline.stopping import measure_until_settled
from kldcloud.pipeline.workers import seats_for
from kldcloud.report.summary_file import Summary, parse_summary
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.staging.stage import load_json
from kldcloud.store import check_usable
from kldcloud.store.base import Store


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """A finished sweep.

    Attributes:
        run: its id.
        summary: checked content of summary.json.
        failures: groups that were given up, by name.
        seconds: wall-clock of this launch.
    """

    run: str
    summary: Summary
    failures: Mapping[str, Failure]
    seconds: float


@dataclass(frozen=True, slots=True)
class Launched:
    """What a driver on rented machines is part of; on this machine the defaults say it all.

    Attributes:
        launch: its id in the store; empty on this machine.
        attempt: this driver's; made up if empty.
        sources: where it finds what the job names.
        allow_mixed: whether machines whose engines differ may share the work.
        on_run: called with the run's id as soon as it is known.
    """

    launch: str = ""
    attempt: str = ""
    sources: Sources = HERE
    allow_mixed: bool = False
    on_run: Callable[[str], None] = lambda _: None


ON_ITS_OWN: Final = Launched()
"""Part of no launch on other machines."""


def run_sweep(
    job: SweepJob,
    cluster: ClusterSpec,
    store: Store,
    progress: Progress,
    machines: Machines | None = None,
    launched: Launched = ON_ITS_OWN,
) -> SweepOutcome:
    """Run a sweep, or what is left of it; the same job and store always end in the same bytes.

    Args:
        job: what is measured.
        cluster: how machines are divided among workers.
        store: where everything is kept.
        progress: for the person at the terminal.
        machines: where workers run; this machine if None.
        launched: what the driver is part of.

    Raises:
        KldcloudError: one line that says what, where and the next step.
    """
    started = time.monotonic()
    # What would end the run after hours of downloads and quantising ends it now.
    check_usable(store)
    llama()
    machines = machines or this_machine()
    nodes = machines.nodes()
    engine = cluster.engine_for(job.engine)
    mixed = mixed_engines(nodes, gpus=engine.n_gpu_layers != 0, allowed=launched.allow_mixed)
    prepared = prepare(job, progress, launched.sources, engine)
    warn_of_long_contexts(
        {each.name: each.context for each in prepared.corpora},
        {each.name: each.trained_context for each in _models(prepared)},
        progress,
    )
    if prepared.has_ggufs:
        check_layers_on_gpu(engine.n_gpu_layers, nodes, progress)
    if prepared.has_folders:
        gpus = torch_device(engine.transformers) != "cpu"
        mixed |= mixed_libraries(nodes, gpus=gpus, allowed=launched.allow_mixed)
    seats = seats_for(
        cluster,
        job.engine,
        nodes,
        model_bytes=_largest_model(prepared, engines(engine, threads=1)),
        logits_bytes=max(4 * prepared.vocabulary * c.shape.rows for c in prepared.corpora),
        chunks=sum(c.count for c in prepared.corpora),
        on_gpu=uses_gpu(engine, folders=prepared.has_folders),
    )
    runs = engines(engine, seats[0].threads)
    plan = make_plan(prepared, runs, remote=store.uri.startswith("s3:"), mixed=mixed)
    refused = _refusal_on_record(store, plan)
    if refused is not None:
        plan = make_plan(prepared, runs, remote=False, force_logits=refused, mixed=mixed)
    if (found := finished(store, plan)) is not None:
        launched.on_run(plan.run)
        progress.note(f"run {plan.run} is complete already")
        return SweepOutcome(plan.run, found, {}, time.monotonic() - started)
    attempt = launched.attempt or new_attempt()
    session = Session(store, progress, machines, seats, attempt, cluster.shard_deadline)
    life = DriverLife(
        attempt, launch=launched.launch, workers=len(seats), context=_context(prepared)
    )
    with session:
        plan = session.settle(plan)
        launched.on_run(plan.run)
        note_plan(store, plan)
        warn_of_another_driver(store, plan.run, launched.launch, progress)
        with DriverPulse(store, plan.run, life) as pulse:
            if job.stop is None:
                measured = measure_all(session, plan, pulse)
            else:
                rule = rule_of(job.stop)
                measured = measure_until_settled(session, store, plan, rule, pulse, progress)
            failures = measured.failures
            session.rest()
            pulse.change(state="reducing", label="reducing", failures=_lines(failures))
            with_failures = {name: failures[name] for name in sorted(failures)}
            texts = token_texts(prepared.tokenizer)
            reduced = reduce_run(
                store, measured.plan, texts, measured.shards, with_failures, measured.stopped
            )
            summary = parse_summary(reduced.summary)
            publish(store, plan, summary, reduced, partial=bool(failures))
    seconds = time.monotonic() - started
    note_life(store, plan, attempt, _machine_facts(nodes, seats, seconds), session.usage)
    return SweepOutcome(plan.run, summary, with_failures, seconds)


def this_machine() -> Machines:
    """Where a job runs that was given no machines."""
    from kldcloud.clusters.local_ray import LocalMachines

    return LocalMachines()


def check_layers_on_gpu(layers: int, nodes: Sequence[NodeFacts], progress: Progress) -> None:
    """Say so where layers are meant to be on GPUs and llama.cpp has none: it would not.

    Args:
        layers: the option n_gpu_layers.
        nodes: the machines.
        progress: is warned where a machine has no GPU.

    Raises:
        EngineError: a machine has NVIDIA GPUs, and its llama.cpp sees none: what is paid for
            would idle.
    """
    if layers == 0:
        return
    for node in nodes:
        if node.engine.get("backend") != "CPU":
            continue
        if node.gpus:
            raise EngineError(
                f"n_gpu_layers is {layers}, and llama.cpp of {node.host} sees none of its GPUs",
                hint="if it was built without CUDA, CMAKE_ARGS=-DGGML_CUDA=on pip install "
                "--force-reinstall --no-cache-dir llama-cpp-python where nvcc is; or set "
                "engine.n_gpu_layers: 0",
            )
        progress.warn(
            f"n_gpu_layers is {layers}, and {node.host} has no GPU that llama.cpp knows: "
            "its models run on the CPU"
        )


def mixed_engines(nodes: Sequence[NodeFacts], *, gpus: bool, allowed: bool) -> dict[str, str]:
    """What differs between the machines' engines, for the run's identity if that is allowed.

    Args:
        nodes: the machines.
        gpus: whether any work is done on GPUs; else those may differ.
        allowed: whether machines may differ.

    Raises:
        EngineError: if they differ and may not: their numbers would depend on who did what.
    """
    facts = [(node.host, node.engine if gpus else node.engine_on_cpu) for node in nodes]
    return _mixed(facts, allowed=allowed)


def mixed_libraries(nodes: Sequence[NodeFacts], *, gpus: bool, allowed: bool) -> dict[str, str]:
    """The same of torch, transformers and the GPUs that they run on.

    Args:
        nodes: the machines.
        gpus: as for `mixed_engines`.
        allowed: whether machines may differ.

    Raises:
        EngineError: as `mixed_engines`.
    """
    unused = set() if gpus else {GPUS}
    libraries = [
        (node.host, {name: node.libraries[name] for name in node.libraries.keys() - unused})
        for node in nodes
    ]
    return _mixed(libraries, allowed=allowed)


def _mixed(machines: Sequence[tuple[str, Mapping[str, str]]], *, allowed: bool) -> dict[str, str]:
    host, first = machines[0]
    names = sorted({name for _, facts in machines for name in facts})
    differ = {
        name: sorted({facts.get(name, "") for _, facts in machines})
        for name in names
        if any(facts.get(name) != first.get(name) for _, facts in machines)
    }
    if not differ:
        return {}
    if not allowed:
        name = min(differ)
        other, its = next(each for each in machines if each[1].get(name) != first.get(name))
        raise EngineError(
            f"machines differ in the engine's {name}: {host} has "
            f"'{first.get(name, '')}', {other} '{its.get(name, '')}'",
            hint="ask for machines of one kind, or add --allow-mixed to have it on record",
        )
    return {f"{MIXED}{name}": " / ".join(values) for name, values in differ.items()}


def _largest_model(prepared: PreparedSweep, runs: Engines) -> int:
    return max(runs.loaded_bytes(model) for model in _models(prepared))


def _models(prepared: PreparedSweep) -> list[Model]:
    """The base, if it is a model, and the candidates."""
    base = () if isinstance(prepared.base, KldBase) else (prepared.base,)
    return [*base, *prepared.candidates]


def _context(prepared: PreparedSweep) -> float:
    chunks = sum(corpus.count for corpus in prepared.corpora)
    return sum(corpus.count * corpus.context for corpus in prepared.corpora) / chunks


def _lines(failures: Mapping[str, Failure]) -> tuple[str, ...]:
    return tuple(f"{name}: {failure.key}: {failure.cause}" for name, failure in failures.items())


def _machine_facts(
    nodes: Sequence[NodeFacts], seats: Sequence[Seat], seconds: float
) -> dict[str, object]:
    return {
        "seconds": round(seconds, 3),
        "nodes": [{"host": node.host, "cores": node.cores, "gpus": node.gpus} for node in nodes],
        "workers": len(seats),
        "threads": seats[0].threads,
    }


def _refusal_on_record(store: Store, plan: SweepPlan) -> str | None:
    """Why an earlier launch found hidden states unfit for this base, if one did."""
    if plan.choice.encoding != "hidden":
        return None
    key = f"{plan.stages[0].prefix}/refused.json"
    if store.size(key) is None:
        return None
    return str(load_json(store, key).get("reason"))
