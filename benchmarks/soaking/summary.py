"""The summary of a soak, as JSON and as Markdown, and whether it passed."""

import statistics

MOST_REDRAWN = 1 / 200  # of what was drawn again: rounding may turn a draw between two tokens that are nearly as likely


def summarise(ledger, watch, settings, ending):
    """All figures; "passed" is the verdict."""
    memory = watch.summary()
    kinds = {kind: dict(sorted(endings.items())) for kind, endings in sorted(ledger.kinds.items())}
    redrawn_right = ledger.redrawn_otherwise <= MOST_REDRAWN * ledger.redrawn
    return {
        "passed": not ledger.wrong and not ledger.unexpected and memory["flat"] and redrawn_right and ending["clean"],
        "settings": settings,
        "requests": sum(sum(endings.values()) for endings in kinds.values()),
        "kinds": kinds,
        "checked": ledger.checked,
        "wrong": ledger.wrong[:50],
        "wrong_count": len(ledger.wrong),
        "drawn_again": ledger.redrawn,
        "drawn_otherwise": ledger.redrawn_otherwise,
        "unexpected": ledger.unexpected[:50],
        "unexpected_count": len(ledger.unexpected),
        "seconds": spread(ledger.seconds),
        "first_token_seconds": spread(ledger.first),
        "ending": ending,
        "memory": memory,
    }


def spread(values):
    """Median, 95th and 99th percentile, and the largest."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3), "max": round(max(values), 3)}


def markdown(found):
    """The summary as text."""
    memory, settings = found["memory"], found["settings"]
    latency, first = found["seconds"], found["first_token_seconds"]
    flat = "flat" if memory["flat"] else "NOT flat"
    lines = [
        f"**{'Passed' if found['passed'] else 'FAILED'}**: {settings['minutes']:g} minutes, {found['requests']:,} requests, "
        f"{found['checked']:,} answers compared with the oracle, {found['wrong_count']} wrong, "
        f"{found['unexpected_count']} unexpected endings.",
        "",
        f"- Drawn again with the same seed: {found['drawn_again']:,}, otherwise than before: {found['drawn_otherwise']}.",
        f"- Memory (MiB resident): {memory['start']:.0f} at the start, {memory['after_warm_up']:.0f} after the warm-up, "
        f"{memory['end']:.0f} at the end, {memory['peak']:.0f} at most; {memory['slope_mib_an_hour']:+.1f} an hour: {flat}.",
        f"- Threads {memory['threads'][0]} after the warm-up, {memory['threads'][1]} at the end; open files {memory['files'][0]} and "
        f"{memory['files'][1]}.",
        f"- Seconds of a checked answer: {in_words(latency)}; until a stream's first event: {in_words(first)}.",
        f"- At the end: {found['ending']['said']}.",
        "",
        "| requests | ended with |",
        "|---|---|",
    ]
    lines += [
        f"| {kind} | {', '.join(f'{status}: {count:,}' for status, count in ends.items())} |" for kind, ends in found["kinds"].items()
    ]
    return "\n".join(lines) + "\n"


def in_words(values):
    """A spread in words."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items()) or "none"
