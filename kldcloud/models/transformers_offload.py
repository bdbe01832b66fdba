"""A model that is larger than its GPU: which part waits in the machine's memory, and which never.

accelerate places whole layers, in the model's order, as long as there is room, and brings the
others to the GPU each time they are called. The output head comes last in that order; but its
product is made here and not by the model, tile by tile, so it has to stay where the states are.
"""

from __future__ import annotations

from typing import Any, Final

from kldcloud.models.model_folder import ModelFolder

WORKSPACE: Final = 1 << 30
"""Bytes for tiles of logits, states, and a chunk's activations; more once a chunk lacked them."""
_USABLE: Final = 0.95
"""Of what is free: allocators keep pieces that are too small for the next tensor."""
_HEADS: Final = 2
"""Room for the candidate's head, and for that of the base beside it."""


def offload_settings(folder: ModelFolder, dtype: Any, workspace: int) -> dict[str, Any]:  # noqa: ANN401
    """What `from_pretrained` needs to know so that layers without room on the GPU wait.

    Args:
        folder: the model's.
        dtype: torch's, that it is going to be loaded in.
        workspace: bytes to leave free for evaluating.
    """
    import torch
    from accelerate.utils import get_max_memory

    free, _ = torch.cuda.mem_get_info()
    gpu = room_for_layers(free, folder, dtype.itemsize, workspace)
    return {"device_map": "auto", "max_memory": {0: gpu, "cpu": get_max_memory()["cpu"]}}


def room_for_layers(
    free: int, folder: ModelFolder, bytes_a_number: int, workspace: int = WORKSPACE
) -> int:
    """Bytes of a GPU that weights may take, so that measuring them still has what it needs.

    Args:
        free: bytes free on it.
        folder: the model's.
        bytes_a_number: of its output head, on the GPU.
        workspace: bytes to leave free besides.
    """
    head = folder.vocabulary_size * folder.hidden_size * bytes_a_number
    return max(0, int(free * _USABLE) - _HEADS * head - workspace)


def bring_head(head: Any) -> None:  # noqa: ANN401 - a module of torch
    """Put an output head that waits elsewhere where its products are made, for good.

    A quantised head stays as it is: its own module makes the product, and is called as a layer is.
    """
    import torch
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import align_module_device

    if type(head) is not torch.nn.Linear or head.weight.device.type != "meta":
        return
    with align_module_device(head):
        brought = {name: each.detach().clone() for name, each in head.named_parameters()}
    remove_hook_from_module(head)
    for name, each in brought.items():
        setattr(head, name, torch.nn.Parameter(each, requires_grad=False))
