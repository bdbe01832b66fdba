"""What a run leaves in its folder: plan and job, reports, summary.json, and signs of life."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence

from kldcloud.errors import KldcloudError
from kldcloud.pipeline.plan import SweepPlan
from kldcloud.pipeline.reduce import Reduced
from kldcloud.pipeline.runs import FoundRun, job_bytes, read_profiles, read_worst
from kldcloud.qad.result_file import QadResult
from kldcloud.report.html import render_html
from kldcloud.report.markdown import render_markdown
from kldcloud.report.profile_file import parse_profiles
from kldcloud.report.render import render
from kldcloud.report.summary_file import MAX_SUMMARY_BYTES, Summary, parse_summary
from kldcloud.report.worst_file import parse_worst
from kldcloud.staging.stage import canonical_json
from kldcloud.store.base import Store


def note_plan(store: Store, plan: SweepPlan) -> None:
    """Leave what a run is made of beside it, for people and for `report` and `export-kld`."""
    stages = [
        [corpus.name, identity.key]
        for corpus, identity in zip(plan.prepared.corpora, plan.stages, strict=True)
    ]
    facts = {
        "run": plan.run,
        "encoding": plan.choice.encoding,
        "stages": stages,
        "candidates": [candidate.name for candidate in plan.prepared.measured],
        "corpora": [[c.name, c.count, c.context] for c in plan.prepared.corpora],
    }
    if any(corpus.checkpoints for corpus in plan.prepared.corpora):
        facts["checkpoints"] = [[c.name, *c.checkpoints] for c in plan.prepared.corpora]
    store.write_new(f"{plan.prefix}/plan.json", canonical_json(facts))
    store.write_new(f"{plan.prefix}/job.yaml", job_bytes(plan.prepared.job))


def finished(store: Store, plan: SweepPlan) -> Summary | None:
    """The run's summary if it is complete."""
    key = f"{plan.prefix}/summary.json"
    if store.size(key) is None:
        return None
    return parse_summary(store.read(key, limit=MAX_SUMMARY_BYTES))


def publish(
    store: Store, plan: SweepPlan, summary: Summary, reduced: Reduced, *, partial: bool
) -> None:
    """Write the reports; summary.json last, and only if nothing is missing from it."""
    prefix, data = plan.prefix, reduced.summary
    store.write(f"{prefix}/profile.json", reduced.profile)
    store.write(f"{prefix}/worst.json", reduced.worst)
    store.write(f"{prefix}/report.md", render(summary, "md").encode())
    store.write(f"{prefix}/report.csv", render(summary, "csv").encode())
    page = render_html(summary, parse_profiles(reduced.profile), parse_worst(reduced.worst))
    store.write(f"{prefix}/report.html", page.encode())
    if partial:
        store.write(f"{prefix}/summary-partial.json", data)
        return
    if not store.write_new(f"{prefix}/summary.json", data):
        stored = store.read(f"{prefix}/summary.json", limit=MAX_SUMMARY_BYTES)
        if stored != data:
            raise KldcloudError(
                f"{prefix}/summary.json is there already and differs from this result",
                hint="keep both stores and report this: it must never happen",
            )
    store.delete(f"{prefix}/summary-partial.json")


def publish_training(store: Store, summary: Summary, training: QadResult) -> None:
    """Write the reports again, with the distillation that made one of the candidates."""
    found = FoundRun(summary.run, store)
    page = render_html(summary, read_profiles(found), read_worst(found), training)
    store.write(f"{found.prefix}/report.html", page.encode())
    text = render_markdown(summary, training=training)
    store.write(f"{found.prefix}/report.md", text.encode())


def note_life(
    store: Store,
    plan: SweepPlan,
    attempt: str,
    machines: Mapping[str, object],
    usage: Sequence[Mapping[str, float]],
) -> None:
    """Wall clock, machines and what they used: worth keeping, never part of the summary."""
    life = {
        **machines,
        "driver": socket.gethostname(),
        "driver_cpu_seconds": round(time.process_time(), 3),
        "worker_usage": [dict(each) for each in usage],
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    store.write(f"{plan.prefix}/life/{attempt}/ended.json", canonical_json(life))
