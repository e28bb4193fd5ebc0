"""One tail worker, a process of its own: takes its orders from standard input, reports on standard output, ends with it.

python -m orchestrator.serving.worker      the first line is a `WorkerOrder`; the end of the input means: drain and end
"""

import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.artefact import open_artefact
from edge_runtime.json_log import set_up_logging
from edge_runtime.messages import Topics, encode_control
from edge_runtime.mqtt import LinkOptions, MqttError, MqttLink, Packet
from edge_runtime.process_memory import resident_bytes
from edge_runtime.tail_messages import HOST_TENANT, TailBeat
from edge_runtime.trace_target import open_tracer
from orchestrator.serving.served import ServeError, serve_artefact
from orchestrator.tail_server import ServerOptions, TailServer

if TYPE_CHECKING:
    from orchestrator.serving.direct import DirectPlane

log = logging.getLogger(__name__)


class WorkerOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker process serves, and how. `direct_host` is where its direct data plane listens; null: none."""

    name: str
    broker: str
    artefacts: tuple[str, ...]
    server: ServerOptions = ServerOptions()
    threads: int | None = None
    batch: int = 1
    direct_host: str | None = None
    beat_s: float = 2.0
    drain_s: float = 10.0
    traces: str | None = None  # where spans of traced requests go (`edge_runtime.trace_target`)


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a worker: it serves, or why it does not."""

    serving: tuple[tuple[str, tuple[str, ...]], ...] = ()  # model, its keys
    error: str | None = None


class Worker:
    """Serves one order until told to end."""

    def __init__(self, order: WorkerOrder) -> None:
        self._order = order
        self._boot = os.urandom(8).hex()
        self._begun = time.monotonic()
        self._beats = 0
        self._stop = threading.Event()
        models = [
            serve_artefact(open_artefact(Path(path)), threads=order.threads, batch=order.batch)
            for path in order.artefacts
        ]
        self.report = WorkerReport(serving=tuple((model.name, tuple(model.keys)) for model in models))
        self._server = TailServer(order.broker, models, order.server)
        self._tracer = None if order.traces is None else open_tracer(order.traces, "headtail-tail")
        self._server.tracer = self._tracer
        self._plane = self._open_plane(order.direct_host) if order.direct_host is not None else None
        self._topic = Topics(HOST_TENANT, order.name).up("tail")
        # Beats have a connection of their own: the server's belongs to requests.
        self._link = MqttLink(order.broker, LinkOptions(nodelay=order.server.nodelay), lambda *_: None)

    def run(self) -> None:
        """Serve until `stop`.

        Raises:
            MqttError: No broker at the start.
        """
        with self._link:
            self._server.start(timeout_s=30)
            try:
                _tell(self.report)
                while not self._stop.wait(self._order.beat_s):
                    self._beat()
            finally:
                self._server.drain(timeout_s=self._order.drain_s)
                if self._plane is not None:
                    self._plane.close()
                if self._tracer is not None:
                    self._tracer.close()
                self._beat()

    def stop(self) -> None:
        """End `run` soon; from another thread."""
        self._stop.set()

    def _open_plane(self, host: str) -> "DirectPlane":
        try:
            from orchestrator.serving.direct import DirectPlane  # needs pyzmq
        except ModuleNotFoundError as error:
            raise ServeError(
                f"Wanted a direct data plane, found no module {error.name!r}. Install it: pip install 'headtail[direct]'."
            ) from error
        plane = DirectPlane(host, self._server.accept)
        self._server.data_plane = plane
        return plane

    def _beat(self) -> None:
        self._beats += 1
        counters = self._server.counters
        beat = TailBeat(
            boot=self._boot,
            seq=self._beats,
            uptime_s=time.monotonic() - self._begun,
            workers=self._order.server.workers,
            waiting=self._server.waiting,
            received=counters.received,
            answered=counters.answered,
            busy=counters.busy,
            expired=counters.expired,
            refused=counters.refused,
            rss_bytes=resident_bytes(),
            models=tuple(model.as_message() for model in self._server.statistics[:32]),
        )
        try:
            self._link.publish(Packet(self._topic, encode_control(beat)))
        except (MqttError, EdgeError) as error:
            log.info("a beat was not sent: %s", error)


def main() -> int:
    """Read the order, serve, end when the input does; 1 after a named error."""
    set_up_logging("tail")
    line = sys.stdin.buffer.readline()
    try:
        worker = Worker(msgspec.json.decode(line, type=WorkerOrder))
        threading.Thread(target=_end_with_input, args=(worker,), daemon=True).start()
        worker.run()
    except (EdgeError, msgspec.MsgspecError) as error:
        _tell(WorkerReport(error=f"{type(error).__name__}: {error}"))
        return 1
    except KeyboardInterrupt:  # Ctrl-C reaches the whole group; the service drains its workers by their input
        return 130
    return 0


def _end_with_input(worker: Worker) -> None:
    sys.stdin.buffer.read()
    worker.stop()


def _tell(report: WorkerReport) -> None:
    with contextlib.suppress(BrokenPipeError):  # the service is gone; the input has ended too
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
