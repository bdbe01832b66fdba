"""What a sweep will take: tokens, rows, bytes, hours and money, before anything runs."""

from __future__ import annotations

from collections import Counter

from kldcloud.corpus.chunks import ChunkShape
from kldcloud.errors import UserError
from kldcloud.estimate.bases import Evaluation, is_stated, planned_base, prepared_base
from kldcloud.estimate.candidates import planned_candidates
from kldcloud.estimate.cost import (
    Crew,
    Rented,
    asked_accelerators,
    assumed_crew,
    gpu_count,
    price_of,
    start_seconds,
)
from kldcloud.estimate.files import has_folders, model_here
from kldcloud.estimate.numbers import Rate, SweepEstimate
from kldcloud.estimate.sizes import kld_bytes, stage_sizes, volumes
from kldcloud.estimate.speed import calibrated
from kldcloud.estimate.texts import (
    check_tokenizers,
    planned_corpora,
    planned_imatrices,
    prepared_corpora,
)
from kldcloud.pipeline.long_contexts import warn_of_long_contexts
from kldcloud.pipeline.machines import this_node
from kldcloud.pipeline.model_files import KldBase
from kldcloud.pipeline.options import engines
from kldcloud.pipeline.prepare import prepare_base
from kldcloud.pipeline.progress import Progress
from kldcloud.pipeline.workers import seats_for
from kldcloud.spec.cluster import ClusterSpec, cluster_name
from kldcloud.spec.job import SweepJob

__all__ = ["SweepEstimate", "estimate_sweep", "refuse_above"]


def estimate_sweep(
    job: SweepJob, cluster: ClusterSpec, rate: float | None, progress: Progress
) -> SweepEstimate:
    """Estimate a sweep; no candidate is made, and nothing is written to the store.

    On this machine the base is fetched if need be, as a launch would, unless the job states all
    that a plan needs of it. For other machines nothing but texts is ever downloaded.

    Args:
        job: the sweep.
        cluster: where it would run.
        rate: tokens a second of one worker; None takes the job's for this cluster, or evaluates
            (a part of) one chunk of the base where that is here and the cluster is this machine.
        progress: for downloads.

    Raises:
        UserError: for what the job names and is not there, or not what it should be.
    """
    name = cluster_name(job.cluster)
    engine, here = cluster.engine_for(job.engine), None
    gpu = bool(
        gpu_count(asked_accelerators(cluster.resources)) if cluster.remote else this_node().gpus
    )
    how = Evaluation(engine, gpu)
    on_gpu = engine.n_gpu_layers != 0 or (
        gpu and engine.transformers.device != "cpu" and has_folders(job)
    )
    if not cluster.remote and (_is_here(job) or not is_stated(job.base)):
        made, cut = prepare_base(job, progress)
        base, corpora = prepared_base(job, made, how), prepared_corpora(job, cut)
        longest = max((each.chunks[0] for each in cut), key=len)
        here = None if isinstance(made, KldBase) else (made, longest)
    else:
        base = planned_base(job.base, how)
        corpora = planned_corpora(job, base, progress)
    candidates = planned_candidates(job, base)
    check_tokenizers(job, progress)
    imatrices = planned_imatrices(job, base, progress)
    warn_of_long_contexts(
        {each.name: each.context for each in corpora},
        {each.name: each.trained_context for each in (base.file, *candidates)},
        progress,
    )
    chunks = sum(each.chunks for each in corpora)
    price = price_of(cluster)
    if cluster.remote:
        known = price.offer.accelerators if price.offer else ""
        crew = assumed_crew(
            cluster,
            job.engine,
            known or asked_accelerators(cluster.resources),
            chunks,
            on_gpu=on_gpu,
        )
    else:
        largest = max(each.size or 0 for each in (base.file, *candidates))
        rows = max(ChunkShape(each.context).rows for each in corpora)
        logits = 4 * rows * (base.vocabulary or 0)
        seats = seats_for(
            cluster, job.engine, [this_node()], largest, logits, chunks, on_gpu=on_gpu
        )
        crew = Crew(len(seats), seats[0].threads, "as this machine carries")
    speed = _stated_rate(job, name, rate)
    if speed.tokens is None and here is not None:
        texts = Counter[int]()
        for each in corpora:
            texts[each.context] += each.chunks * each.context
        threads = crew.threads or 1
        speed = calibrated(*here, texts, engines(engine, threads), threads, progress)
    stages, reason = stage_sizes(job, base, corpora, remote=job.store.startswith("s3:"))
    moved = volumes(
        base,
        candidates,
        (*corpora, *imatrices),
        stages[0] if stages else None,
        passes=len(candidates) + job.noise_floor,
        remote=cluster.remote,
        nodes=cluster.nodes,
        workers=crew.workers,
    )
    return SweepEstimate(
        name=job.name,
        cluster=name,
        provider=cluster.provider,
        nodes=cluster.nodes,
        store=job.store,
        base=base,
        candidates=candidates,
        floor=job.noise_floor,
        corpora=corpora,
        stages=stages,
        reason=reason,
        kld_bytes=kld_bytes(base, corpora),
        volumes=moved,
        crew=crew,
        rate=speed,
        start_seconds=start_seconds(cluster, moved.models_per_node),
        max_seconds=cluster.max_duration if cluster.remote else None,
        price=price,
        stop=job.stop,
        imatrices=imatrices,
    )


def refuse_without_access(estimate: Rented) -> None:
    """Refuse machines of clouds that this account cannot rent from.

    Raises:
        UserError: which clouds, and the command that looks for their credentials.
    """
    price = estimate.price
    if not price.enabled and price.offer is not None:
        from kldcloud.clusters.prices import Quote

        offers = tuple(each for each in (price.offer, price.runner_up) if each is not None)
        Quote(offers, price.catalog_date, enabled=False).require_enabled()


def refuse_above(estimate: Rented, max_cost: float) -> None:
    """Refuse a job that would cost more than a person allows, or nobody knows how much.

    A job that cannot cost more than that before the cluster ends it is let through in any case.

    Args:
        estimate: the plan.
        max_cost: USD.

    Raises:
        UserError: one line with the estimate, or with what is unknown.
    """
    likely, most = estimate.cost_estimate, estimate.cost_at_most
    if most is not None and most <= max_cost:
        return
    bound = f"the ${max_cost:,.2f} of --max-cost"
    if estimate.price.unknown:
        message = f"what {estimate.name} costs is unknown, so not within {bound}"
        raise UserError(f"{message}: {estimate.price.unknown}")
    if likely is None:
        raise UserError(
            f"how long {estimate.name} takes is unknown, so its cost may pass {bound}",
            hint=f"{estimate.says_how_fast}, or a max_duration in the cluster that keeps it below",
        )
    if likely > max_cost:
        raise UserError(
            f"{estimate.name} would cost about ${likely:,.2f} on {estimate.cluster}, more than "
            f"{bound}",
            hint="take cheaper machines, less text, or a higher bound",
        )


def _is_here(job: SweepJob) -> bool:
    uri = job.base.model or job.base.logits
    return uri is not None and model_here(uri) is not None


def _stated_rate(job: SweepJob, cluster: str, rate: float | None) -> Rate:
    if rate is not None:
        return Rate(rate, "as --rate says")
    if cluster in job.rates:
        return Rate(job.rates[cluster], f"as the job's rates.{cluster} says")
    return Rate(None, f"unknown: give --rate, or rates: {{{cluster}: ...}} in the job")
