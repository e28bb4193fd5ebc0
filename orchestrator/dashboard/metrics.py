"""The same figures for Prometheus: read when it asks, none kept twice."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector as MetricSource

from edge_runtime.tail_messages import TAIL_BOUNDS_MS
from orchestrator.dashboard.live import GROUPS
from orchestrator.dashboard.pages import ModelLine, Overview


class FleetMetrics(MetricSource):
    """The metrics of one overview."""

    def __init__(self, page: Overview) -> None:
        self._page = page

    def collect(self) -> Iterable[Metric]:
        """Every metric family."""
        yield from self._fleet()
        yield from self._models()
        yield from self._tails()

    def _fleet(self) -> Iterable[Metric]:
        summary = self._page.summary
        for name, what, label, counts in (
            ("devices", "Devices by status", "status", summary.by_status),
            ("devices_by_version", "Devices by the version that they run", "version", summary.by_version),
            ("jobs", "Jobs by state", "state", summary.jobs),
            ("rollouts", "Rollouts by phase", "phase", summary.rollouts),
        ):
            family = GaugeMetricFamily(f"headtail_{name}", what, labels=[label])
            for key, value in counts.items():
                family.add_metric([key], value)
            yield family
        yield GaugeMetricFamily(
            "headtail_out_of_step", "Devices without what they should run", value=summary.out_of_step
        )
        yield GaugeMetricFamily(
            "headtail_broker_connected", "Whether the dashboard hears the broker", value=float(self._page.connected)
        )

    def _models(self) -> Iterable[Metric]:
        results = CounterMetricFamily("headtail_results", "Frames that ended", labels=["model", "source"])
        sent = CounterMetricFamily("headtail_sent_bytes", "Bytes that devices sent to tails", labels=["model"])
        stages = CounterMetricFamily("headtail_stage_seconds", "Where time went", labels=["model", "stage"])
        shadow = CounterMetricFamily(
            "headtail_shadow", "Answers compared with the whole model", labels=["model", "outcome"]
        )
        drift = GaugeMetricFamily("headtail_confidence_stability_index", "Drift of the confidence", labels=["model"])
        promised = GaugeMetricFamily(
            "headtail_manifest_quality", "What the manifest promises", labels=["model", "metric"]
        )
        for model in self._page.models:
            _add_model(model, results, sent, stages, shadow)
            if model.live.confidence.index is not None:
                drift.add_metric([model.name], model.live.confidence.index)
            if model.quality is not None and model.quality.this is not None:
                promised.add_metric([model.name, model.quality.metric], model.quality.this)
        return (results, sent, stages, shadow, drift, promised)

    def _tails(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("headtail_tail_requests", "Requests by outcome", labels=["worker", "outcome"])
        waiting = GaugeMetricFamily("headtail_tail_waiting", "Requests that wait", labels=["worker"])
        memory = GaugeMetricFamily("headtail_tail_resident_bytes", "Resident memory", labels=["worker"])
        times = HistogramMetricFamily(
            "headtail_tail_seconds", "Time of a request at the tail", labels=["worker", "model"]
        )
        for name, tail in self._page.tails.items():
            beat = tail.beat
            for outcome in ("answered", "busy", "expired", "refused"):
                requests.add_metric([name, outcome], getattr(beat, outcome))
            waiting.add_metric([name], beat.waiting)
            memory.add_metric([name], beat.rss_bytes or 0)
            for model in beat.models:
                total, buckets = 0, []
                bounds = [*(f"{bound / 1000:g}" for bound in TAIL_BOUNDS_MS), "+Inf"]
                for bound, count in zip(bounds, model.counts, strict=False):
                    total += count
                    buckets.append((bound, total))
                seconds = (model.queue_us + model.decode_us + model.tail_us) / 1e6
                times.add_metric([name, model.name], buckets, sum_value=seconds)
        return (requests, waiting, memory, times)


def exposition(page: Overview) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(FleetMetrics(page))
    return generate_latest(registry)


def _add_model(
    model: ModelLine,
    results: CounterMetricFamily,
    sent: CounterMetricFamily,
    stages: CounterMetricFamily,
    shadow: CounterMetricFamily,
) -> None:
    live = model.live
    for source in ("remote", "local", "error"):
        results.add_metric([model.name, source], live.results[source])
    sent.add_metric([model.name], live.sent)
    for stage, ms in zip(GROUPS, live.groups_ms, strict=True):
        stages.add_metric([model.name, stage], ms / 1000)
    shadow.add_metric([model.name, "agrees"], live.agrees)
    shadow.add_metric([model.name, "differs"], live.differs)
