"""How far a job that may stop would go, as far as an earlier run's chunks can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from kldcloud.divergence.forecast import Forecast, forecast
from kldcloud.errors import UserError
from kldcloud.pipeline.facts import rule_of
from kldcloud.pipeline.measured_chunks import measured_chunks
from kldcloud.pipeline.runs import find_run, read_summary
from kldcloud.spec.job import SweepJob

_FEWEST: Final = 3
"""Chunks: fewer show no scatter."""


def forecasts(job: SweepJob, chunks: Mapping[str, int], pilot: str) -> dict[str, Forecast]:
    """Forecast each text of a job that the pilot measured as well.

    Args:
        job: with a rule to stop.
        chunks: of its texts, by name.
        pilot: id of a run in the job's store, with the job's candidates or others like them.

    Raises:
        UserError: the job never stops early, or the pilot measured none of its texts.
    """
    if job.stop is None:
        raise UserError(
            "--pilot tells when a job would stop, and this one measures all there is",
            hint="add stop: {when: ranked} to the job, or --set stop.when=ranked",
        )
    rule = rule_of(job.stop)
    found = find_run(pilot, job.store)
    summary = read_summary(found)
    pairs = [
        (each.candidate, each.corpus)
        for each in summary.results
        if each.corpus in chunks and each.result and each.result.chunks >= _FEWEST
    ]
    if not pairs:
        raise UserError(
            f"run {found.run} has measured none of {', '.join(chunks)}",
            hint="launch the job with --set corpora[0].chunks=20 first, without its stop",
        )
    read = measured_chunks(found, summary, pairs)
    told = {}
    for corpus in dict.fromkeys(corpus for _, corpus in pairs):
        its = [read[pair] for pair in pairs if pair[1] == corpus]
        means = np.stack([each.means for each in its])
        told[corpus] = forecast(rule, means, its[0].sizes, chunks[corpus])
    return told
