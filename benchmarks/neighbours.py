"""How much errors by chunk leave out because neighbouring chunks of a text are alike.

    python benchmarks/neighbours.py STORE/runs/RUN

Every error that is printed takes the chunks of a text for a sample of independent ones. A text has
a course, so neighbours are a little alike, and means of blocks of k neighbours scatter more than
single chunks let expect. Each figure is the standard error by blocks over the one by chunks, of a
run's tokens.parquet: 1 where chunks are independent. By b blocks that ratio is itself uncertain, by
about 1 / sqrt(2 (b - 1)) of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pyarrow import parquet

BLOCKS = (2, 4, 8)
COLUMNS = ("kld", "nll", "nll_base")


def chunk_means(run: Path) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """For each candidate on each text, [chunks, 3]: means of the columns, in the text's order."""
    table = parquet.read_table(
        run / "tokens.parquet", columns=["candidate", "corpus", "chunk", *COLUMNS]
    )
    keys = ["candidate", "corpus", "chunk"]
    means = (
        table.group_by(keys)
        .aggregate([(name, "mean") for name in COLUMNS])
        .sort_by([(key, "ascending") for key in keys])
    )
    names = [
        f"{one} on {other}"
        for one, other in zip(*(means[key].to_pylist() for key in keys[:2]), strict=True)
    ]
    values = np.stack([means[f"{name}_mean"].to_numpy() for name in COLUMNS], axis=1)
    for name in dict.fromkeys(names):
        yield name, values[[each == name for each in names]]


def widening(values: npt.NDArray[np.float64], size: int) -> float:
    """Standard error of the mean by blocks of so many neighbours, over the one by single ones."""
    blocks = len(values) // size
    kept = values[: blocks * size]
    by_block = kept.reshape(blocks, size).mean(axis=1)
    return float(by_block.std(ddof=1) / np.sqrt(blocks) / (kept.std(ddof=1) / np.sqrt(len(kept))))


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Errors by blocks of chunks over those by chunk.")
    parser.add_argument("run", type=Path, help="folder of a run that is done")
    run = parser.parse_args().run
    if not (run / "tokens.parquet").is_file():
        parser.error(f"{run} has no tokens.parquet: name the folder of a run that is done")
    for name, means in chunk_means(run):
        print(f"{name}, {len(means)} chunks{'':12}" + "".join(f"  blocks of {k}" for k in BLOCKS))
        kld, nll, nll_base = means.T
        for label, values in (
            ("mean KLD", kld),
            ("ln PPL(base)", nll_base),
            ("ln PPL", nll),
            ("ln PPL ratio", nll - nll_base),
        ):
            print(f"  {label:30}" + "".join(f"{widening(values, k):13.2f}" for k in BLOCKS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
