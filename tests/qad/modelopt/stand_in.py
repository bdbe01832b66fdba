"""An environment that stands in for Model Optimizer's, which needs CUDA to train.

Its programs take the command lines and files of the real ones (`their_flags` says where these are
from), leave what those leave, and train nothing: the student that comes out is the teacher rounded
to nearest. What the real training does to a model is therefore no subject of the tests that use it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FAIL, HANG = "fail", "hang"
"""Files in the example's folder: train.py dies after its first checkpoint, or does not end."""


def stand_in_environment(folder: Path) -> Path:
    """Make one, with programs that run this file."""
    example = folder / "source" / "examples" / "llm_qat"
    example.mkdir(parents=True)
    for name in ("quantize.py", "train.py", "export.py"):
        (example / name).write_text("# run by a stand-in\n")
    (folder / "bin").mkdir()
    for name in ("python", "accelerate"):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)
    return folder


def main(program: str, *arguments: str) -> None:
    assert not [name for name in os.environ if "SECRET" in name], "a secret came along"
    if program == "accelerate":
        launch, flag, accelerate, script, config, settings = arguments
        assert (launch, flag, config) == ("launch", "--config-file", "--config")
        _train(Path(script).parent, _settings(accelerate), _settings(settings))
    elif arguments[0] == "-I":
        _place(*arguments[2:])
    elif Path(arguments[0]).name == "quantize.py":
        _quantize(_settings(arguments[2]))
    else:
        assert Path(arguments[0]).name == "export.py"
        options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        _export(Path(options["--pyt_ckpt_path"]), Path(options["--export_path"]))


def _place(*arguments: str) -> None:
    _, blend, model, context, cache, *chunks = arguments
    parts = [np.load(each, allow_pickle=False) for each in chunks]
    assert [each.shape[1] for each in parts] == [int(context)] * 2
    assert _settings(blend)["splits"] == {"train": len(parts[0]), "eval": len(parts[1])}
    assert (Path(model) / "tokenizer.json").exists()
    Path(cache).mkdir()


def _quantize(settings: dict[str, Any]) -> None:
    teacher, made = Path(settings["model_name_or_path"]), Path(settings["output_dir"])
    assert settings["recipe"].startswith("general/ptq/nvfp4")
    made.mkdir()
    (made / "teacher").write_text(str(teacher))


def _train(example: Path, accelerate: dict[str, Any], settings: dict[str, Any]) -> None:
    each, at_once = settings["gradient_accumulation_steps"], accelerate["num_processes"]
    batch = each * at_once * settings["per_device_train_batch_size"]
    made, steps = Path(settings["output_dir"]), settings["max_steps"]
    done = max((int(path.name[11:]) for path in made.glob("checkpoint-*")), default=0)
    print(f"Last checkpoint detected: {done or None}; {batch} chunks a step")  # noqa: T201
    looks = [{"step": 0, "eval_loss": 0.5}]
    for step in range(1, steps + 1):
        looks.append({"step": step, "loss": 0.3})
        if step % settings["eval_steps"] == 0:
            looks.append({"step": step, "eval_loss": 0.5 / (1 + step)})
        if step % settings["save_steps"] == 0 and step > done:
            (made / f"checkpoint-{step}").mkdir(parents=True)
            _write_state(made / f"checkpoint-{step}", step, looks)
            if (example / FAIL).exists():
                (example / FAIL).unlink()
                print("torch.OutOfMemoryError: CUDA out of memory")  # noqa: T201
                sys.exit(1)
            while (example / HANG).exists():
                time.sleep(0.05)
    # The real one evaluates the best checkpoint again at the end.
    _write_state(made, steps, [*looks, {"step": steps, "eval_loss": 0.0}])
    (made / "teacher").write_text((Path(settings["model_name_or_path"]) / "teacher").read_text())


def _write_state(folder: Path, step: int, looks: list[dict[str, float]]) -> None:
    facts = {"global_step": step, "log_history": looks}
    (folder / "trainer_state.json").write_text(json.dumps(facts))


def _export(trained: Path, exported: Path) -> None:
    from safetensors.torch import load_file

    from tests.qad.modelopt.their_layout import their_tensors, write_their_folder

    teacher = Path((trained / "teacher").read_text())
    weights = load_file(teacher / "model.safetensors")
    floats = {name: each.float().numpy() for name, each in weights.items()}
    tensors = their_tensors(floats, activations=False)
    write_their_folder(exported, tensors, activations=False, files=2)


def _settings(path: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    return settings


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[3])
    main(*sys.argv[1:])
