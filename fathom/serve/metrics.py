"""What Prometheus reads, under names close to vLLM's."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from fathom.infer.engine import Engine
from fathom.infer.request import Timing

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server, all labelled with the model's name."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
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
        gauge = Gauge(f"fathom:{name}", about, ["model_name"], registry=self.registry)
        gauge.labels(self._model).set_function(value)

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
        return Counter(f"fathom:{name}", about, ["model_name"], registry=self.registry).labels(self._model)

    def _labelled(self, name: str, about: str, label: str) -> Counter:
        return Counter(f"fathom:{name}", about, ["model_name", label], registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(f"fathom:{name}", about, ["model_name"], registry=self.registry, buckets=SECONDS).labels(
            self._model
        )


class EngineCounts(Collector):
    """What the engine counts by itself: pages, prefixes and drafts, as they stand when Prometheus asks."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[Metric]:
        """The present values."""
        pages = self._engine.counters
        held = pages.pages_used / max(pages.pages_used + pages.pages_free, 1)
        yield self._gauge("kv_cache_usage_perc", "Share of the pages that requests hold; 1 is all", held)
        yield self._gauge("kv_cache_used_pages", "Pages that requests hold", pages.pages_used)
        yield self._count("prefix_cache_queries", "Tokens of prompts looked for in the cache", pages.prefix_queries)
        yield self._count("prefix_cache_hits", "Of these, found", pages.prefix_hits)
        yield self._count("num_preemptions", "Samples that made way for older ones", pages.preemptions)
        checked, kept = self._engine.verdicts
        yield self._count("spec_decode_num_drafts", "Steps of a row with drafts", checked[0] if checked else 0)
        yield self._count("spec_decode_num_draft_tokens", "Drafts that were checked", sum(checked))
        yield self._count("spec_decode_num_accepted_tokens", "Drafts that were kept", sum(kept))
        places = CounterMetricFamily(
            "fathom:spec_decode_num_accepted_tokens_per_pos",
            "Drafts that were kept, by their place in a step",
            labels=["model_name", "position"],
        )
        for place, accepted in enumerate(kept):
            places.add_metric([self._model, str(place)], accepted)
        yield places

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"fathom:{name}", about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _count(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(f"fathom:{name}", about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
