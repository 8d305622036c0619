"""The report's plots, in the order in which a page shows them."""

from graft.compare import wording
from graft.compare.report.canvas import Plot
from graft.compare.report.curves import learning, rates
from graft.compare.report.scatter import Axis, costs
from graft.compare.report.summary import Summary


def all_plots(summary: Summary) -> list[Plot]:
    """Return the plots that the records can fill, in the order in which a page shows them."""
    metric = wording.metric_name(summary.metric)
    better = "Lower" if wording.lower_is_better(summary.metric) else "Higher"
    plots = [
        costs(summary, "score-vs-parameters", "What size buys", f"{better} and further left is better. Whiskers are 95% intervals; "
              "dashed lines are the base model without training.", f"{metric} against trainable parameters",
              Axis("trainable parameters (log scale)", lambda row: row.trainable or None, wording.short_count, log=True)),
        costs(summary, "score-vs-memory", "What memory buys", "Peak memory of training, the largest of all seeds.",
              f"{metric} against peak memory in training",
              Axis("peak memory in training", lambda row: row.memory, lambda value: f"{value / 1e9:g} GB")),
        costs(summary, "score-vs-latency", "What it costs when it runs", "One forward of 1×128 tokens, merged into the base where the "
              "method can be. Further left is faster.", f"{metric} against latency",
              Axis("latency of one forward, 1×128 tokens", lambda row: row.served, lambda value: f"{value:g} ms")),
        learning(summary),
        rates(summary),
    ]  # fmt: skip
    return [plot for plot in plots if plot is not None]
