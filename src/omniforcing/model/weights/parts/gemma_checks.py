"""Gemma's text model and tokenizer against the config that is published with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from omniforcing.model.weights.parts.part import refuse_misfit
from omniforcing.model.weights.tensor_file import Entry, WeightsError


def verify_text_model(
    place: Path,
    text: Mapping[str, Any],
    found: Mapping[str, Entry],
    shown: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Verify names and shapes of the text model's tensors from the headers.

    Args:
        place: file or folder of the tensors.
        text: the text model's config.
        found: the tensors by the text model's own names.
        shown: the name in the file of one of the text model's.

    Returns:
        The text model's config with what it leaves to transformers' defaults.

    Raises:
        WeightsError: if a tensor is missing, unexpected or of another shape, or the config is of no
            model.
    """
    from transformers import AutoConfig, AutoModel

    told = dict(text)
    kind = str(told.pop("model_type", "none"))
    try:
        with torch.device("meta"):
            config = AutoConfig.for_model(kind, **told)
            model = AutoModel.from_config(config)
    except Exception as error:  # transformers' errors for bad values share no class
        raise WeightsError(
            "weights.unsupported-config",
            f"{place}: no text encoder can be built from its config of a {kind} "
            f"({(str(error).splitlines() or ['?'])[0]}); use the one published with it",
        ) from error
    refuse_misfit(place, "text encoder", model, found, shown)
    return dict(config.to_dict())


def verify_tokenizer(
    place: Path, content: str, settings: Mapping[str, Any], text: Mapping[str, Any]
) -> None:
    """Verify that a tokenizer is that of a text model.

    Args:
        place: file of the tokenizer.
        content: content of its ``tokenizer.json``.
        settings: its ``tokenizer_config.json``.
        text: the text model's whole config.

    Raises:
        WeightsError: if it is unreadable, has more tokens than the text model or less than half of
            them, or numbers the special ones otherwise.
    """
    from tokenizers import Tokenizer

    remedy = "take the tokenizer that was published with the text encoder"
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises no class of its own
        raise WeightsError(
            "weights.wrong-tokenizer",
            f"{place} is no readable tokenizer ({str(error).splitlines()[0]}); {remedy}",
        ) from error
    size = int(text["vocab_size"])
    count = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if not size / 2 <= count <= size:
        raise WeightsError(
            "weights.wrong-tokenizer",
            f"{place} has {count} tokens, and its text encoder {size}: it is another model's; "
            f"{remedy}",
        )
    for name in ("pad_token", "bos_token"):
        told, needed = settings.get(name), text.get(f"{name}_id")
        token = told.get("content") if isinstance(told, dict) else told
        found = None if token is None else tokenizer.token_to_id(token)
        if token is not None and needed is not None and found != needed:
            raise WeightsError(
                "weights.wrong-tokenizer",
                f"{place} numbers its {name} {found}, and its text encoder {needed}: it is another "
                f"model's; {remedy}",
            )
