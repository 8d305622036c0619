"""The recommendation in plain words: one sentence and its reasons, from a summary alone."""

from graft.compare import wording
from graft.compare.report.summary import Row, Summary


def headline(summary: Summary) -> tuple[str, str]:
    """Return the recommendation as (what to do, why): printed together they are one sentence."""
    best, pick = summary.best, summary.pick
    if best is None or pick is None:
        return "Nothing to recommend yet", "no method has finished its final runs."
    name, value = wording.metric_name(summary.metric), wording.score(summary.metric, pick.score)
    if best.score == 0 and not wording.lower_is_better(summary.metric):
        return "Nothing to recommend", f"every method that finished scores {value} {name}, so these runs cannot tell them apart."
    if pick.baseline:
        return f"Keep the base model, {pick.entry.title.lower()}", f"at {value} {name} no tuned method did better beyond doubt."
    if len([row for row in summary.rows if row.score is not None]) == 1:
        return f"Use {pick.entry.title}", f"it is the only method with a result, {value} {name}."
    if pick is best and best.gap is None:
        return f"Use {pick.entry.title}", f"it has the best {name}, {value}."
    if pick is best and len(summary.tied) == 1:
        return f"Use {pick.entry.title}", f"it has the best {name}, {value}, and no other method comes close enough to tie."
    if pick is best:
        return f"Use {pick.entry.title}", f"it has the best {name}, {value}, and it trains the fewest parameters of those that tie with it."
    why = f"its {value} {name} ties with the best, {best.entry.title}’s {wording.score(summary.metric, best.score)}"
    return f"Use {pick.entry.title}", f"{why}, and it trains {fewer(pick, best)}."


def fewer(pick: Row, best: Row) -> str:
    """Say how many fewer parameters the pick trains than the best."""
    if not pick.trainable or not best.trainable or pick.trainable >= best.trainable:
        return "no more parameters"
    ratio = best.trainable / pick.trainable
    return f"{wording.times(ratio)} times fewer parameters" if ratio >= 2 else f"{max(1, round(100 - 100 / ratio))}% fewer parameters"


def reasons(summary: Summary) -> list[tuple[str, str]]:
    """Return the reasons as (label, sentence), most important first."""
    if summary.best is None or summary.pick is None:
        return []
    out = [("Best score", best_sentence(summary, summary.best)), ("Cost", cost_sentence(summary, summary.pick))]
    if gains := gain_sentence(summary, summary.pick):
        out.append(("Against the base", gains))
    if serving := serving_sentence(summary, summary.pick):
        out.append(("When it runs", serving))
    out.append(("How sure", sure_sentence(summary, summary.best)))
    return out


def best_sentence(summary: Summary, best: Row) -> str:
    """Name the best score, its interval, and who ties with it."""
    text = f"{best.entry.title}, {wording.score(summary.metric, best.score)} {wording.metric_name(summary.metric)}"
    if best.low is not None:
        text += f" (95% interval {wording.span(summary.metric, best.low, best.high)})"
    others = [row.entry.title for row in summary.tied if row is not best]
    if others:
        return f"{text}. {wording.listed(others)} cannot be told apart from it on these test rows."
    return f"{text}. Every other method is behind it beyond chance." if best.gap else f"{text}."


def cost_sentence(summary: Summary, pick: Row) -> str:
    """Say what the pick trains, stores and needs."""
    if pick.baseline:
        return "Nothing is trained and nothing is stored."
    whole = summary.plan.model.get("parameters")
    text = f"{pick.entry.title} trains {wording.count(pick.trainable)} parameters"
    if pick.trainable is not None and whole:
        text += f", {wording.percent(pick.trainable, whole)} of the model"
    if pick.adapter_bytes is not None:
        text += f"; its file takes {wording.size(pick.adapter_bytes)}"
    return text + (f"; training peaked at {wording.size(pick.memory)} of memory." if pick.memory is not None else ".")


def gain_sentence(summary: Summary, pick: Row) -> str:
    """Say how far the pick is from each baseline."""
    parts = []
    for row in summary.baselines:
        if row is not pick and row.score is not None and pick.score is not None:
            change = wording.signed(summary.metric, pick.score - row.score)
            parts.append(f"{change}{wording.points(summary.metric)} from {baseline_name(row)} ({wording.score(summary.metric, row.score)})")
    return f"{'; '.join(parts)}." if parts else ""


def baseline_name(row: Row) -> str:
    """Name a baseline with its number of examples."""
    shots = next((run.shots for run in row.runs if run.shots is not None), None)
    return row.entry.title.lower() + (f" with {wording.plural(shots, 'example')}" if shots else "")


def serving_sentence(summary: Summary, pick: Row) -> str:
    """Say what the pick costs at inference."""
    if pick.baseline:
        return f"It uses {wording.plural(pick.positions, 'context position')} of every request." if pick.positions else ""
    if pick.mergeable:
        return "It merges into the model’s weights: no extra time and no extra context."
    if pick.mergeable is None:
        return ""
    text = "It cannot be merged; it stays beside the model"
    base = next((row.served for row in summary.baselines if row.method == "zero-shot"), None)
    if base and pick.served is not None:
        text += f" and a forward takes {wording.figures(pick.served, 'ms')} instead of {wording.figures(base, 'ms')}"
    return text + (f", with {wording.plural(pick.positions, 'context position')} used." if pick.positions else ".")


def sure_sentence(summary: Summary, best: Row) -> str:
    """Say how many test rows and seeds stand behind the numbers, and how small a difference they can show."""
    rows = len(next((run.per_item for run in best.runs if run.per_item), ()))
    seeds = max((len(row.runs) for row in summary.tuned), default=0)
    text = f"{wording.plural(rows, 'test row')}, {wording.plural(seeds, 'seed')} a method"
    widths = [(row.gap[2] - row.gap[1]) / 2 for row in summary.tuned if row.gap and row is not best and row.gap[2] > row.gap[1]]
    if widths:
        width = sorted(widths)[len(widths) // 2]
        text += (
            f": differences under about {wording.signed(summary.metric, width).lstrip('+')}{wording.points(summary.metric)} cannot be seen"
        )
    return text + (". One seed says nothing about how much a method varies." if seeds == 1 else ".")
