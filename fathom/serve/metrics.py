"""What Prometheus reads, under names close to vLLM's."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from fathom.infer.engine import Engine
from fathom.infer.request import Timing

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = CONTENT_TYPE_LATEST
Family = TypeVar("Family", Counter, Gauge, Histogram)


class Metrics:
    """Counters of one model, all labelled with its name; models of one server share their families."""

    def __init__(self, model: str, other: "Metrics | None" = None) -> None:
        self.registry = other.registry if other else CollectorRegistry()
        self._families: dict[str, Counter | Gauge | Histogram] = other._families if other else {}
        self._gauges: list[Gauge] = []
        self._engines = other._engines if other else EngineCounts()
        if not other:
            self.registry.register(self._engines)
        self._model = model
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens read")
        self.generation_tokens = self._counter("generation_tokens", "Tokens drawn")
        self.cancelled = self._counter("request_cancelled", "Requests whose client left")
        self._success = self._labelled("request_success", "Samples finished", "finished_reason")
        self._rejected = self._labelled("request_rejected", "Requests refused before the engine", "reason")
        self.first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token")
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens of a stream")
        self.per_token = self._histogram("request_time_per_output_token_seconds", "Mean per token of a request")
        self._queue = self._histogram("request_queue_time_seconds", "Until a sample's prompt began to be read")
        self._prefill = self._histogram("request_prefill_time_seconds", "From then to its first token")
        self._decode = self._histogram("request_decode_time_seconds", "From the first token to the last")
        self.whole = self._histogram("e2e_request_latency_seconds", "From arrival to the last token")

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge that is read when Prometheus asks."""
        gauge = self._family(Gauge, name, about, "model_name")
        gauge.labels(self._model).set_function(value)
        self._gauges.append(gauge)

    def count(self, engine: Engine) -> None:
        """Show what the model's engine counts."""
        self._engines.engines[self._model] = engine

    def beside(self, model: str) -> "Metrics":
        """Those of another model of the same server."""
        return Metrics(model, self)

    def forget(self) -> None:
        """Let go of what is watched; what was counted stays."""
        for gauge in self._gauges:
            gauge.remove(self._model)
        self._gauges.clear()
        self._engines.engines.pop(self._model, None)

    def finished(self, reason: str, samples: int = 1) -> None:
        """Count samples that ended."""
        self._success.labels(self._model, reason).inc(samples)

    def timed(self, timing: Timing, whole_s: float) -> None:
        """Take apart the seconds of a sample, from the arrival of its request to its last token."""
        self._queue.observe(timing.waited)
        self._prefill.observe(timing.read)
        self._decode.observe(max(0.0, whole_s - sum(timing)))

    def rejected(self, reason: str) -> None:
        """Count a request that was turned away."""
        self._rejected.labels(self._model, reason).inc()

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str) -> Counter:
        return self._family(Counter, name, about, "model_name").labels(self._model)

    def _labelled(self, name: str, about: str, label: str) -> Counter:
        return self._family(Counter, name, about, "model_name", label)

    def _histogram(self, name: str, about: str) -> Histogram:
        return self._family(Histogram, name, about, "model_name", buckets=SECONDS).labels(self._model)

    def _family(self, kind: type[Family], name: str, about: str, *labels: str, **more: Any) -> Family:
        if name not in self._families:
            self._families[name] = kind(f"fathom:{name}", about, labels, registry=self.registry, **more)
        found = self._families[name]
        assert isinstance(found, kind)
        return found


class EngineCounts(Collector):
    """What engines count by themselves: pages, prefixes and drafts, as they stand when Prometheus asks."""

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}  # by the model's name

    def collect(self) -> Iterator[Metric]:
        """The present values."""
        counters = {name: engine.counters for name, engine in self.engines.items()}
        verdicts = {name: engine.verdicts for name, engine in self.engines.items()}
        used = {name: each.pages_used for name, each in counters.items()}
        held = {n: each.pages_used / max(each.pages_used + each.pages_free, 1) for n, each in counters.items()}
        queries = {name: each.prefix_queries for name, each in counters.items()}
        hits = {name: each.prefix_hits for name, each in counters.items()}
        moved = {name: each.preemptions for name, each in counters.items()}
        steps = {name: checked[0] if checked else 0 for name, (checked, _) in verdicts.items()}
        checks = {name: sum(checked) for name, (checked, _) in verdicts.items()}
        kept = {name: sum(kept) for name, (_, kept) in verdicts.items()}
        yield _filled(GaugeMetricFamily, "kv_cache_usage_perc", "Share of the pages that requests hold; 1 is all", held)
        yield _filled(GaugeMetricFamily, "kv_cache_used_pages", "Pages that requests hold", used)
        count = CounterMetricFamily
        yield _filled(count, "prefix_cache_queries", "Tokens of prompts looked for in the cache", queries)
        yield _filled(count, "prefix_cache_hits", "Of these, found", hits)
        yield _filled(count, "num_preemptions", "Samples that made way for older ones", moved)
        yield _filled(count, "spec_decode_num_drafts", "Steps of a row with drafts", steps)
        yield _filled(count, "spec_decode_num_draft_tokens", "Drafts that were checked", checks)
        yield _filled(count, "spec_decode_num_accepted_tokens", "Drafts that were kept", kept)
        places = CounterMetricFamily(
            "fathom:spec_decode_num_accepted_tokens_per_pos",
            "Drafts that were kept, by their place in a step",
            labels=["model_name", "position"],
        )
        for name, (_, accepted) in verdicts.items():
            for place, count_there in enumerate(accepted):
                places.add_metric([name, str(place)], count_there)
        yield places


def _filled(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily], name: str, about: str, values: Mapping[str, float]
) -> Metric:
    """A family with a value for every model."""
    family = kind(f"fathom:{name}", about, labels=["model_name"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family
