"""GET /metrics: the engine's counts (graft.serve.counts) as Prometheus reads them, by model, and what the server itself refused.

The label `model` is an adapter's name, or the base's. Names that nobody has are counted together, so that strangers cannot make labels.
"""

from collections.abc import Iterator
from itertools import accumulate

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from prometheus_client.registry import Collector
from starlette.responses import Response

from graft.serve.counts import Counted, Histogram
from graft.serve.http.desk import Desk
from graft.serve.http.refusals import documented

SECONDS = {
    "queue": "Seconds until the engine began with a request.",
    "first_token": "Seconds from asking to the first token of an answer.",
    "token": "Seconds from a token of an answer to its next.",
    "load": "Seconds that reading an adapter's folder into host memory took.",
    "place": "Seconds that bringing an adapter from host memory into a slot took.",
}


class Counts(Collector):
    """The engine's counts, read when they are asked for."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def collect(self) -> Iterator[Metric]:
        """All metrics of the engine."""
        counts = self.desk.engine.counts()
        by_model = {self.desk.settings.name if name is None else name: own for name, own in counts.adapters.items()}
        yield from numbers(by_model)
        for what, text in SECONDS.items():
            family = HistogramMetricFamily(f"graft_{what}_seconds", text, labels=["model"])
            for model, own in by_model.items():
                family.add_metric([model], cumulative(own.seconds[what]), own.seconds[what].sum)
            yield family
        yield CounterMetricFamily("graft_requests_for_unknown_models", "Requests for models that are not served.", counts.unknown)
        yield GaugeMetricFamily("graft_slots", "Adapters that can be on the device at a time.", counts.slots)
        yield GaugeMetricFamily("graft_slots_used", "Adapters that are on the device.", counts.slots_used)
        yield GaugeMetricFamily("graft_host_bytes", "Bytes that adapters take of host memory.", counts.host_bytes)
        yield GaugeMetricFamily("graft_requests_under_way", "Requests that the server has let in.", self.desk.gate.requests)


def numbers(by_model: dict[str, Counted]) -> Iterator[Metric]:
    """Requests, tokens, evictions, and what waits and runs."""
    requests = CounterMetricFamily("graft_requests", "Requests, by how they ended.", labels=["model", "outcome"])
    tokens = CounterMetricFamily("graft_tokens", "Tokens, by kind; shared ones were found in the cache.", labels=["model", "kind"])
    evictions = CounterMetricFamily("graft_evictions", "Times that an adapter had to leave its place.", labels=["model", "place"])
    now = GaugeMetricFamily("graft_answers", "Answers that wait or run now.", labels=["model", "state"])
    for model, own in by_model.items():
        for family, values in ((requests, own.requests), (tokens, own.tokens), (evictions, own.evictions)):
            for label, value in values.items():
                family.add_metric([model, label], value)
        now.add_metric([model, "waiting"], own.waiting)
        now.add_metric([model, "running"], own.running)
    yield from (requests, tokens, evictions, now)


def cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Buckets as Prometheus counts them: all times up to a bound."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.buckets), strict=True))


class Meter:
    """What the server counts itself: responses by status, and the page of all metrics."""

    def __init__(self, desk: Desk) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Counts(desk))
        self.responses = Counter("graft_http_responses", "Responses by status.", ["status"], registry=self.registry)

    def page(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


def routes(meter: Meter) -> APIRouter:
    """The endpoint."""
    router = APIRouter(tags=["metrics"])
    page = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @router.get("/metrics", response_class=Response, responses={200: page, **documented(401, 403, 500)})
    def metrics() -> Response:
        """Tell the counts."""
        return Response(meter.page(), headers={"content-type": CONTENT_TYPE_PLAIN_1_0_0})

    return router
