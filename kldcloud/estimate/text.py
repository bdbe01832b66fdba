"""A plan as lines for the person who decides whether to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kldcloud.staging.choose import S3_BYTES_A_SECOND

if TYPE_CHECKING:
    from kldcloud.clusters.prices import Offer
    from kldcloud.estimate.cost import Rented
    from kldcloud.estimate.numbers import SweepEstimate

_MARGIN: Final = 12
_THOUSAND: Final = 1000
_SHORT_MINUTES: Final = 120
_SHORT_HOURS: Final = 120 * 60
_TEN: Final = 10


def to_text(plan: SweepEstimate) -> str:
    """The plan, a subject a line or two; no line depends on the width of a terminal."""
    against = f"against {plan.base.file.name} on {plan.cluster}"
    floor = " and the noise floor" if plan.floor else ""
    lines = [f"{plan.name}: {_counted(len(plan.candidates), 'candidate')}{floor} {against}"]
    for label, block in (
        ("text", _texts(plan)),
        ("base stage", _stages(plan)),
        ("store", _store(plan)),
        ("download", _download(plan)),
        ("upload", _upload(plan)),
        ("work", _work(plan)),
        ("stop", _stop(plan)),
        ("time", _time(plan)),
        ("machine", machine_lines(plan)),
        ("money", money_lines(plan)),
    ):
        for number, line in enumerate(block):
            lines.append(f"  {'' if number else label:<{_MARGIN}}{line}")
    return "\n".join(lines)


def machine_words(offer: Offer) -> str:
    """A machine in words: where, which, with what, and whether it is lent for good."""
    parts = [" ".join(part for part in (offer.infra, offer.instance) if part)]
    parts += [offer.accelerators] if offer.accelerators else []
    parts += [("spot" if offer.spot else "on demand")] if offer.hourly else []
    return ", ".join(parts)


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < _THOUSAND:
            return f"{count:.3g} {unit}"
        count /= _THOUSAND
    return f"{count:,.3g} TB"


def duration(seconds: float) -> str:
    """A time in the unit that people would say it in."""
    if seconds < _SHORT_MINUTES:
        return f"{seconds:.0f} s"
    if seconds < _SHORT_HOURS and seconds % 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.3g} h"


def _texts(plan: SweepEstimate) -> list[str]:
    known = {"counted": "", "stated": ", as the job states", "estimated": ", by its size"}
    return [
        f"{each.name}: {_counted(each.chunks, 'chunk')} of {each.context} tokens, "
        f"{each.rows:,} scored positions (of {each.tokens:,} tokens{known[each.source]})"
        for each in plan.corpora
    ]


def _stages(plan: SweepEstimate) -> list[str]:
    if not plan.stages or plan.kld_bytes is None:
        state = "state its expect: {bytes, vocabulary, width} in the job"
        return [f"unknown: {plan.reason}, for the file is not here ({state})"]
    lines = []
    for each in plan.stages:
        about = "" if each.exact else "up to "
        ratio = _round(plan.kld_bytes / each.bytes)
        tried = "; logits if one chunk shows that states do not hold" if each.exact else ""
        chosen = f" <- chosen: {plan.reason}{tried}" if each.chosen else ""
        line = f"{each.encoding}: {about}{size(each.bytes)}, {ratio} times less than .kld{chosen}"
        lines.append(line)
    return [*lines, f".kld, for comparison: {size(plan.kld_bytes)} ({plan.kld_bytes:,} bytes)"]


def _store(plan: SweepEstimate) -> list[str]:
    if plan.provider != "local" and not plan.store.startswith("s3:"):
        return [f"{plan.store} is a folder here; other machines need --store s3://bucket/prefix"]
    return [plan.store]


def _download(plan: SweepEstimate) -> list[str]:
    moved, local = plan.volumes, plan.provider == "local"
    where = "on each machine" if plan.nodes > 1 else "on the machine"
    lines = []
    if moved.models_per_node or moved.unknown or not local:
        more = f"; of unknown size: {', '.join(moved.unknown)}" if moved.unknown else ""
        there = "not here yet" if local else where
        lines.append(f"{size(moved.models_per_node)} of models {there}{more}")
    if moved.unknown:
        lines.append("(state their expect: {bytes: ...} in the job)")
    if moved.stage_per_node is not None and plan.store.startswith("s3:"):
        read = "read here" if local else f"read {where}"
        lines.append(f"{size(moved.stage_per_node)} of base stage {read}, over all candidates")
    return lines


def _upload(plan: SweepEstimate) -> list[str]:
    moved = plan.volumes
    if not moved.uploads:
        return []
    return [f"{size(moved.upload)} from this machine, once: {', '.join(moved.uploads)}"]


def _work(plan: SweepEstimate) -> list[str]:
    workers = _counted(plan.crew.workers, "worker")
    threads = f" of {_counted(plan.crew.threads, 'thread')}" if plan.crew.threads else ""
    machines = f" on {_counted(plan.nodes, 'machine')}" if plan.provider != "local" else ""
    rate = plan.rate.source
    if plan.rate.tokens is not None:
        rate = f"{_round(plan.rate.tokens)} tokens/s a worker, {rate}"
    evaluations = _counted(plan.runs * plan.chunks, "chunk evaluation")
    first = [
        f"first {_counted(each.chunks, 'chunk')} of {each.context} tokens for the importance "
        f"matrix of {each.name}"
        for each in plan.imatrices
    ]
    return [
        *first,
        f"{evaluations}, {_counted(plan.evaluated_tokens, 'token')}",
        f"{workers}{threads}{machines} ({plan.crew.source})",
        f"rate {rate}",
    ]


def _stop(plan: SweepEstimate) -> list[str]:
    stop = plan.stop
    if stop is None:
        return []
    what = "the ranking is settled"
    if stop.half_width is not None:
        what = f"each mean is known to {100 * stop.half_width:g} %"
    sure = f"({100 * stop.confidence:g} % confidence)"
    lines = [
        f"all that is at most: ends when {what} {sure}, first asked after {stop.least} chunks",
    ]
    for name, found in plan.forecasts.items():
        likely = f"about {found.likely:,} of {found.of:,} chunks"
        if not found.settles:
            likely = f"all {found.of:,} chunks, and even then nothing settled"
        lines.append(f"{name}: the pilot suggests {likely} ({found.low:,} to {found.high:,})")
    return lines


def _time(plan: SweepEstimate) -> list[str]:
    if plan.seconds is None:
        return ["unknown, as the rate is"]
    if plan.provider == "local":
        return [f"about {duration(plan.seconds)}, downloads aside"]
    total = plan.start_seconds + plan.seconds
    start = f"start, set-up and downloads at {size(S3_BYTES_A_SECOND)}/s"
    assumed = f"{duration(plan.start_seconds)} assumed for {start}"
    lines = [f"about {duration(total)}: {duration(plan.seconds)} of work, {assumed}"]
    if plan.max_seconds is not None and total > plan.max_seconds:
        lines.append(
            f"longer than max_duration ({duration(plan.max_seconds)}), which would end it; "
            "the same launch would go on from there"
        )
    return lines


def machine_lines(plan: Rented) -> list[str]:
    """Which machine it would be, and which one next; nothing for this one."""
    price = plan.price
    if plan.provider == "local":
        return []
    if price.offer is None:
        return [f"unknown: {price.unknown}"]
    lines = [_offered(price.offer)]
    if price.runner_up is not None:
        lines.append(f"next: {_offered(price.runner_up)}")
    if price.catalog_date:
        lines.append(f"(SkyPilot's price lists of {price.catalog_date})")
    if not price.enabled:
        lines.append("(anybody's prices: no credentials for it here; see `sky check`)")
    return lines


def _offered(offer: Offer) -> str:
    price = f"${offer.hourly:,.2f} an hour" if offer.hourly else "your own machine"
    return f"{machine_words(offer)}, {price}"


def money_lines(plan: Rented) -> list[str]:
    """What it would cost, likely and at most."""
    if plan.hourly == 0.0:
        return ["nothing by the hour"]
    if plan.hourly is None:
        return ["unknown, as the machine is"]
    if plan.cost_at_most is None or plan.max_seconds is None:
        return []
    hourly = f"${plan.hourly:,.2f} an hour" if plan.nodes > 1 else ""
    most = f"at most ${plan.cost_at_most:,.2f}, when max_duration ({duration(plan.max_seconds)})"
    likely = "unknown, as the time is"
    if plan.cost_estimate is not None:
        likely = f"about ${plan.cost_estimate:,.2f}"
    return [f"{likely}; {most} ends it", *([f"({hourly} for all machines)"] if hourly else [])]


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= _TEN else f"{value:.2g}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
