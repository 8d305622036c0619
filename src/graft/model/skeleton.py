"""A model without memory, and what can be known from it: exact parameter counts from a config alone."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.initialization import no_init_weights

from graft import adapter
from graft.errors import ModelError
from graft.method import Method
from graft.model.families import sites
from graft.model.foreign import as_model_error, quiet


def skeleton(config: PretrainedConfig) -> Any:
    """The transformers model of a config on the meta device: a classifier for encoders, otherwise a causal language model.

    Raises ModelError where transformers has no such model.
    """
    if config.is_encoder_decoder:
        raise ModelError(f"{config.model_type} is an encoder-decoder, which Graft does not support: name a decoder or an encoder")
    named = (config.architectures or [""])[0]
    encodes = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    auto = AutoModelForSequenceClassification if encodes or named.endswith("ForSequenceClassification") else AutoModelForCausalLM
    with quiet(), as_model_error(config.model_type, "check its config"), torch.device("meta"), no_init_weights():
        model = auto.from_config(config)
    model.tie_weights()
    return model


def count(model_or_config: Any, method: Method | Sequence[Method]) -> int:
    """The exact number of values that one method (or several as parts) would train, from a transformers model or its config.

    Nothing is allocated. Raises TargetError where a method finds no place.
    """
    model = skeleton(model_or_config) if isinstance(model_or_config, PretrainedConfig) else model_or_config
    return adapter.count(list(method) if isinstance(method, Sequence) else [method], sites(model))
