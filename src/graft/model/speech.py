"""How a model is spoken to: the chat template and the generation settings that travel with an adapter, as two files beside it.

`chat_template.jinja` and `generation_config.json` are the field's own names. Settings are plain values under known names; nothing else of
such a file is used, so that it can neither make code run nor load another model.
"""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from graft import formats
from graft.errors import AdapterError
from graft.formats.folder import GENERATION, TEMPLATE

log = logging.getLogger("graft")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens")
NUMBERS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "early_stopping",
)  # fmt: skip
TEXTS = ("stop_strings",)


def files(model: Any, tokenizer: Any = None) -> dict[str, str]:
    """The files that say how this model is spoken to, by name; what there is none of is left out."""
    made = {}
    template = template_of(tokenizer)
    if template:
        made[TEMPLATE] = template
    config = getattr(model, "generation_config", None)
    settings = {} if config is None else {name: value for name, value in config.to_diff_dict().items() if is_setting(name, value)}
    if settings:
        made[GENERATION] = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    return made


def template_of(tokenizer: Any) -> str:
    """A tokenizer's chat template (the default one of several), or ""."""
    found = getattr(tokenizer, "chat_template", None)
    found = found.get("default") if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""


def is_setting(name: str, value: Any) -> bool:
    """Whether this is a known setting with a value of its kind."""
    every = value if isinstance(value, list) else [value]
    if name in IDS:
        return all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in every)
    if name in NUMBERS:
        return isinstance(value, int | float)
    return name in TEXTS and all(isinstance(one, str) for one in every)


def differs(folder: str | Path, tokenizer: Any) -> bool:
    """Whether the adapter in a folder was trained with another chat template than the tokenizer's."""
    found = formats.beside(Path(folder)).get(TEMPLATE)
    return found is not None and found.strip() != template_of(tokenizer).strip()


def speak(folder: str | Path, model: Any, tokenizer: Any) -> list[str]:
    """Give model and tokenizer the adapter's own template and settings; says what they had that differs.

    Raises AdapterError where a file cannot be read.
    """
    notes, found = [], formats.beside(Path(folder))
    if differs(folder, tokenizer):
        notes.append("the adapter's chat template differs from the base's: the adapter's is used")
        tokenizer.chat_template = found[TEMPLATE]
    config: Any = getattr(model, "generation_config", None)
    settings = parsed(folder, found[GENERATION]) if GENERATION in found and config is not None else {}
    changed = {name: value for name, value in settings.items() if getattr(config, name, None) != value}
    if changed:
        notes.append(f"generation settings of the adapter that differ from the base's are used: {', '.join(sorted(changed))}")
        model.generation_config = GenerationConfig(**config.to_diff_dict() | changed)
    return notes


def parsed(folder: str | Path, text: str) -> dict[str, Any]:
    """The known settings of a file. Raises AdapterError where they are no valid ones together."""
    try:
        found = json.loads(text)
        settings = {name: value for name, value in found.items() if is_setting(name, value)} if isinstance(found, dict) else None
        if settings is None:
            raise ValueError("it is not a JSON object")
        GenerationConfig(**settings).validate(strict=True)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{GENERATION} in {folder} cannot be used: {str(error).splitlines()[0][:200]}") from error
    return settings
