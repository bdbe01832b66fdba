"""Loading a checked folder into a transformers model, or a line that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kldcloud.errors import EngineError, FormatError, KldcloudError
from kldcloud.models.folder_bounds import check_no_layer_left_out, check_weight_count
from kldcloud.models.folder_files import CONFIG
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.transformers_classes import maker_of
from kldcloud.models.transformers_library import transformers
from kldcloud.models.transformers_methods import check_method
from kldcloud.models.transformers_offload import WORKSPACE, bring_head, offload_settings
from kldcloud.models.transformers_options import TransformersOptions
from kldcloud.models.transformers_recipes import check_recipe, recipe_config

_BELONGS_TO_WEIGHTS: Final = (
    *("scale", "scale_inv", "scales", "zero_point", "qzeros", "absmax"),
    *("packed", "qweight", "g_idx"),
)
_GIB: Final = 1 << 30
MORE_MEMORY: Final = "use a GPU with more memory"
OFFLOAD: Final = "engine.transformers.offload: true"


def folder_config(folder: ModelFolder) -> Any:  # noqa: ANN401 - one class a family
    """The configuration with its family's defaults.

    Raises:
        EngineError: transformers knows no such model, or refuses what its config.json says.
    """
    library = transformers()
    if folder.model_type not in library.CONFIG_MAPPING:
        raise EngineError(
            f"{folder.path}: transformers {library.__version__} has no class for model_type "
            f"{folder.model_type!r}, and a folder's own code is not run",
            hint="install a version of transformers that has it",
        )
    try:
        return library.AutoConfig.from_pretrained(
            str(folder.path), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise EngineError(
            f"{folder.path}: transformers refuses its config.json: {in_a_line(error)}",
            hint="check the file, and the version of transformers",
        ) from error


def load_transformers(
    folder: ModelFolder, options: TransformersOptions, workspace: int = WORKSPACE
) -> Any:  # noqa: ANN401 - one class a family
    """The model, in evaluation mode, where the options say.

    No code of the folder runs: its class is one that transformers itself has.

    Args:
        folder: it.
        options: how it is run.
        workspace: bytes of a GPU that an offloaded model leaves free for evaluating.

    Raises:
        EngineError: transformers refuses it, or there is no memory for it.
        FormatError: tensors are missing, or there are some that the model would not use.
        UserError: the method by which it is quantised does not run here.
    """
    import torch

    check_method(folder, options.device, dequantize=options.dequantize)
    outline = outlined(folder)
    settings = _settings(folder, outline, options)
    if options.device != "cpu":
        placed = {"device_map": options.device}
        spread = options.offload and offload_settings(folder, settings["dtype"], workspace)
        settings |= spread or placed
    try:
        if options.dequantize:
            model, found = _from_dequantized(folder, outline.model, settings)
        else:
            model, found = outline.maker.from_pretrained(str(folder.path), **settings)
    except KldcloudError:
        raise
    except torch.OutOfMemoryError as error:
        raise _no_room(folder, offload=options.offload) from error
    except Exception as error:
        raise _not_loaded(folder, error) from error
    _check_complete(folder, found, list(model.state_dict()))
    if options.round_activations:
        from kldcloud.models.fp8_activations import round_activations

        round_activations(model, folder)
    if options.offload and options.device != "cpu":
        if not _is_partly_on(options.device, model):
            raise _no_room(folder, offload=True)
        bring_head(model.get_output_embeddings())
    return model.eval()


def _settings(
    folder: ModelFolder, outline: Outline, options: TransformersOptions
) -> dict[str, Any]:
    """What `from_pretrained` is told on every device."""
    import torch

    settings: dict[str, Any] = {
        "config": outline.config,
        "dtype": getattr(torch, options.dtype),
        "attn_implementation": options.attention,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        # Its own refusal says no name; `_check_complete` does.
        "ignore_mismatched_sizes": True,
    }
    if options.recipe:
        check_recipe(folder.path, outline.model, options.recipe, options.device)
        settings["quantization_config"] = recipe_config(options.recipe)
    return settings


def _is_partly_on(device: str, model: Any) -> bool:  # noqa: ANN401
    import torch

    kind = torch.device(device).type
    return any(each.device.type == kind for each in model.parameters())


@dataclass(frozen=True, slots=True)
class Outline:
    """A folder's model without its weights.

    Attributes:
        config: of the folder, with its family's defaults.
        maker: what makes models of it, by `from_pretrained`.
        model: one whose tensors have shapes, and no memory.
    """

    config: Any
    maker: Any
    model: Any


def outlined(folder: ModelFolder) -> Outline:
    """What transformers makes of a folder's configuration: a second, and no weight is read.

    Raises:
        EngineError: transformers knows no such model, or refuses what its config.json says.
        FormatError: its weights do not fit into the files.
        UserError: it is no language model.
    """
    import torch

    config = folder_config(folder)
    maker = maker_of(folder, config)
    try:
        with torch.device("meta"):
            model = maker.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _not_loaded(folder, error) from error
    weights = sum(each.numel() for each in model.parameters())
    check_weight_count(folder.path / CONFIG, weights, folder.tensor_bytes)
    return Outline(config, maker, model)


def _from_dequantized(
    folder: ModelFolder,
    outline: Any,  # noqa: ANN401 - one class a family
    settings: Mapping[str, Any],
) -> tuple[Any, Any]:
    """The model with its weights written out, and transformers' word on which were used."""
    from kldcloud.models.dequantized_folder import dequantized_tensors

    # Of what sees and speaks, such as Qwen 3.5, that may be the part that speaks.
    config = outline.config
    for each in (config, config.get_text_config(decoder=True)):
        each.__dict__.pop("quantization_config", None)
    tensors = dequantized_tensors(folder, settings["dtype"])
    named = {**settings, "config": config, "state_dict": tensors}
    model, found = type(outline).from_pretrained(None, **named)
    unused = set(map(str, found.get("unexpected_keys", ())))
    for name in sorted(unused):
        layer, _, part = name.rpartition(".")
        # AutoGPTQ writes a bias for every layer: zeros where there was none.
        if part == "bias" and f"{layer}.weight" not in unused and bool(tensors[name].any()):
            raise FormatError(
                f"{folder.path}: {name} is not zero, and the model has no such bias",
                hint="take the config.json that belongs to these weights",
            )
    return model, found


