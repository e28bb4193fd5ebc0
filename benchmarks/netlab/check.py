"""Check the emulated links against what they should be: round trip of a byte, rate of a bulk transfer, loss.

python -m benchmarks.netlab.check
"""

import contextlib
import socket
import threading
import time
from statistics import median

from benchmarks.netlab.lab import Access, LabHost, NetLab


def echo_once(server: LabHost) -> int:
    """Echo one connection on a host; its port."""
    with server.inside():
        listener = socket.create_server((server.address, 0))

    def work() -> None:
        # the host may be gone before the connection ends
        with contextlib.suppress(OSError), listener, listener.accept()[0] as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    threading.Thread(target=work, daemon=True).start()
    return int(listener.getsockname()[1])


def sink_once(server: LabHost) -> int:
    """Read one connection to its end on a host, then answer one byte; its port."""
    with server.inside():
        listener = socket.create_server((server.address, 0))

    def work() -> None:
        # the host may be gone before the connection ends
        with contextlib.suppress(OSError), listener, listener.accept()[0] as connection:
            while connection.recv(1 << 20):
                pass
            connection.sendall(b"!")

    threading.Thread(target=work, daemon=True).start()
    return int(listener.getsockname()[1])


def round_trips_ms(client: LabHost, server: LabHost, count: int) -> list[float]:
    """Round trips of one byte over TCP, ascending."""
    port = echo_once(server)
    with client.inside():
        connection = socket.create_connection((server.address, port), timeout=30)
    found = []
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            begun = time.perf_counter()
            connection.sendall(b".")
            connection.recv(1)
            found.append(1000 * (time.perf_counter() - begun))
    return sorted(found)


def bulk_mbit(client: LabHost, server: LabHost, size: int) -> float:
    """Rate of one TCP transfer from its first byte to the receiver's word that all is there."""
    port = sink_once(server)
    with client.inside():
        connection = socket.create_connection((server.address, port), timeout=120)
    data = bytes(1 << 20)
    with connection:
        begun = time.perf_counter()
        for at in range(0, size, len(data)):
            connection.sendall(data[: min(len(data), size - at)])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return 8e-6 * size / (time.perf_counter() - begun)


def main() -> None:
    """Print the figures."""
    plain = Access()
    for name, access, size in (
        ("no delay, no rate", plain, 200 << 20),
        ("1 ms one way, 300 Mbit/s", Access(up_mbit=300, down_mbit=300, delay_ms=0.5), 60 << 20),
        ("3 ms one way, 100 Mbit/s", Access(up_mbit=100, down_mbit=100, delay_ms=1.5), 20 << 20),
        ("7.5 ms one way, 20 Mbit/s", Access(up_mbit=20, down_mbit=20, delay_ms=3.75), 4 << 20),
    ):
        with NetLab({"a": access, "b": access}) as lab:
            trips = round_trips_ms(lab["a"], lab["b"], 300)
            rate = bulk_mbit(lab["a"], lab["b"], size)
        print(
            f"{name:<28} RTT min {trips[0]:.3f} median {median(trips):.3f} p90 {trips[270]:.3f} ms, bulk {rate:.1f} Mbit/s"
        )


if __name__ == "__main__":
    main()
