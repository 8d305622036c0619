"""What a comparison was: the sentence under the headline, the demo's banner, what is missing, and how everything was measured."""

from graft.compare import wording
from graft.compare.records import Plan
from graft.compare.report.canvas import escaped
from graft.compare.report.markup import facts, section, small
from graft.compare.report.summary import Summary


def lede(summary: Summary) -> str:
    """Return the sentence that tells a newcomer what was compared."""
    plan = summary.plan
    model = f"<b>{escaped(model_name(plan))}</b>" + (f" ({escaped(str(plan.model['note']))})" if plan.model.get("note") else "")
    tuned = wording.plural(len(summary.tuned), "fine-tuning method")
    text = f"{escaped(tuned)} on {model}. Each trains a small addition to the frozen model, or a part of the model itself"
    if trained := plan.data.get("rows_train"):
        text += f", on the same {wording.count(trained)} rows"
    if scored := plan.data.get("rows_eval"):
        text += f"; scores are {escaped(wording.metric_name(summary.metric))} on {wording.count(scored)} test rows"
    return text + "."


def model_name(plan: Plan) -> str:
    """Return the model's name."""
    return str(plan.model.get("name") or "a model")


def demo_banner(plan: Plan) -> str:
    """Return the banner that says that this is a demo; empty if it is none."""
    if not plan.demo:
        return ""
    seeds = wording.plural(plan.seeds, "seed") if plan.seeds else "one seed"
    text = (
        f"<p><strong>This is a demo.</strong> It ran {seeds}, every method at its default learning rate, on few rows: enough to see how a "
        "comparison works, too little to choose a method by."
    )
    full = f" The full comparison:</p><pre>{escaped(plan.full_command)}</pre>" if plan.full_command else "</p>"
    return f'<aside class="demo" aria-label="About this demo">{text}{full}</aside>'


def missing_section(summary: Summary) -> str:
    """Return what was asked for and has no result, and why; empty if nothing is missing."""
    items = "".join(
        f'<li><b>{escaped(each.what)}</b><span class="status">{escaped(each.status)}</span>'
        f'<span class="why">{escaped(each.reason)}</span></li>'
        for each in summary.missing
    )
    intro = "Asked for, but without a result."
    return section("missing", "What failed or was not run", intro, f'<ul class="absent card">{items}</ul>' if items else "")


def setup_section(summary: Summary) -> str:
    """Return the facts of the comparison, how it measured, and the exact command."""
    body = facts(setup_facts(summary)) + f"<h3>How it was measured</h3><ul class='notes'>{notes(summary)}</ul>"
    if summary.plan.command:
        body += f"<h3>The exact command</h3><pre>{escaped(summary.plan.command)}</pre>"
    return section("setup", "What was compared, and how", "", f'<div class="setup">{body}</div>')


def setup_facts(summary: Summary) -> list[tuple[str, str]]:
    """Return the facts as (label, markup); an unknown one is empty."""
    plan, data = summary.plan, summary.plan.data
    parameters = plan.model.get("parameters")
    about = [f"{wording.count(parameters)} parameters" if parameters else "", text_of(plan.model.get("note"))]
    if plan.model.get("fingerprint"):
        about.append(f"fingerprint {cut(str(plan.model['fingerprint']))}")
    rows = [(name, data.get(key)) for name, key in (("training", "rows_train"), ("validation", "rows_validation"), ("test", "rows_eval"))]
    counts = ", ".join(f"{wording.count(value)} {name}" for name, value in rows if value is not None)
    source = ", ".join(f"{name}: {data[key]}" for name, key in (("training", "train"), ("test", "eval")) if data.get(key))
    versions = ", ".join(f"{name} {number}" for name, number in plan.versions.items() if number)
    return [
        ("Model", escaped(model_name(plan)) + small("; ".join(part for part in about if part))),
        ("Data", escaped(source) + small("; ".join(hashes(data.get("sha256"))))),
        ("Rows", escaped(counts) + small("; ".join(str(note) for note in data.get("notes") or ()))),
        ("Metric", escaped(wording.metric_name(summary.metric))),
        ("Effort", escaped(effort(plan))),
        ("Machine", escaped(plan.machine)),
        ("Versions", escaped(versions)),
        ("Started", escaped(plan.started.replace("T", " "))),
    ]


def hashes(value: object) -> list[str]:
    """Return a file's hash, or that of each file, in words."""
    if isinstance(value, dict):
        return [f"sha256 of {name} {cut(str(text))}" for name, text in value.items() if text]
    return [f"sha256 {cut(str(value))}"] if value else []


def cut(text: str) -> str:
    """Shorten a hash; the records keep it whole."""
    return text if len(text) <= 16 else f"{text[:16]}…"


def text_of(value: object) -> str:
    """Return a value as text, nothing for None."""
    return "" if value is None else str(value)


def effort(plan: Plan) -> str:
    """Say what every method was given."""
    parts = [f"budget {plan.budget}"] if plan.budget else []
    if plan.trials:
        parts.append(wording.plural(plan.trials, "learning-rate trial"))
    if plan.seeds:
        parts.append(f"then {wording.plural(plan.seeds, 'seed')}" if plan.trials else wording.plural(plan.seeds, "seed"))
    if plan.max_steps:
        parts.append(f"at most {wording.plural(plan.max_steps, 'step')} each")
    return f"{', '.join(parts)}; the same for every method" if parts else ""


def notes(summary: Summary) -> str:
    """Return how the numbers came about, as list items."""
    items = [
        "A method’s score is the mean over its seeds. Its 95% interval comes from 10,000 bootstrap resamples of the test rows and of "
        "the seeds.",
        "Differences are paired: every resample draws the same test rows for both methods. Two methods tie when the 95% interval of their "
        "difference contains 0. A tie means that these rows cannot tell them apart, not that they are equal.",
        "Recommended is the cheapest method that ties with the best: the one with the fewest trainable parameters.",
        "The learning rate was chosen on validation rows, never on the test rows." if summary.trials else "",
        "Peak memory is of the whole training process, the base model included. Time a step and tokens/s are of training.",
        "Context positions are places of the model’s context window that the method uses up in every request.",
    ]
    return "".join(f"<li>{escaped(item)}</li>" for item in items if item)
