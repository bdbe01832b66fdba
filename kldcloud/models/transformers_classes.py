"""Which class of transformers a folder's model is, and whether that predicts next tokens.

Decided by config.json and the installed transformers alone: no weight is read, no model made.
"""

from __future__ import annotations

from inspect import isclass
from typing import Any, Final

from kldcloud.errors import UserError
from kldcloud.models.model_folder import ModelFolder
from kldcloud.models.transformers_library import transformers

_MAKERS: Final = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
"""The second has models that see as well, and read a text as the others do."""


def maker_of(folder: ModelFolder, config: Any) -> Any:  # noqa: ANN401 - untyped package
    """What makes a model of a configuration, by its `from_config` and `from_pretrained`.

    Args:
        folder: the model's.
        config: what its config.json says, as transformers has it.

    Raises:
        UserError: the weights are of a classifier or of something else that predicts no token, the
            model encodes a text before it decodes one, or transformers has no language model for
            its type.
    """
    library = transformers()
    named: Any = getattr(library, folder.architecture, None)
    known = isclass(named) and issubclass(named, library.PreTrainedModel)
    maker = _maker(type(config))
    # With tied embeddings nothing would be missing of a model whose head is left out.
    if maker is None or (known and not named.can_generate()):
        raise _no_language_model(folder, "is no language model")
    if config.is_encoder_decoder:
        raise _no_language_model(folder, "encodes a text before it decodes one")
    return maker


def lacks_sdpa(model_type: object) -> bool:
    """Whether transformers has no fused attention for models of a type; not if it has no model."""
    library = transformers()
    if model_type not in library.CONFIG_MAPPING:
        return False
    config = library.CONFIG_MAPPING[model_type]
    maker = _maker(config)
    if maker is None:
        return False
    # What `from_pretrained` asks, and refuses by; there is no public name for it.
    return not maker._model_mapping[config]._supports_sdpa  # noqa: SLF001


def _maker(config: type) -> Any:  # noqa: ANN401
    """The first of `_MAKERS` that has a class for a configuration's; None if none has."""
    library = transformers()
    makers = (getattr(library, name) for name in _MAKERS)
    return next((each for each in makers if config in each._model_mapping), None)  # noqa: SLF001


def _no_language_model(folder: ModelFolder, why: str) -> UserError:
    return UserError(
        f"{folder.path}: {folder.architecture} {why}",
        hint="only models that predict the next token of a text can be measured",
    )
