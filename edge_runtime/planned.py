"""Follow a plan table: run each request by the plan that fits the link as it is now, and change it when the link does.

The table's decisions and the estimate of the link are pure (`edge_runtime.adapt`); here are the clock, the engines and
the connections. One plan is open at a time, and a second while it is probed: all runs locally, and now and then one
request goes to the tail to see the link again.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from device_profiles.link import Link
from device_profiles.plan_table import Choice, PlanTable
from edge_runtime.adapt import Adapter, Change, Rules
from edge_runtime.answer import Answer, Breakdown
from edge_runtime.artefact import Artefact
from edge_runtime.attempt import ms_since
from edge_runtime.frame_inputs import describe_input, means_alike
from edge_runtime.local_model import LocalInputs, LocalModel
from edge_runtime.manifest import Preprocessing
from edge_runtime.offload import Counters, OffloadError
from edge_runtime.offloader import Offloader, OffloadOptions

log = logging.getLogger(__name__)
EncodePicture = Callable[[str, Preprocessing], bytes]  # "jpeg:75" and what the whole model makes of it -> the file
MakeInputs = Callable[[Artefact], Sequence[np.ndarray]]  # what an artefact's own manifest makes of a request


@dataclass(frozen=True)
class PlannedOptions:
    """How often the link is judged, and seen again while all runs locally."""

    window_s: float = 1.0
    probe_every_s: float = 5.0
    rules: Rules = field(default_factory=Rules)


@dataclass
class _Open:
    """An offloader and how many requests use it."""

    offloader: Offloader
    users: int = 0


class PlannedOffloader:
    """Every request by the plan of the moment.

    Args:
        broker_url: mqtt://host:port.
        device: This device's name on the wire.
        table: What `headtail plan --out` wrote.
        heads: Head artefacts; each is bound to the plan with its route key or its crossing tensors. Whole models of the host
            too, where it runs others than `whole`: never opened here, they say what inputs and pictures plans send to them.
        whole: The whole model: the local plan, and the fallback of all others.
        options: Of every offloader; the table's deadline holds where it has one.
        planned: See `PlannedOptions`.

    Raises:
        PlanTableError: None of the table's plans can be used with these artefacts.
        EngineError: The engine refuses one.
    """

    def __init__(
        self, broker_url: str, device: str, table: PlanTable, *, heads: Sequence[Artefact] = (),
        whole: Artefact | None = None, options: OffloadOptions | None = None, planned: PlannedOptions | None = None,
    ) -> None:  # fmt: skip
        self._broker_url, self._device = broker_url, device
        self._planned = planned or PlannedOptions()
        base = options or OffloadOptions()
        self._options = base if table.deadline_ms is None else replace(base, deadline_ms=table.deadline_ms)
        bound = {number: bind(choice, heads, whole) for number, choice in enumerate(table.choices)}
        usable = [number for number, artefact in bound.items() if artefact is not None]
        self._table = table.restricted(usable)
        self._artefacts = [bound[number] for number in usable]
        self._routes = [_route(table.choices[number], bound[number]) for number in usable]
        self._apart = _apart([*self._artefacts, whole])
        self._local = LocalModel(whole, threads=self._options.threads) if whole is not None else None
        self._lock = threading.Lock()  # guards what follows; never held while a model runs
        self._adapter = Adapter(self._table, self._planned.rules)
        # By route: the layers of a stream share one, and so do pictures of several qualities
        self._open: dict[str, _Open] = {}
        self._counters = Counters()  # of offloaders that are closed, and of the local plan
        self._window_ends = time.monotonic() + self._planned.window_s
        self._probe_at = time.monotonic() + self._planned.probe_every_s
        self.changes: list[Change] = []
        with self._lock:
            self._acquire_current()

    def wait_connected(self, timeout_s: float = 10.0) -> None:
        """Wait for the broker, if the current plan needs it; without it, requests go to the local model at once.

        Raises:
            NotConnectedError: Not within the time.
            SubscriptionError: The broker refuses the replies' topic.
        """
        with self._lock:
            current = self._open.get(self._routes[self._adapter.number])
        if current is not None:
            current.offloader.wait_connected(timeout_s)

    @property
    def current(self) -> Choice:
        """The plan in use."""
        with self._lock:
            return self._adapter.current

    @property
    def local(self) -> LocalModel | None:
        """The whole model here."""
        return self._local

    @property
    def link(self) -> Link:
        """The link as it is estimated now."""
        with self._lock:
            return self._adapter.link

    @property
    def counters(self) -> Counters:
        """How requests ended so far."""
        with self._lock:
            total = self._counters
            for one in self._open.values():
                total = total.plus(one.offloader.counters)
            return total

    def infer(
        self, *arrays: np.ndarray, deadline_ms: float | None = None, picture: EncodePicture | None = None,
        inputs: MakeInputs | None = None,
    ) -> Answer:  # fmt: skip
        """Run one request to its end; its answer names the plan that was followed.

        Args:
            arrays: The inputs of the heads and of the whole model, where all take the same.
            deadline_ms: From when the inputs are there; the table's deadline, else the options', when null.
            picture: Encodes the picture for plans that send one; without it the input itself is sent, where it is known.
            inputs: Makes what an artefact takes, for that of the plan, and for the whole model when it has to answer;
                instead of `arrays`.

        Raises:
            OffloadError: Arrays alone that are the inputs of only some of the artefacts; no `picture` for a plan that sends
                one to a whole model that is not known here; and as `Offloader.infer`.
            EngineError: As `Offloader.infer`.
            EdgeError: As `inputs` says.
        """
        if inputs is None and self._apart:
            raise OffloadError(self._apart)
        make = inputs or (lambda _: arrays)
        deadline = self._options.deadline_ms if deadline_ms is None else deadline_ms
        number = self._choose(deadline)
        choice = self._table.choices[number]
        if choice.kind == "local":
            answer = self._run_here(make)
        else:
            with self._lock:
                used = self._acquire(number)
            try:
                answer = self._run_away(used.offloader, number, make, deadline, picture)
            finally:
                self._release(number, used)
        return msgspec.structs.replace(answer, plan_id=choice.plan_id)

    def close(self) -> None:
        """Disconnect and free the engines."""
        with self._lock:
            opened, self._open = list(self._open.values()), {}
        for one in opened:
            one.offloader.close()
        if self._local is not None:
            self._local.close()

    def __enter__(self) -> "PlannedOffloader":
        """Nothing more to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _choose(self, deadline_ms: float) -> int:
        """The plan of this request: the current one, a probe, or local where the deadline leaves no room."""
        with self._lock:
            now = time.monotonic()
            if now >= self._window_ends:
                self._end_window(now)
            number, local = self._adapter.number, self._table.local
            remote = self._table.choices[number].kind != "local"
            if remote and (local is None or self._adapter.route(remaining_ms=deadline_ms) == "plan"):
                return number
            if now < self._probe_at and local is not None:
                return local
            self._probe_at = now + self._planned.probe_every_s
            away = [n for n, one in enumerate(self._table.choices) if one.kind != "local"]
            return min(away, key=lambda n: self._table.choices[n].up_bytes, default=number)

    def _end_window(self, now: float) -> None:
        self._window_ends = now + self._planned.window_s
        current = self._open.get(self._routes[self._adapter.number])
        round_trip_ms = current.offloader.link.round_trip_ms if current is not None else None
        if (
            round_trip_ms is not None and round_trip_ms > self._adapter.link.rtt_ms
        ):  # the way to the broker is a part of it
            self._adapter.saw_round_trip(round_trip_ms)
        change = self._adapter.end_window()
        if change is not None:
            log.info("plan %s: %s", change.plan.plan_id, change.why)
            self.changes.append(change)
            self._acquire_current()
            shared = self._open.get(self._routes[self._adapter.number])
            if shared is not None:
                shared.offloader.breaker.reset()  # the plan before may have been too large for the link

    def _run_here(self, make: MakeInputs) -> Answer:
        if self._local is None:
            raise OffloadError("Wanted the whole model for the local plan, found none.")
        outputs, preprocess_ms, local_ms = self._local.answer(_inputs_of(self._local.artefact, make))
        with self._lock:
            self._counters.local += 1
        breakdown = Breakdown(preprocess_ms=preprocess_ms, local_ms=local_ms, total_ms=preprocess_ms + local_ms)
        return Answer(outputs, "local", breakdown, 0, "the plan is local")

    def _run_away(
        self, offloader: Offloader, number: int, make: MakeInputs, deadline_ms: float, picture: EncodePicture | None
    ) -> Answer:
        choice, artefact = self._table.choices[number], self._artefacts[number]
        assert artefact is not None  # only plans that have theirs are usable
        local = _inputs_of(self._local.artefact, make) if self._local is not None else None
        encode_ms, preprocess_ms, begun = 0.0, 0.0, time.perf_counter()
        preprocessing = artefact.manifest.preprocessing
        if choice.picture is not None and sends_file(choice) and picture is not None and preprocessing is not None:
            data = picture(choice.picture, preprocessing)
            encode_ms = ms_since(begun)
            answer = offloader.infer_image(data, deadline_ms=deadline_ms - encode_ms, local=local)
        else:
            if artefact.key != self._routes[number]:
                raise OffloadError(
                    f"Wanted `picture` for the plan {choice.name!r}, found inputs alone, and nothing here says what the whole model "
                    f"{self._routes[number]} of the host takes. Pass `picture`, or that artefact among `heads`."
                )
            most = min((one for one in (choice.layers, self._options.layers) if one), default=0)
            arrays = make(artefact)
            preprocess_ms = ms_since(begun)
            answer = offloader.infer(*arrays, deadline_ms=deadline_ms, layers=most, local=local)
        found = answer.breakdown
        remote = answer.source == "remote"
        link_ms = found.link_ms if remote else found.waited_ms
        if link_ms > 0 and answer.bytes_sent:
            with self._lock:
                self._adapter.finished(
                    up_bytes=answer.bytes_sent, down_bytes=choice.down_bytes, link_ms=link_ms, answered=remote
                )
        found = msgspec.structs.replace(
            found,
            preprocess_ms=found.preprocess_ms + preprocess_ms,
            encode_ms=found.encode_ms + encode_ms,
            total_ms=found.total_ms + preprocess_ms + encode_ms,
        )
        return msgspec.structs.replace(answer, breakdown=found)

    def _acquire_current(self) -> None:
        """Open the current plan's connection, so that the first request finds it."""
        if self._adapter.current.kind != "local":
            self._acquire(self._adapter.number).users -= 1

    def _acquire(self, number: int) -> _Open:
        route = self._routes[number]
        used = self._open.get(route)
        if used is None:
            head = self._artefacts[number] if self._table.choices[number].kind == "split" else None
            key = route if head is None else None
            offloader = Offloader(
                self._broker_url, self._device, head=head, key=key, fallback=self._local, options=self._options
            )
            used = self._open[route] = _Open(offloader)
        used.users += 1
        return used

    def _release(self, number: int, used: _Open) -> None:
        """Close what is no longer the plan when nobody uses it any more."""
        idle: list[_Open] = []
        with self._lock:
            used.users -= 1
            kept = (self._routes[number], self._routes[self._adapter.number])
            for other, one in list(self._open.items()):
                if one.users == 0 and other not in kept:
                    idle.append(self._open.pop(other))
        for one in idle:
            counters = one.offloader.counters
            one.offloader.close()
            with self._lock:
                self._counters = self._counters.plus(counters)


