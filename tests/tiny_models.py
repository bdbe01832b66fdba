"""Pairs of tiny llama models: a base and a noisy candidate, the same bytes on every machine.

Each has two layers of width 64 and a SentencePiece vocabulary that llama.cpp loads and that
splits any text (what has no piece falls back to byte tokens). The weights come from integers of
a specified generator and from operations that IEEE 754 defines exactly, never from libm or BLAS,
so that the files' digests can stand beside the golden transcripts that were made from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

import gguf
import numpy as np
import numpy.typing as npt

WIDTH = 64
HEADS = 4
LAYERS = 2
FEED_FORWARD = 128
CONTEXT = 4096
CONTROL = ("<unk>", "<s>", "</s>")
BOS_ID = 1

# A piece of two or more letters needs its halves in front of it, or no merge can reach it.
COMMON_PIECES = (
    "▁t he in er ▁a on re ▁s an ▁w nd ou at en ▁c ▁the or it ▁b is ▁f ▁o ▁p es ed ▁m ▁d ▁h "
    "al ing ▁and ▁of ▁to ar st ▁in le ▁l ro"
)

# The head's bias (in nats, through a constant channel of the residual stream): pieces that a
# text uses lie above printable bytes, and those above bytes that no text uses. With the random
# part, top and bottom are about 20-25 nats apart, so that the 16-nat clamp of a .kld acts.
PRINTABLE_BIAS = -5.0
UNUSED_BIAS = -13.0
CONSTANT_CHANNEL = 4.0
LOGIT_SCALE = 0.3
NOISE = 0.06


@dataclass(frozen=True, slots=True)
class TinyPair:
    """A base model and a candidate for it.

    Attributes:
        base: GGUF of F32 weights.
        candidate: the base's weights with noise, as F16.
        vocabulary: entries of both vocabularies.
        bos: whether chunks begin with the BOS token.
    """

    base: Path
    candidate: Path
    vocabulary: int
    bos: bool


def tiny_pair(
    directory: Path, *, vocabulary: int, bos: bool, seed: int = 0, template: str | None = None
) -> TinyPair:
    """Write a pair of models into `directory` (made if missing), about 1 MB.

    Args:
        directory: where ``base.gguf`` and ``candidate.gguf`` go.
        vocabulary: entries, 287 or more; an odd number leaves one unused code in a .kld row.
        bos: what ``tokenizer.ggml.add_bos_token`` says.
        seed: of the weights and of the noise.
        template: the chat template of both, if they are to have one.

    Returns:
        The two paths and what they were made with.
    """
    directory.mkdir(parents=True, exist_ok=True)
    base = directory / "base.gguf"
    candidate = directory / "candidate.gguf"
    weights = _weights(vocabulary, seed)
    _write(base, weights, vocabulary=vocabulary, bos=bos, template=template)
    noisy = {name: _with_noise(index, w, seed) for index, (name, w) in enumerate(weights.items())}
    _write(candidate, noisy, vocabulary=vocabulary, bos=bos, template=template)
    return TinyPair(base, candidate, vocabulary, bos)


def pieces(vocabulary: int) -> list[str]:
    """The vocabulary's pieces in order: control, byte, characters, common pieces, fillers."""
    fixed = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", ".", *ascii_lowercase]
    assert vocabulary >= len(fixed)
    return list(islice(_distinct(fixed), vocabulary))


def _distinct(fixed: list[str]) -> Iterator[str]:
    fillers = (
        "".join(letters) for size in (2, 3) for letters in product(ascii_lowercase, repeat=size)
    )
    seen: set[str] = set()
    for group in (fixed, COMMON_PIECES.split(), fillers):
        for piece in group:
            if piece not in seen:
                seen.add(piece)
                yield piece


def _normal(key: tuple[int, ...], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Numbers close to a standard normal: sums of four uniform 16-bit integers, scaled."""
    count = int(np.prod(shape))
    words = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count).astype("<u8")
    total = words.view("<u2").reshape(count, 4).astype(np.float64).sum(axis=1)
    scaled: npt.NDArray[np.float64] = (total - 131070.0) / 37837.0
    return scaled.reshape(shape)


def _weights(vocabulary: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    def matrix(key: int, rows: int, columns: int, scale: float) -> npt.NDArray[np.float64]:
        return _normal((seed, key), (rows, columns)) * scale

    embedding = matrix(0, vocabulary, WIDTH, 1.0)
    head = matrix(1, vocabulary, WIDTH, LOGIT_SCALE)
    # The first channel is the same for every token; the head reads its bias from it.
    embedding[:, 0] = CONSTANT_CHANNEL
    head[:, 0] = np.array([_bias(piece) for piece in pieces(vocabulary)]) / CONSTANT_CHANNEL
    weights = {"token_embd": embedding, "output": head, "output_norm": np.ones(WIDTH)}
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        key = 10 * (layer + 1)
        weights[name + "attn_norm"] = np.ones(WIDTH)
        weights[name + "attn_q"] = matrix(key, WIDTH, WIDTH, 0.15)
        weights[name + "attn_k"] = matrix(key + 1, WIDTH, WIDTH, 0.15)
        weights[name + "attn_v"] = matrix(key + 2, WIDTH, WIDTH, 0.125)
        weights[name + "attn_output"] = matrix(key + 3, WIDTH, WIDTH, 0.125)
        weights[name + "ffn_norm"] = np.ones(WIDTH)
        weights[name + "ffn_gate"] = matrix(key + 4, FEED_FORWARD, WIDTH, 0.125)
        weights[name + "ffn_up"] = matrix(key + 5, FEED_FORWARD, WIDTH, 0.125)
        weights[name + "ffn_down"] = matrix(key + 6, WIDTH, FEED_FORWARD, 0.0625)
    return weights


def _bias(piece: str) -> float:
    if piece in CONTROL:
        return UNUSED_BIAS
    if piece.startswith("<0x"):
        return PRINTABLE_BIAS if chr(int(piece[3:5], 16)).isprintable() else UNUSED_BIAS
    return 0.0


def _with_noise(index: int, weight: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float16]:
    if weight.ndim == 2:
        scale = NOISE * np.abs(weight[:, 1:]).max() / 3.0
        weight = weight + _normal((seed, 1000 + index), weight.shape) * scale
    return weight.astype(np.float16)


def _write(
    path: Path,
    weights: Mapping[str, npt.NDArray[np.floating]],
    *,
    vocabulary: int,
    bos: bool,
    template: str | None,
) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    add_tokenizer(writer, vocabulary, bos=bos)
    if template is not None:
        writer.add_chat_template(template)
    for name, weight in weights.items():
        # ggml computes norms in F32 only.
        stored = np.float32 if weight.ndim == 1 or weight.dtype == np.float64 else np.float16
        writer.add_tensor(name + ".weight", weight.astype(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int, *, bos: bool) -> None:
    tokens = pieces(vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(vocabulary)])
    writer.add_token_types([_token_type(token) for token in tokens])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(bos)
    writer.add_add_eos_token(value=False)


def _token_type(token: str) -> gguf.TokenType:
    if token == CONTROL[0]:
        return gguf.TokenType.UNKNOWN
    if token in CONTROL:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if token.startswith("<0x") else gguf.TokenType.NORMAL
