"""Which Model Optimizer, and what is installed with it.

The example's flags, its recipes' names and the layout of what it exports are those of this version;
another one means reading its ``examples/llm_qat`` again.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.46.0"
COMMIT: Final = "43fd41a58d52c4e6e5dec1d1ff5989ecc737ae1a"
"""Of the tag of that version: the wheel has no examples, and a commit's id is its content's."""
REPOSITORY: Final = "https://github.com/NVIDIA/Model-Optimizer"
EXAMPLE: Final = "examples/llm_qat"

REQUIREMENTS: Final = (
    f"nvidia-modelopt=={VERSION}",
    "accelerate==1.13.0",
    "datasets==4.8.5",
    "liger-kernel==0.8.0",
    "peft==0.19.1",
    "sentencepiece>=0.2.1,<1",
    "tensorboard>=2.18,<3",
    "torch==2.13.0",
    "transformers==5.14.1",
)
"""Of its extra ``hf`` what the example imports, at versions that the extra and the example allow.

It wants transformers below 5.15 and accelerate below 1.14, which our own environment need not have.
Left out: deepspeed, which asks for a CUDA toolkit when it is imported (the example's other two
backends need none of it), and flash-attn, which compiles for hours (attention is torch's own).
"""

RECIPES: Final = {
    False: "general/ptq/nvfp4_weight_only-kv_fp16",
    True: "general/ptq/nvfp4_default-kv_fp8",
}
"""By `student.activations`. The second, the one of its QAD example, has an FP8 KV cache as well."""
ALGORITHMS: Final = {False: "W4A16_NVFP4", True: "NVFP4"}
"""What an export by each of them is called in its quantization_config."""

VARIABLE: Final = "KLDCLOUD_MODELOPT"
"""Environment variable that names the folder of its environment."""
SOURCE: Final = "source"
"""In that folder, the checkout."""

LEARNING_RATE: Final = 1e-5
"""Of its QAD configuration, whose cosine ends at 0."""
CALIBRATION_CHUNKS: Final = 512
"""Its default, as far as there are as many."""
