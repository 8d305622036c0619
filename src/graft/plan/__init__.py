"""Plan: what each method costs on a model, how it would be trained in a given memory, and which to take, from a config alone."""

from graft.plan.advice import NEEDS, advise, why_not
from graft.plan.cards import CARDS, Card, bytes_of, named
from graft.plan.counts import Counted, counts
from graft.plan.page import page
from graft.plan.plain import plain
from graft.plan.plan import Entry, Plan, plan
from graft.plan.report import after_oom, plan_and_show
from graft.plan.serving import LATENCY, Served, forms, served
from graft.plan.settings import USUAL, flags
from graft.plan.show import show

__all__ = [
    "CARDS",
    "LATENCY",
    "NEEDS",
    "USUAL",
    "Card",
    "Counted",
    "Entry",
    "Plan",
    "Served",
    "advise",
    "after_oom",
    "bytes_of",
    "counts",
    "flags",
    "forms",
    "named",
    "page",
    "plain",
    "plan",
    "plan_and_show",
    "served",
    "show",
    "why_not",
]
