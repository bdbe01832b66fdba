"""How long llama.cpp takes for a few tokens, timed in a process of its own.

Of some models of some architectures it ends the process that evaluates them, with a line that says
what it had not expected.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kldcloud.errors import EngineError, KldcloudError, UserError
from kldcloud.models.child import run_child
from kldcloud.models.engine import Tokens
from kldcloud.models.llama_engine import LlamaEngine, LlamaOptions


def evaluation_seconds(path: Path, tokens: Tokens, options: LlamaOptions) -> float:
    """Seconds that evaluating a chunk takes, the loading aside.

    Args:
        path: a GGUF.
        tokens: int32 [n], the chunk.
        options: how it is run.

    Raises:
        EngineError: llama.cpp refuses the model, or ends its process.
        UserError: it is no model that can be measured.
    """
    order = json.dumps({"options": asdict(options), "tokens": tokens.tolist()})
    ended = run_child(__name__, [str(path)], None, order=order)
    if ended.code == 0:
        return float(ended.reason)
    if ended.code > 0:
        raise (UserError if ended.code == UserError.exit_code else EngineError)(ended.reason)
    raise EngineError(
        f"{path}: llama.cpp could not evaluate it: {ended.reason}",
        hint="see whether its own llama-perplexity can, or take another conversion of the model",
    )


def _main(path: str) -> int:
    order = json.load(sys.stdin)
    tokens = np.array(order["tokens"], np.int32)
    try:
        engine = LlamaEngine(Path(path), len(tokens), LlamaOptions(**order["options"]))
        if engine.on_gpu:
            engine.evaluate(tokens)  # the first sets up more than it computes
        started = time.perf_counter()
        engine.evaluate(tokens)
        seconds = time.perf_counter() - started
    except KldcloudError as error:
        sys.stdout.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{seconds}\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
