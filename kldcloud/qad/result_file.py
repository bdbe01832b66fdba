"""result.json: what came of a distillation, for whoever has its store."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from kldcloud.qad.looks import Look, best_of
from kldcloud.qad.progress_file import read_record
from kldcloud.staging.stage import canonical_json
from kldcloud.store.base import Store

SCHEMA: Final = "kldcloud.qad-result/1"
RESULT: Final = "result.json"
_MOST_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class QadResult:
    """What came of a distillation.

    Attributes:
        schema: `kldcloud.qad-result/1`.
        run: its id.
        teacher: the base of the sweep that measured it.
        init: the candidate that the student started from.
        student: the candidate that is the student; empty if nothing was trained.
        steps: that were trained.
        tokens: that were trained on, passes counted.
        looks: at held-out text on the way, in order.
        export: key of the student's file in the store; empty if nothing was trained.
        sweep: the run that measured it.
        verdict: what was gained, a line a text.
        failed: why the student is no better than its init; None if it is.
    """

    schema: str
    run: str
    teacher: str
    init: str
    student: str
    steps: int
    tokens: int
    looks: tuple[Look, ...]
    export: str
    sweep: str
    verdict: tuple[str, ...]
    failed: str | None

    @property
    def chosen(self) -> Look | None:
        """The look whose checkpoint became the file."""
        return best_of(self.looks)


def write_result(store: Store, prefix: str, result: QadResult) -> None:
    store.write(f"{prefix}/{RESULT}", canonical_json(asdict(result)))


def read_result(store: Store, prefix: str) -> QadResult | None:
    """What came of a run; None if it has not got so far, or left nothing like it."""
    found = read_record(store, f"{prefix}/{RESULT}", QadResult, limit=_MOST_BYTES)
    return found if found and found.schema == SCHEMA else None
