"""Plan: what each method costs, from a model's config alone. So far the counts, which are exact."""

from graft.plan.counts import Counted, counts, table

__all__ = ["Counted", "counts", "table"]
