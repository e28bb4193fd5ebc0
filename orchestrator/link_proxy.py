"""A TCP proxy that behaves like a slower link: rate and one-way delay, the same in both directions.

It stands in for network emulation where there is no root; it models no loss and no reordering, and TCP's own
acknowledgements stay on the fast side. Rows measured through it say `proxy`.
"""

import asyncio
import contextlib
import re
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from device_profiles.errors import EdgeError

_LINK = re.compile(r"([0-9]+(?:\.[0-9]+)?)(k|m|g)bit/([0-9]+(?:\.[0-9]+)?)(us|ms|s)\Z")
_RATE = {"k": 1e3, "m": 1e6, "g": 1e9}
_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_MAX_BACKLOG_S = 0.2  # what waits in the proxy; beyond it the sender feels the link
_MAX_CHUNK_BYTES = 16 << 10


class LinkError(EdgeError):
    """Not a link, or the proxy cannot listen."""


@dataclass(frozen=True)
class Link:
    """Rate in bits per second and one-way delay in seconds, each way."""

    bits_per_s: float
    delay_s: float

    def transfer_s(self, size: int) -> float:
        """Seconds until the last of `size` bytes has arrived, on an idle link."""
        return 8 * size / self.bits_per_s + self.delay_s


def parse_link(text: str) -> Link | None:
    """Read "5mbit/20ms" (rate, one-way delay); "none" gives null.

    Raises:
        LinkError: Another form, or no rate.
    """
    if text == "none":
        return None
    found = _LINK.match(text)
    if not found or float(found[1]) == 0:
        raise LinkError(f"Wanted a link such as 5mbit/20ms, or none, found {text!r}.")
    return Link(float(found[1]) * _RATE[found[2]], float(found[3]) * _TIME[found[4]])


class Schedule:
    """When bytes that enter one direction of a link leave it. No clock of its own."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._free_at = 0.0

    def send(self, size: int, now: float) -> float:
        """When the last of `size` bytes arrives at the far end."""
        self._free_at = max(now, self._free_at) + 8 * size / self._link.bits_per_s
        return self._free_at + self._link.delay_s

    def backlog_s(self, now: float) -> float:
        """How long the bytes that wait will keep the link busy."""
        return max(0.0, self._free_at - now)


class LinkProxy:
    """Listens on loopback and forwards every connection to the target through one emulated link.

    Args:
        target: Host and port.
        link: Null forwards as fast as it can.
        port: 0 takes a free one.
    """

    def __init__(self, target: tuple[str, int], link: Link | None, *, port: int = 0) -> None:
        self._target, self._link, self._wanted_port = target, link, port
        self._blocked = False
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._up, self._down = (Schedule(link) if link else None for _ in range(2))
        self._thread = threading.Thread(target=self._run, name="link-proxy", daemon=True)
        self.bytes_up = self.bytes_down = 0

    def start(self) -> "LinkProxy":
        """Begin to listen.

        Raises:
            LinkError: The port is taken.
        """
        self._thread.start()
        try:
            self._call(self._listen())
        except OSError as error:
            self.close()
            raise LinkError(f"Wanted to listen on port {self._wanted_port}, found: {error}.") from error
        return self

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        if self._server is None:
            raise LinkError("Wanted a proxy that listens, found one that was not started.")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The proxy as an MQTT broker's URL."""
        return f"mqtt://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all connections, and every new one at once, until `restore`."""
        self._blocked = True
        self._call(self._end_connections())

    def restore(self) -> None:
        """Let connections through again."""
        self._blocked = False

    def close(self) -> None:
        """End everything."""
        if self._thread.is_alive():
            self._call(self._shut())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)

    def __enter__(self) -> "LinkProxy":
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._wanted_port)

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._end_connections()

    async def _end_connections(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
        writers = [writer]
        try:
            if self._blocked:
                return
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            pumps = [
                asyncio.ensure_future(self._pump(reader, far_writer, self._up, up=True)),
                asyncio.ensure_future(self._pump(far_reader, writer, self._down, up=False)),
            ]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
        except (OSError, asyncio.CancelledError):
            pass  # either side ended, or the link was cut
        finally:
            for one in writers:
                one.transport.abort() if self._blocked else one.close()
            if task is not None:
                self._connections.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, schedule: Schedule | None, *, up: bool
    ) -> None:
        """Read, and have written when the link would have delivered."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.ensure_future(self._deliver(waiting, writer))
        try:
            while data := await reader.read(self._chunk_bytes()):
                now = self._loop.time()
                if up:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
                waiting.put_nowait((schedule.send(len(data), now) if schedule else now, data))
                if schedule and (excess := schedule.backlog_s(now) - _MAX_BACKLOG_S) > 0:
                    await asyncio.sleep(excess)
                elif waiting.qsize() > 1000:
                    await asyncio.sleep(0.01)
            waiting.put_nowait((0.0, b""))
            await delivery
            with contextlib.suppress(OSError):
                writer.write_eof()
        finally:
            delivery.cancel()

    async def _deliver(self, waiting: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            at, data = await waiting.get()
            if not data:
                return
            if (left := at - self._loop.time()) > 0:
                await asyncio.sleep(left)
            writer.write(data)
            await writer.drain()

    def _chunk_bytes(self) -> int:
        """About 2 ms of the link, so that a message does not wait for a larger one's chunk."""
        if self._link is None:
            return 64 << 10
        return int(min(_MAX_CHUNK_BYTES, max(512, self._link.bits_per_s / 8 * 0.002)))
