"""What devices and tails say at the moment: results and beats of the last minutes, kept in memory, nothing stored."""

import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edge_runtime.messages import Result
from edge_runtime.tail_messages import TailBeat
from orchestrator.dashboard.drift import Confidence

WINDOW_S = 60.0
MAX_SAMPLES = 600  # of one device
MAX_DEVICES = 20_000
MAX_TAILS = 1000
BEAT_LIFE_S = 10.0
# What a person tells apart, in the order in which time passes; the device's own names in brackets are summed.
GROUPS = {
    "prepare": ("preprocess_ms",),
    "head": ("head_ms",),
    "encode": ("encode_ms", "serialise_ms"),
    "uplink": ("uplink_ms",),
    "queue": ("queue_ms",),
    "tail": ("decode_ms", "tail_ms"),
    "downlink": ("downlink_ms",),
    "fallback": ("waited_ms", "local_ms"),
    "rest": ("postprocess_ms", "unaccounted_ms"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One result, reduced to what is shown."""

    at: float
    source: str
    total_ms: float
    groups: tuple[float, ...]  # ms, as GROUPS
    sent: int


@dataclass(frozen=True)
class Figures:
    """Of one device, one model or the fleet, over the window."""

    count: int
    per_second: float
    p50_ms: float | None
    p99_ms: float | None
    groups: tuple[float, ...]  # mean ms, as GROUPS
    remote_share: float | None
    errors: int
    mean_sent: float | None


@dataclass
class ModelLive:
    """Of one model, since the dashboard began."""

    confidence: Confidence = field(default_factory=Confidence)
    agrees: int = 0
    differs: int = 0
    results: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    groups_ms: list[float] = field(default_factory=lambda: [0.0] * len(GROUPS))

    @property
    def agreement(self) -> float | None:
        """Share of the shadowed answers on which tail and whole model agreed."""
        compared = self.agrees + self.differs
        return self.agrees / compared if compared else None


@dataclass
class Tail:
    """The newest beats of one worker: the last one, and the one before it, for rates."""

    beat: TailBeat
    at: float
    before: TailBeat | None = None
    before_at: float = 0.0

    @property
    def answers_per_second(self) -> float | None:
        """How fast it answers."""
        return self.rate(lambda beat: beat.answered)

    def rate(self, of: Callable[[TailBeat], int]) -> float | None:
        """How fast a counter grows, a second."""
        if self.before is None or self.before.boot != self.beat.boot or self.at <= self.before_at:
            return None
        return (of(self.beat) - of(self.before)) / (self.at - self.before_at)


class Live:
    """Everything that was heard. The caller brings the clock and holds the lock.

    `model_of` says which model a device runs, as the registry knows it.
    """

    def __init__(self, model_of: Callable[[str], str]) -> None:
        self._model_of = model_of
        self._samples: dict[str, deque[Sample]] = {}
        self.models: dict[str, ModelLive] = {}
        self._tails: dict[str, Tail] = {}

    def add_result(self, device: str, result: Result, now: float) -> None:
        """One result of a device."""
        samples = self._samples.get(device)
        if samples is None:
            if len(self._samples) >= MAX_DEVICES:
                self._forget_silent(now)
            if len(self._samples) >= MAX_DEVICES:
                return
            samples = self._samples[device] = deque(maxlen=MAX_SAMPLES)
        groups = tuple(sum(result.ms.get(name, 0.0) for name in names) for names in GROUPS.values())
        sample = Sample(now, result.source, result.ms.get("total_ms", sum(groups)), groups, result.sent)
        while samples and now - samples[0].at > WINDOW_S:
            samples.popleft()
        samples.append(sample)
        model = self.models.setdefault(self._model_of(device), ModelLive())
        model.results[result.source] += 1
        model.sent += result.sent
        for index, value in enumerate(groups):
            model.groups_ms[index] += value
        if result.top:
            model.confidence.add(result.top[0].score)
        if result.agrees is not None:
            model.agrees += result.agrees
            model.differs += not result.agrees

    def add_beat(self, worker: str, beat: TailBeat, now: float) -> None:
        """One beat of a tail worker."""
        before = self._tails.get(worker)
        if before is None and len(self._tails) >= MAX_TAILS and len(self.tails(now)) >= MAX_TAILS:
            return
        self._tails[worker] = Tail(beat, now, before.beat if before else None, before.at if before else 0.0)

    def tails(self, now: float) -> dict[str, Tail]:
        """The workers that are alive, by name."""
        self._tails = {name: tail for name, tail in self._tails.items() if now - tail.at < BEAT_LIFE_S}
        return dict(sorted(self._tails.items()))

    def device(self, device: str, now: float) -> Figures:
        """Figures of one device."""
        return summarise(self._recent(device, now))

    def together(self, devices: Iterable[str], now: float) -> Figures:
        """Figures of several devices together."""
        return summarise([sample for device in devices for sample in self._recent(device, now)])

    def series(self, device: str, now: float) -> list[Sample]:
        """The samples of the window, oldest first."""
        return self._recent(device, now)

    def _forget_silent(self, now: float) -> None:
        """Make room: devices that said nothing within the window have nothing to show."""
        self._samples = {name: kept for name, kept in self._samples.items() if kept and now - kept[-1].at <= WINDOW_S}

    def _recent(self, device: str, now: float) -> list[Sample]:
        return [sample for sample in self._samples.get(device, ()) if now - sample.at <= WINDOW_S]


def summarise(samples: list[Sample]) -> Figures:
    """Figures of samples that lie within the window."""
    ended = [sample for sample in samples if sample.source != "error"]
    totals = sorted(sample.total_ms for sample in ended)
    errors = len(samples) - len(ended)
    groups = tuple(statistics.fmean(s.groups[i] for s in ended) if ended else 0.0 for i in range(len(GROUPS)))
    sent = [sample.sent for sample in ended if sample.sent]
    span_s = max(1.0, samples[-1].at - samples[0].at) if samples else 1.0
    return Figures(
        count=len(samples),
        per_second=len(samples) / span_s,
        p50_ms=totals[len(totals) // 2] if totals else None,
        p99_ms=totals[min(len(totals) - 1, int(0.99 * len(totals)))] if totals else None,
        groups=groups,
        remote_share=sum(s.source == "remote" for s in ended) / len(ended) if ended else None,
        errors=errors,
        mean_sent=statistics.fmean(sent) if sent else None,
    )
