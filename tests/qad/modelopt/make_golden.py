"""Make `golden/`: what Model Optimizer's own exporter writes of a tiny teacher.

    PYTHONPATH=. python tests/qad/modelopt/make_golden.py

in an environment with nvidia-modelopt 0.46.0 and this package. Quantising and exporting work on a
CPU; only training needs CUDA. The folder there came of that version's source with torch 2.13.0 and
transformers 5.17.0, by what its recipe general/ptq/nvfp4_default-kv_fp8 says of such a model.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.qad.small_training import tiny_teacher

GOLDEN = Path(__file__).with_name("golden")


def golden_teacher(folder: Path) -> Path:
    """The teacher that it was made from."""
    widths = {"width": 64, "heads": 2, "kv_heads": 1, "head_width": 64, "feed_forward": 64}
    return tiny_teacher(folder, layers=1, **widths)


def main() -> None:
    import modelopt.torch.quantization as mtq  # type: ignore[import-not-found]
    import torch
    from modelopt.torch.export.convert_hf_config import (  # type: ignore[import-not-found]
        convert_hf_quant_config_format,
    )
    from modelopt.torch.export.unified_export_hf import (  # type: ignore[import-not-found]
        _export_transformers_checkpoint,
    )
    from transformers import AutoModelForCausalLM

    from kldcloud.qad.modelopt.teacher_folder import write_teacher

    with tempfile.TemporaryDirectory() as folder:
        write_teacher(golden_teacher(Path(folder)), Path(folder) / "teacher")
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "teacher", dtype=torch.bfloat16)
    nvfp4 = {
        "num_bits": (2, 1),
        "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
    }
    rules = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": nvfp4, "enable": True},
        {"quantizer_name": "*input_quantizer", "cfg": nvfp4, "enable": True},
        {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": (4, 3)}, "enable": True},
        {"quantizer_name": "*lm_head*", "enable": False},
        {"parent_class": "nn.Embedding", "quantizer_name": "*", "enable": False},
    ]
    tokens = torch.arange(16)[None]
    mtq.quantize(model, {"quant_cfg": rules, "algorithm": "max"}, lambda each: each(tokens))
    tensors, quantization = _export_transformers_checkpoint(model)
    model.save_pretrained(GOLDEN, state_dict=tensors)
    (GOLDEN / "generation_config.json").unlink()
    facts = model.config.to_dict()
    facts.pop("_name_or_path")
    facts["quantization_config"] = convert_hf_quant_config_format(quantization)
    (GOLDEN / "config.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
