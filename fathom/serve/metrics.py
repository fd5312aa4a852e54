"""What Prometheus reads, under names close to vLLM's."""

from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = CONTENT_TYPE_LATEST
Family = TypeVar("Family", Counter, Gauge, Histogram)


class Metrics:
    """Counters of one model, all labelled with its name; models of one server share their families."""

    def __init__(self, model: str, other: "Metrics | None" = None) -> None:
        self.registry = other.registry if other else CollectorRegistry()
        self._families: dict[str, Counter | Gauge | Histogram] = other._families if other else {}
        self._gauges: list[Gauge] = []
        self._model = model
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens read")
        self.generation_tokens = self._counter("generation_tokens", "Tokens drawn")
        self.cancelled = self._counter("request_cancelled", "Requests whose client left")
        self._success = self._labelled("request_success", "Samples finished", "finished_reason")
        self._rejected = self._labelled("request_rejected", "Requests refused before the engine", "reason")
        self.first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first streamed token")
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between two tokens of a stream")
        self.per_token = self._histogram("request_time_per_output_token_seconds", "Mean per token of a request")
        self.whole = self._histogram("e2e_request_latency_seconds", "From arrival to the last token")

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A gauge that is read when Prometheus asks."""
        gauge = self._family(Gauge, name, about, "model_name")
        gauge.labels(self._model).set_function(value)
        self._gauges.append(gauge)

    def beside(self, model: str) -> "Metrics":
        """Those of another model of the same server."""
        return Metrics(model, self)

    def forget(self) -> None:
        """Let go of what is watched; what was counted stays."""
        for gauge in self._gauges:
            gauge.remove(self._model)
        self._gauges.clear()

    def finished(self, reason: str) -> None:
        """Count a sample that ended."""
        self._success.labels(self._model, reason).inc()

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
