"""The model card beside an adapter: what it is, for which base, and how to load it."""

from typing import Any

from graft.adapter import Adapter
from graft.formats.folder import CARD_MARK
from graft.method import config as config_of

LOADERS = {"GRAFT": "graft.load(model, folder)"}
HUB = "graft.load(model, folder)` or AdapterHub's `model.load_adapter(folder, use_safetensors=True)"
EITHER = "graft.load(model, folder)` or HF PEFT's `PeftModel.from_pretrained(model, folder)"


def text(adapter: Adapter, config: dict[str, Any]) -> str:
    """The card's Markdown, front matter included."""
    kinds = " + ".join(method.kind for method, _ in adapter.parts)
    base = " ".join(adapter.base.split())
    front = [
        "---",
        *([f"base_model: {base!r}"] if base else []),
        f"library_name: {'peft' if 'peft_type' in config else 'adapters'}",
        f"tags: [{kinds.replace(' + ', ', ')}]",
        "---",
    ]
    lines = [f"# {kinds} adapter", "", f"{adapter.count():,} trained values for {base or 'a base model without a name'}.", ""]
    loader = LOADERS.get(config["peft_type"], EITHER) if "peft_type" in config else HUB
    lines += [f"Load it with `{loader}`.", "", "| part | setting | value |", "|---|---|---|"]
    for method, _ in adapter.parts:
        lines += [f"| {method.kind} | {name} | `{value}` |" for name, value in config_of(method).items() if name != "kind"]
    return "\n".join([*front, CARD_MARK, "", *lines, ""])