def _inputs_of(artefact: Artefact, make: MakeInputs) -> LocalInputs:
    return lambda: make(artefact)


def _apart(artefacts: Sequence[Artefact | None]) -> str:
    """Why one input is not enough for all of them; empty where it is."""
    there = [one for one in artefacts if one is not None]
    for other in there[1:]:
        if not means_alike(there[0].manifest, other.manifest):
            return (
                f"Wanted `inputs`, which makes what each artefact takes, found arrays alone: {there[0].folder} takes "
                f"{describe_input(there[0].manifest)}, {other.folder} {describe_input(other.manifest)}. Pass `inputs`."
            )
    return ""


def _route(choice: Choice, artefact: Artefact | None) -> str:
    """Key of the head, or of the whole model on the host; "" where nothing leaves the device."""
    if artefact is None or choice.kind == "local":
        return ""
    return artefact.key if choice.kind == "split" else choice.artefact or artefact.key


def bind(choice: Choice, heads: Sequence[Artefact], whole: Artefact | None) -> Artefact | None:
    """The artefact whose input a plan takes on this device; null where there is none.

    A remote plan is for the whole model of its key, which `whole` may be, or one among `heads`; without a key it is `whole`. A file
    of a picture can be read by another one too, where `whole` says how large it is; an input cannot.
    """
    if choice.kind == "split":
        for head in heads:
            names = tuple(sorted(spec.engine_name for spec in head.manifest.outputs))
            if choice.artefact == head.key or (choice.tensors and names == tuple(sorted(choice.tensors))):
                return head
        return None
    if choice.kind == "local" or choice.artefact is None:
        return whole
    known = next((one for one in (whole, *heads) if one is not None and one.key == choice.artefact), None)
    if known is not None or not sends_file(choice) or whole is None or whole.manifest.preprocessing is None:
        return known
    return whole


def sends_file(choice: Choice) -> bool:
    """Whether the host gets a picture's file, not the input itself."""
    return choice.picture is not None and not choice.picture.startswith("raw")
