"""What the scripts of Model Optimizer 0.46.0 (commit 43fd41a5, examples/llm_qat) understand.

Destinations of the argument parsers that arguments.py makes there, the options of export.py and the
keys of configs/accelerate/fsdp2.yaml, as that commit has them. transformers' TrainingArguments,
which train.py takes as well, are asked of transformers itself.
"""

from __future__ import annotations

MODEL = frozenset({"model_name_or_path", "model_max_length", "attn_implementation"})
DATA = frozenset(
    {
        "dataset_config",
        "train_samples",
        "eval_samples",
        "dataset_seed",
        "dataset_cache_dir",
        "shuffle",
        "shuffle_buffer",
        "num_proc",
    }
)
DISTILL = frozenset({"distill", "teacher_model", "criterion", "temperature", "liger_jsd_beta"})
QUANTIZE = frozenset(
    {"recipe", "quant_cfg", "calib_size", "compress", "calib_batch_size", "output_dir"}
)
TRAINER = frozenset(
    {
        "trainable_params",
        "frozen_params",
        "lr_config",
        "manual_gc",
        "liger_ce_label_smoothing",
        "lora",
    }
)
"""Beside those of transformers."""

RECIPES = frozenset({"general/ptq/nvfp4_weight_only-kv_fp16", "general/ptq/nvfp4_default-kv_fp8"})
"""Two of its modelopt_recipes."""

EXPORT = frozenset({"--pyt_ckpt_path", "--device", "--export_path"})
SOURCE = frozenset(
    {
        "hf_path",
        "ratio",
        "split",
        "dataset_kwargs",
        "apply_chat_template",
        "train_only_assistant_tokens",
        "chat_key",
        "category",
    }
)
ACCELERATE = frozenset(
    {
        "compute_environment",
        "debug",
        "distributed_type",
        "downcast_bf16",
        "enable_cpu_affinity",
        "fsdp_config",
        "machine_rank",
        "main_training_function",
        "mixed_precision",
        "num_machines",
        "num_processes",
        "rdzv_backend",
        "same_network",
        "tpu_env",
        "tpu_use_cluster",
        "tpu_use_sudo",
        "use_cpu",
    }
)
FSDP = frozenset(
    {
        "fsdp_activation_checkpointing",
        "fsdp_auto_wrap_policy",
        "fsdp_cpu_ram_efficient_loading",
        "fsdp_offload_params",
        "fsdp_reshard_after_forward",
        "fsdp_state_dict_type",
        "fsdp_transformer_layer_cls_to_wrap",
        "fsdp_version",
    }
)
