"""The order in which a text's chunks are measured when a run may stop before the last of them."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

ORDER_RULE: Final = "kldcloud.order/1"
"""Names the rule below. Another rule needs another name: orders are part of what a run is."""


def chunk_order(corpus_digest: str, chunks: int) -> npt.NDArray[np.int64]:
    """A pseudo-random permutation of a text's chunks, the same wherever it is asked for.

    Chunk i's place is that of the SHA-256 of its line among those of all of them: rule, digest,
    number of chunks and i, in ASCII and decimal, with a newline between each two. Nothing else
    enters: no generator whose stream a library may change, no workers and no shards. So the first n
    of the order are a sample without replacement that nobody chose.

    Args:
        corpus_digest: SHA-256 of the chunks' tokens, in hex.
        chunks: how many the text was cut into.

    Returns:
        int64 [chunks], indices of chunks; those of the first to be measured come first.
    """
    seed = hashlib.sha256(f"{ORDER_RULE}\n{corpus_digest}\n{chunks}\n".encode("ascii"))

    def place(index: int) -> bytes:
        own = seed.copy()
        own.update(str(index).encode("ascii"))
        return own.digest()

    return np.array(sorted(range(chunks), key=place), np.int64)
