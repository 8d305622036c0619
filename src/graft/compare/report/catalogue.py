"""What a reader who has never met a method needs to know of it: its name in print, its family, one sentence.

A family has one colour and one marker shape everywhere in a report. Names unknown here (a user's own method) fall back to the
longest known name they start with, and else to the family "other".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Methods that work alike: `key` names the CSS variable `--fam-<key>`, `marker` is matplotlib's letter."""

    key: str
    title: str
    marker: str


@dataclass(frozen=True)
class Entry:
    """A method in print: its title, its family and what it trains in one sentence."""

    title: str
    family: Family
    sentence: str


LOW_RANK = Family("rank", "low-rank update", "o")
BOTTLENECK = Family("neck", "bottleneck adapter", "s")
VIRTUAL = Family("virtual", "virtual tokens", "^")
SCALE = Family("scale", "rescaling", "D")
SELECTIVE = Family("select", "part of the model itself", "v")
OTHER = Family("other", "other", "P")
FAMILIES = (LOW_RANK, BOTTLENECK, VIRTUAL, SCALE, SELECTIVE, OTHER)

ENTRIES: dict[str, Entry] = {
    "lora": Entry("LoRA", LOW_RANK, "Adds a narrow side path, two thin matrices, to each chosen weight matrix."),
    "rslora": Entry("rsLoRA", LOW_RANK, "LoRA whose side path is scaled so that larger ranks keep learning."),
    "dora": Entry("DoRA", LOW_RANK, "LoRA for the direction of each weight row, and one trained length for each row."),
    "bottleneck": Entry("Bottleneck", BOTTLENECK, "Puts a small network with a narrow middle behind attention, MLP or both."),
    "prefix": Entry("Prefix", VIRTUAL, "Gives attention extra keys and values to look at, in every layer."),
    "prompt": Entry("Prompt", VIRTUAL, "Puts trained virtual tokens in front of the text; nothing inside the model changes."),
    "ia3": Entry("IA3", SCALE, "Multiplies keys, values and the MLP's inner activations by trained vectors."),
    "bias": Entry("Bias", SELECTIVE, "Trains bias terms only (added where the model has none)."),
    "norms": Entry("Norms", SELECTIVE, "Trains only the normalisation layers' own weights."),
    "last-k": Entry("Last layers", SELECTIVE, "Trains the last layers of the model in full and leaves the others as they are."),
    "head": Entry("Head", SELECTIVE, "Trains only the output layer."),
    "full": Entry("Full", SELECTIVE, "Trains every weight of the model: the costly reference."),
    "zero-shot": Entry("Zero-shot", OTHER, "The base model with the task's prompt alone, nothing trained."),
    "in-context": Entry("In-context", OTHER, "The base model with solved examples in front of the prompt, nothing trained."),
}


def entry(method: str) -> Entry:
    """Return what is printed of `method`; an unknown name keeps its spelling."""
    known = max((name for name in ENTRIES if method.startswith(name)), key=len, default=None)
    if method in ENTRIES:
        return ENTRIES[method]
    if known is None:
        return Entry(method, OTHER, "A method of your own.")
    return Entry(method, ENTRIES[known].family, ENTRIES[known].sentence)
