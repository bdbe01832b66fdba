"""Small tokenizers of GPT-2's kind, trained here, as folders have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from kldcloud.qad.from_folder.pre_tokenizers import DIGIT, GPT2, LLAMA3, QWEN2
from tests.pipeline.sweeps import TEXT

SPECIAL = ("<|endoftext|>", "<|im_start|>")
PATTERNS = {
    "gpt-2": (GPT2,),
    "smollm": (DIGIT, GPT2),
    "llama-bpe": (LLAMA3,),
    "smaug-bpe": (LLAMA3,),
    "qwen2": (QWEN2,),
}
"""By llama.cpp's name."""

HARD = (
    "I'm, WE'LL, they'Re ' sa''d 'S x'T\n\n\n  y\t\t z \r\n\r\n \n"
    "12345678 1,000.50 2³ Ⅻ ½ ١٢٣ 第12章 3rd a1b2\n"
    "naïve e\u0301te ß \u017f K Å ﬁ Ǆ ǅ ªº ʰ א ش あア漢字 한국어 ไทย हिन्दी\u200d\u200c\n"
    "!!! ?!... --- ==> {}[]()<>|\\/ $€£ ©® → 😀👩‍👩‍👧 \u00a0\u2003\u3000x\u2028y\u0085z\x0b\x0c\n"
    "https://example.org/a_b?c=d&e#f  def f(x):\n    return x**2  # no\n\n\n\n        end   "
)
"""What splits differ on: apostrophes, runs of digits, of spaces and of lines, odd letters."""


def byte_tokenizer(name: str, *, size: int = 600, bos: bool = False) -> Tokenizer:
    """One that splits as llama.cpp's `name` does.

    Args:
        name: of `PATTERNS`.
        size: tokens, special ones not counted.
        bos: whether it begins each text with the first special token.
    """
    made = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(each), "isolated") for each in PATTERNS[name]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    # Hard words more than once, so that there are merges across what another pattern would split.
    made.train_from_iterator([TEXT.read_text(), *[HARD] * 20], trainer)
    made.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIAL])
    if bos:
        number = made.token_to_id(SPECIAL[0])
        made.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], number)]
        )
    return made


def write_byte_tokenizer(folder: Path, made: Tokenizer, **settings: Any) -> None:
    """Write it as a folder has it."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[0],
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def odd_text(seed: int, count: int = 4000) -> str:
    """Characters of all planes that are in use for long, in runs, with spaces and digits between.

    Letters that were added to Unicode in the last years are letters to one library and not yet to
    another: they are left out.
    """
    rng = np.random.default_rng(seed)
    planes = [
        (0x20, 0x7F),
        (0xA0, 0x370),
        (0x370, 0x530),
        (0x5D0, 0x5EB),
        (0x620, 0x660),
        (0x905, 0x93A),
        (0x3041, 0x3097),
        (0x4E00, 0x9000),
        (0xAC00, 0xD7A4),
        (0x1F600, 0x1F640),
        (0x2000, 0x2060),
    ]
    parts = []
    while len(parts) < count:
        low, high = planes[rng.integers(len(planes))]
        parts += [chr(rng.integers(low, high)) for _ in range(rng.integers(1, 7))]
        parts += [rng.choice(("", " ", "  ", "\n", "\n\n", " \n", "'", "'s", "'LL", "7", "123456"))]
    return "".join(parts)