def _check_complete(
    folder: ModelFolder, found: Mapping[str, Sequence[Any]], used: Sequence[str]
) -> None:
    """See that the folder's tensors are the model's: what is missing would be made up."""
    for name, stored, wanted in sorted(found.get("mismatched_keys", ())):
        raise FormatError(
            f"{folder.path}: {name} is {_shape(stored)}, and by its config.json it would be "
            f"{_shape(wanted)}",
            hint="take the config.json that belongs to these weights",
        )
    missing = sorted(map(str, found.get("missing_keys", ())))
    if missing:
        raise FormatError(
            f"{folder.path}: has no tensor {missing[0]} ({len(missing)} missing)",
            hint="download it again, or take a checkpoint that is whole",
        )
    unexpected = sorted(map(str, found.get("unexpected_keys", ())))
    check_no_layer_left_out(folder.path / CONFIG, folder.config, unexpected, used)
    for name in unexpected:
        if name.endswith(_BELONGS_TO_WEIGHTS):
            raise FormatError(
                f"{folder.path}: {name} would not be used: its config.json does not say how the "
                "weights are quantised",
                hint="take the config.json that belongs to these weights",
            )


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _not_loaded(folder: ModelFolder, error: Exception) -> EngineError:
    return EngineError(
        f"{folder.path}: transformers could not load it: {in_a_line(error)}",
        hint="check the folder, and the versions of torch and transformers",
    )


def _no_room(folder: ModelFolder, *, offload: bool) -> EngineError:
    import torch

    free, whole = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
    return EngineError(
        f"{folder.path}: not enough GPU memory{' even with offload' if offload else ''}: its "
        f"weights are {folder.tensor_bytes / _GIB:.1f} GiB, and {free / _GIB:.1f} of "
        f"{whole / _GIB:.1f} GiB are free",
        hint=MORE_MEMORY if offload else f"{MORE_MEMORY}, or {OFFLOAD}",
    )


def in_a_line(error: Exception) -> str:
    words = " ".join(str(error).split())[:300]
    # What was looked up and not found is all that such an error says.
    return f"{type(error).__name__}: {words}" if isinstance(error, KeyError) or not words else words
