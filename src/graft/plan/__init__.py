"""Plan: what each method costs, from a model's config alone. Counts and what serving costs, both exact."""

from graft.plan.counts import Counted, counts, table
from graft.plan.serving import LATENCY, Served, forms, served
from graft.plan.settings import USUAL, flags

__all__ = ["LATENCY", "USUAL", "Counted", "Served", "counts", "flags", "forms", "served", "table"]
