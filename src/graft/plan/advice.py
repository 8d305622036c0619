"""Which method to take: a table of rules, each with its evidence. Measurements of our own come first (docs/), those of others second.

A rule applies in a situation (`when`), and speaks for methods, against methods, or rules them out. What others measured counts 1, what our
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
RESULTS, PERFORMANCE, PLANNING, SERVING = "docs/results.md", "docs/performance.md", "docs/planning.md", "docs/architecture.md"
PEFT = "huggingface/peft, method_comparison"
HANDFUL, FEW, MANY = 70, 200, 50_000  # examples
LARGE = 10_000_000_000  # parameters
BESIDE = {"untouched", "adapters"}  # needs with which nothing can be merged


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
    that it answers a need, `largest` that the largest rank that fits is to be taken.
    """

    sentence: str
    source: str
    when: Callable[[Situation], bool]
    favours: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    asked: bool = False
    largest: bool = False

    @property
    def weight(self) -> int:
        """What it counts."""
        return (2 if self.source.startswith("docs/") else 1) * (2 if self.asked else 1)


@dataclass(frozen=True)
class Advice:
    """The methods to take (several are equal in the evidence), the rules that speak for them and against them, and all points."""

    best: tuple[str, ...]
    reasons: tuple[Rule, ...]
    caveats: tuple[Rule, ...] = ()
    points: dict[str, int] = field(default_factory=dict)
    ruled_out: dict[str, Rule] = field(default_factory=dict)

    @property
    def largest(self) -> bool:
        """Whether the largest rank that fits is to be taken."""
        return any(rule.largest for rule in self.reasons)


def wants(*names: str) -> Callable[[Situation], bool]:
    """A situation that has one of these needs."""
    return lambda situation: bool(situation.needs & set(names))


def always(situation: Situation) -> bool:
    """Every situation."""
    return True


