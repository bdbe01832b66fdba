"""Our job in the words of Model Optimizer's scripts: the files that their commands name.

Keys are those of ``examples/llm_qat`` (ARGUMENTS.md, configs/train/qad_nvfp4.yaml,
configs/accelerate/fsdp2.yaml) and of transformers' TrainingArguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml

from kldcloud.errors import UserError
from kldcloud.qad.modelopt.pinned import CALIBRATION_CHUNKS, RECIPES
from kldcloud.qad.modelopt.workplace import Workplace
from kldcloud.qad.whole_file import written

if TYPE_CHECKING:
    from kldcloud.qad.training_order import TrainingOrder
    from kldcloud.qad.training_tokens import Tokens

_HEAD: Final = ("*embed_tokens*", "*lm_head*")
_NORMS: Final = "*norm.weight"
_MATRICES: Final = "*_proj.weight"
_LAYERS: Final = {"llama": "LlamaDecoderLayer", "qwen3": "Qwen3DecoderLayer"}
"""The class that FSDP wraps, by architecture."""


def quantize_settings(order: TrainingOrder, work: Workplace) -> dict[str, Any]:
    """Of quantize.py."""
    return {
        **_data_settings(order, work),
        "model_name_or_path": str(work.teacher),
        "recipe": RECIPES[order.activations],
        "calib_size": CALIBRATION_CHUNKS,
        "output_dir": str(work.quantized),
    }


def train_settings(order: TrainingOrder, work: Workplace, gpus: int) -> dict[str, Any]:
    """Of train.py.

    Args:
        order: what is trained, and how.
        work: where.
        gpus: on so many of one machine.

    Raises:
        UserError: they cannot share a step evenly.
    """
    train = order.train
    at_once = train.micro_batch * gpus
    if train.global_batch % at_once:
        raise UserError(
            f"train.global_batch of {train.global_batch} cannot be shared by {gpus} GPUs with"
            f" {train.micro_batch} chunks at once",
            hint=f"make it a multiple of {at_once}, or train.micro_batch smaller",
        )
    steps = order.batches.steps
    settings = {
        **_data_settings(order, work),
        "model_name_or_path": str(work.quantized),
        "output_dir": str(work.trained),
        "distill": True,
        "teacher_model": str(work.teacher),
        "temperature": 1.0,
        "liger_jsd_beta": 0.0,
        "use_liger_kernel": True,
        "manual_gc": True,
        "max_steps": steps,
        "learning_rate": train.lr,
        "warmup_steps": math.ceil(train.warmup * steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.clip,
        "per_device_train_batch_size": train.micro_batch,
        "per_device_eval_batch_size": train.micro_batch,
        "gradient_accumulation_steps": train.global_batch // at_once,
        "seed": train.seed,
        "data_seed": train.seed,
        "frozen_params": list(_frozen(order)),
        "do_train": True,
        "do_eval": True,
        "eval_on_start": True,
        "eval_strategy": "steps",
        "eval_steps": order.eval_every,
        "save_strategy": "steps",
        "save_steps": order.checkpoint_every,
        "save_total_limit": order.keep,
        "load_best_model_at_end": True,
        "logging_steps": 1,
        "report_to": ["tensorboard"],
        **_schedule(order),
    }
    if train.lr_norms is not None:
        settings["lr_config"] = str(work.norms)
    return settings


def accelerate_settings(architecture: str, gpus: int) -> dict[str, Any]:
    """Of ``accelerate launch``: the example's FSDP2, on one machine.

    Args:
        architecture: as GGUF names it.
        gpus: processes, one each.
    """
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_activation_checkpointing": True,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_cpu_ram_efficient_loading": True,
            "fsdp_offload_params": False,
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_transformer_layer_cls_to_wrap": _LAYERS[architecture],
            "fsdp_version": 2,
        },
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "bf16",
        "num_machines": 1,
        "num_processes": gpus,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }


def blend_settings(order: TrainingOrder, work: Workplace) -> dict[str, Any]:
    """The dataset, which has to be in the cache already: its source is a file that never is.

    So a cache that is not found ends the run, and no other text is trained on.
    """
    training, heldout = order.tokens.chunks, len(order.heldout)
    source = {"split": "train", "ratio": 1, "apply_chat_template": False}
    return {
        "blend_size": training + heldout,
        "splits": {"train": training, "eval": heldout},
        "sources": [{"hf_path": str(work.root / "only-in-the-cache"), **source}],
    }


def write_configuration(
    order: TrainingOrder, tokens: Tokens, work: Workplace, architecture: str, gpus: int
) -> None:
    """Write all that the commands read, but for the teacher.

    Args:
        order: what is trained, and how.
        tokens: int32 [n, context], the training chunks.
        work: where to.
        architecture: the teacher's.
        gpus: that train.

    Raises:
        UserError: the GPUs cannot share a step evenly.
        StoreError: no room for it.
    """
    files = {
        work.quantize: quantize_settings(order, work),
        work.train: train_settings(order, work, gpus),
        work.accelerate: accelerate_settings(architecture, gpus),
        work.blend: blend_settings(order, work),
    }
    if order.train.lr_norms is not None:
        files[work.norms] = {_NORMS: {"lr": order.train.lr_norms}}
    with written(work.root):
        work.root.mkdir(parents=True, exist_ok=True)
        for path, settings in files.items():
            path.write_text(yaml.safe_dump(settings, sort_keys=False))
        for path, chunks in (
            (work.training_chunks, tokens),
            (work.looked_at_chunks, order.heldout),
        ):
            np.save(path, chunks.astype("<i4", copy=False), allow_pickle=False)


def _data_settings(order: TrainingOrder, work: Workplace) -> dict[str, Any]:
    """What both scripts are told of the text, and of the model's attention."""
    return {
        "model_max_length": order.tokens.context,
        "attn_implementation": "sdpa",
        "dataset_config": str(work.blend),
        "dataset_cache_dir": str(work.tokenized),
        "train_samples": order.tokens.chunks,
        "eval_samples": len(order.heldout),
        "shuffle": False,
    }


def _frozen(order: TrainingOrder) -> tuple[str, ...]:
    """Patterns of parameters that stay the teacher's; head and embedding always do."""
    norms = () if order.train.train_norms else (_NORMS,)
    matrices = () if order.train.train_codes else (_MATRICES,)
    return (*_HEAD, *norms, *matrices)


def _schedule(order: TrainingOrder) -> dict[str, Any]:
    train = order.train
    if train.schedule == "constant":
        return {"lr_scheduler_type": "constant_with_warmup"}
    if not train.final_lr:
        return {"lr_scheduler_type": "cosine"}
    end = {"min_lr_rate": train.final_lr}
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": end}
