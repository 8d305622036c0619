"""Which method to take: a table of rules, each with its evidence. Measurements of our own come first (docs/), papers second.

A rule applies in a situation (`when`), and speaks for methods, against methods, or rules them out. What a paper says counts 1, what our
own tables say 2, and twice that where it answers a need that was named; the most points win. Methods that end equal are equal in the
evidence, and are said to be. `why_not` gives every sentence that counted against a method, or those that counted for the winner instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graft.errors import TargetError

NEEDS = {
    "quality": "the best score that can be had",
    "knowledge": "much that is new to the base: mathematics, code, a language",
    "form": "a task of form, which the base nearly masters",
    "latency": "no slower than the base alone",
    "adapters": "many adapters served on one base",
    "context": "no position of the context may be lost",
    "untouched": "the base stays byte-identical while it serves",
    "storage": "small adapters",
    "speed": "short training",
}
"""What can be asked for, `--need`."""
RESULTS, PERFORMANCE, PLANNING, PAPERS = "docs/results.md", "docs/performance.md", "docs/planning.md", "arXiv:"
FEW, MANY = 200, 50_000  # examples
LARGE = 10_000_000_000  # parameters


@dataclass(frozen=True)
class Situation:
    """What is known of the task; 0 examples or parameters mean not known. `fits` are the methods that fit the memory (None: all)."""

    examples: int = 0
    needs: frozenset[str] = frozenset()
    parameters: int = 0
    fits: frozenset[str] | None = None

    def __post_init__(self) -> None:
        unknown = sorted(self.needs - set(NEEDS))
        if unknown:
            raise TargetError(f"no need {unknown[0]!r} is known: name any of {', '.join(NEEDS)}")


@dataclass(frozen=True)
class Rule:
    """`when` it applies, whom it speaks for and against, whom it rules out, in a sentence, with the source of what it says. `asked` says
    that it answers a need.
    """

    sentence: str
    source: str
    when: Callable[[Situation], bool]
    favours: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    asked: bool = False

    @property
    def weight(self) -> int:
        """What it counts."""
        return (1 if self.source.startswith(PAPERS) else 2) * (2 if self.asked else 1)


@dataclass(frozen=True)
class Advice:
    """The methods to take (several are equal in the evidence), the rules that speak for them and against them, and all points."""

    best: tuple[str, ...]
    reasons: tuple[Rule, ...]
    caveats: tuple[Rule, ...] = ()
    points: dict[str, int] = field(default_factory=dict)
    ruled_out: dict[str, Rule] = field(default_factory=dict)


def wants(*names: str) -> Callable[[Situation], bool]:
    """A situation that has one of these needs."""
    return lambda situation: bool(situation.needs & set(names))


def always(situation: Situation) -> bool:
    """Every situation."""
    return True


RULES = (
    Rule(
        "LoRA ties with the best method in both of our comparisons (77.5 and 80.2 on banking77, 62.5 and 62.9 on e2e_nlg), and merges",
        RESULTS, always, favours=("lora", "dora"),
    ),
    Rule(
        "DoRA cannot be told apart from LoRA (76.5 and 77.5 on banking77, 62.4 and 62.5 on e2e_nlg), and its step is dearer",
        RESULTS, always, against=("dora",),
    ),
    Rule(
        "prompt and prefix tuning stayed far behind on banking77 (5.7 and 43.3 against LoRA's 77.5)",
        RESULTS, lambda s: "form" not in s.needs, against=("prompt", "prefix"),
    ),
    Rule(
        "full fine-tuning ties with LoRA (80.2 and 77.5 on banking77) at more than twice its memory (5.12 and 2.14 GB)",
        RESULTS, always, against=("full",),
    ),
    Rule(
        "last layers were behind LoRA on both tasks (68.5 and 77.5 on banking77, 56.1 and 62.5 on e2e_nlg)",
        RESULTS, always, against=("last-k",),
    ),
    Rule(
        "IA3, norms and biases were behind LoRA on banking77 (71.3, 64.8 and 58.5 against 77.5)",
        RESULTS, wants("quality", "knowledge"), against=("bias", "norms", "ia3"), asked=True,
    ),
    Rule(
        "bottleneck adapters are less sure: 71.3 on banking77 with the rate of the lowest validation loss, 77.0 with the default one",
        RESULTS, wants("quality", "knowledge"), against=("bottleneck",), asked=True,
    ),
    Rule(
        "on a task of form (e2e_nlg) norms (62.6), IA3 (61.8) and biases (61.4) tie with the best (62.9) and train least",
        RESULTS, wants("form"), favours=("norms", "ia3", "bias"), asked=True,
    ),
    Rule(
        "with much to learn capacity decides: LoRA of rank 256 reaches full fine-tuning (.634 and .642 on GSM8K, .498 and .497 on "
        "HumanEval), rank 16 does not (.580 and .358): take the largest rank that fits",
        "arXiv:2405.09673", lambda s: "knowledge" in s.needs and s.examples >= MANY, favours=("lora", "full"), asked=True,
    ),
    Rule(
        "with 20 to 70 examples IA3 was a little ahead of full fine-tuning and LoRA (64.6, 63.3 and 62.8 on T0-3B)",
        "arXiv:2205.05638", lambda s: 0 < s.examples < FEW, favours=("ia3",), against=("full", "norms", "bias"),
    ),
    Rule(
        "with 100 examples trained prompts fail where LoRA does not (37.6 and 63.8 on MNLI, GPT-3)",
        "arXiv:2106.09685", lambda s: 0 < s.examples < FEW, favours=("lora",), against=("prompt", "prefix"),
    ),
    Rule(
        "it cannot be merged, and made a forward pass of one row 21 to 30 % slower (GPT-2 medium)",
        "arXiv:2106.09685", wants("latency"), out=("bottleneck",), asked=True,
    ),
    Rule(
        "its positions make the context of every request longer, and it cannot be merged",
        PLANNING, wants("latency", "context"), out=("prefix", "prompt"), asked=True,
    ),
    Rule(
        "merged it costs nothing: a forward pass took 34.4 ms with LoRA merged, 82.2 ms unmerged",
        RESULTS, lambda s: "latency" in s.needs and "untouched" not in s.needs,
        favours=("lora", "ia3", "bias", "norms", "last-k"), asked=True,
    ),
    Rule(
        "unmerged, so that the base stays as it is, those without products are fastest: 45.3 ms with IA3, 57.5 with biases, 82.2 with LoRA",
        RESULTS, lambda s: {"latency", "untouched"} <= s.needs, favours=("ia3", "bias"), asked=True,
    ),
    Rule(
        "every adapter holds whole modules: 28.3 MB for two layers and 538.1 MB for all on a base of 135M, 9.8 MB for LoRA",
        RESULTS, wants("adapters", "storage"), out=("full",), against=("last-k",), asked=True,
    ),
    Rule(
        "many can stand beside one base, a different one for each row of a batch: 9.8 MB for LoRA, 242.3 kB for IA3 on a base of 135M",
        RESULTS, wants("adapters"), favours=("lora", "ia3"), asked=True,
    ),
    Rule(
        "it is among the smallest: 148.3 kB for norms, 242.3 kB for IA3, 9.8 MB for LoRA on a base of 135M",
        RESULTS, wants("storage"), favours=("ia3", "norms"), asked=True,
    ),
    Rule(
        "training the last layers takes about half the time of any other method: no gradient goes through the blocks below",
        PERFORMANCE, wants("speed"), favours=("last-k",), asked=True,
    ),
    Rule(
        "it has the dearest step",
        PERFORMANCE, wants("speed"), against=("dora", "full"), asked=True,
    ),
    Rule(
        "masters, gradients and states of every weight are 16 bytes a parameter, more than one card holds above 10 billion",
        PLANNING, lambda s: s.parameters > LARGE, out=("full",),
    ),
)  # fmt: skip
METHODS = ("lora", "dora", "bottleneck", "prefix", "prompt", "ia3", "bias", "norms", "last-k", "full")
UNFIT = Rule("it does not fit into the memory, whatever is given up", "this plan", always)


def advise(situation: Situation) -> Advice:
    """What the rules say of a situation."""
    applying = [rule for rule in RULES if rule.when(situation)]
    out = {name: rule for rule in applying for name in rule.out}
    out |= {name: UNFIT for name in METHODS if situation.fits is not None and name not in situation.fits}
    points = {name: 0 for name in METHODS if name not in out}
    for rule in applying:
        for name in points:
            points[name] += rule.weight * ((name in rule.favours) - (name in rule.against))
    most = max(points.values(), default=0)
    best = tuple(name for name, value in points.items() if value == most)
    reasons = tuple(rule for rule in applying if set(rule.favours) & set(best))
    caveats = tuple(rule for rule in applying if set(rule.against) & set(best))
    return Advice(best, reasons, caveats, points, out)


def why_not(situation: Situation, method: str) -> list[Rule]:
    """The rules against a method in a situation, or for those that are better; empty for the best. TargetError for an unknown method."""
    if method not in METHODS:
        raise TargetError(f"there is no method {method!r}: choose among {', '.join(METHODS)}")
    found = advise(situation)
    if method in found.best:
        return []
    against = [rule for rule in RULES if rule.when(situation) and method in rule.against]
    instead = [rule for rule in found.reasons if method not in rule.favours]
    return [*([found.ruled_out[method]] if method in found.ruled_out else []), *against] or instead


def spoken(found: Advice) -> str:
    """The recommendation in a sentence."""
    if not found.best:
        return "No method fits."
    if len(found.best) == 1:
        return f"Take {found.best[0]}."
    return f"Take {' or '.join(found.best)}: in the evidence they are equal."


def evidence(rules: Sequence[Rule]) -> list[str]:
    """The rules as lines, each with its source."""
    return [f"{rule.sentence[0].upper()}{rule.sentence[1:]} ({rule.source})." for rule in rules]