RULES = (
    Rule(
        "LoRA ties with the best method in both of our comparisons on SmolLM2-135M (77.5 and 80.2 on banking77, 62.5 and 62.9 on "
        "e2e_nlg), and merges",
        RESULTS, always, favours=("lora", "dora"),
    ),
    Rule(
        "DoRA cannot be told apart from LoRA (76.5 and 77.5 on banking77, 62.4 and 62.5 on e2e_nlg), and takes more memory (2.91 and "
        "2.14 GB)",
        RESULTS, always, against=("dora",),
    ),
    Rule(
        "prompt and prefix tuning stayed far behind on banking77 (5.7 and 43.3 against LoRA's 77.5, on SmolLM2-135M)",
        RESULTS, lambda s: "form" not in s.needs, against=("prompt", "prefix"),
    ),
    Rule(
        "on the largest models a trained prompt meets fine-tuning (T5 with 11 billion parameters, SuperGLUE)",
        "arXiv:2104.08691", lambda s: s.parameters >= LARGE and not 0 < s.examples < FEW, favours=("prompt",),
    ),
    Rule(
        "full fine-tuning ties with LoRA on banking77 (80.2 and 77.5) and is behind the best on e2e_nlg (60.5 and 62.9), at more than "
        "twice LoRA's memory (5.12 and 2.14 GB)",
        RESULTS, always, against=("full",),
    ),
    Rule(
        "last layers were behind LoRA on both tasks (68.5 and 77.5 on banking77, 56.1 and 62.5 on e2e_nlg)",
        RESULTS, always, against=("last-k",),
    ),
    Rule(
        "of the smallest methods IA3 learnt most (71.3 on banking77, norms 64.8, biases 58.5)",
        RESULTS, lambda s: "form" not in s.needs, against=("norms", "bias"),
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
        "arXiv:2405.09673", lambda s: "knowledge" in s.needs and s.examples >= MANY, favours=("lora", "full"), asked=True, largest=True,
    ),
    Rule(
        "with 20,000 rows of mathematics on a 3B model LoRA of rank 32 and 64 is level with full fine-tuning (47.8, 47.4 and 47.2 on "
        "GSM8K, one seed), DoRA too (46.9), while norms learnt nothing (0.0)",
        PEFT, lambda s: "knowledge" in s.needs and s.examples < MANY, favours=("lora", "dora", "full"), against=("norms",), asked=True,
        largest=True,
    ),
    Rule(
        "with 20 to 70 examples IA3 was a little ahead of full fine-tuning and LoRA (64.6, 63.3 and 62.8 on T0-3B), norms and biases "
        "far behind (54.2 and 54.0)",
        "arXiv:2205.05638", lambda s: 0 < s.examples <= HANDFUL, favours=("ia3",), against=("norms", "bias"),
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
        "merged it is a plain model of the base's shape and as fast: 34.4 ms a row with LoRA merged, 82.2 unmerged, beside other work",
        RESULTS, lambda s: "latency" in s.needs and not s.needs & BESIDE,
        favours=("lora", "dora", "ia3", "bias", "norms", "last-k", "full"), asked=True,
    ),
    Rule(
        "unmerged, beside a base that stays or is shared, those without products beside its own are fastest: a row took 24.9 ms with "
        "norms, 37.0 with last layers, 45.3 with IA3, 57.5 with biases and 82.2 with LoRA, beside other work",
        RESULTS, lambda s: "latency" in s.needs and bool(s.needs & BESIDE), favours=("ia3", "bias", "norms", "last-k"), asked=True,
    ),
    Rule(
        "beside a base that stays as it is full fine-tuning is a second model: 538.1 MB on a base of 135M, 9.8 MB for LoRA",
        RESULTS, wants("untouched"), against=("full",), asked=True,
    ),
    Rule(
        "it trains whole modules, which the rows of a batch cannot share: graft serve refuses it",
        SERVING, wants("adapters"), out=("full", "last-k", "norms"), asked=True,
    ),
    Rule(
        "of those that share one base and a batch LoRA learnt most for its size (77.5 on banking77 with 9.8 MB) and IA3 is the "
        "smallest that learns (71.3 with 242.3 kB)",
        RESULTS, wants("adapters"), favours=("lora", "ia3"), asked=True,
    ),
    Rule(
        "every adapter holds whole modules: 28.3 MB for two layers and 538.1 MB for all on a base of 135M, 9.8 MB for LoRA",
        RESULTS, wants("storage"), out=("full",), against=("last-k",), asked=True,
    ),
    Rule(
        "it is among the smallest: 148.3 kB for norms, 242.3 kB for IA3, 9.8 MB for LoRA on a base of 135M",
        RESULTS, wants("storage"), favours=("ia3", "norms"), asked=True,
    ),
    Rule(
        "training the last layers takes half the time of any other method (0.553 of the frozen limit, LoRA 1.077): no gradient goes "
        "through the blocks below",
        PERFORMANCE, wants("speed"), favours=("last-k",), asked=True,
    ),
    Rule(
        "its step is the dearest (1.158 of the frozen limit, LoRA 1.077)",
        PERFORMANCE, wants("speed"), against=("dora",), asked=True,
    ),
    Rule(
        "full fine-tuning took 2,147 s where LoRA took 942 (3B, 5,000 steps of 4 rows)",
        PEFT, wants("speed"), against=("full",), asked=True,
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
    """The rules against a method in a situation, or for those that are better; empty for the best. TargetError for an unknown method.

    Where nothing speaks against it, what was measured of it elsewhere does, but for a task of form, on which most methods are equal.
    """
    if method not in METHODS:
        raise TargetError(f"there is no method {method!r}: choose among {', '.join(METHODS)}")
    found = advise(situation)
    if method in found.best:
        return []
    against = [rule for rule in RULES if rule.when(situation) and method in rule.against]
    elsewhere = [rule for rule in RULES if rule.source == RESULTS and method in rule.against and "form" not in situation.needs]
    instead = [rule for rule in found.reasons if method not in rule.favours]
    return [*([found.ruled_out[method]] if method in found.ruled_out else []), *against] or [*elsewhere, *instead]


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
