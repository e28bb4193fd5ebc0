"""The round trip of a TCP connection as the kernel sees it (Linux, `struct tcp_info`): no probe is needed for it."""

import socket
import struct
from typing import Any

_MIN_RTT_AT = 148  # offset of tcpi_min_rtt, u32, microseconds; since Linux 4.6
_UNKNOWN = 0xFFFFFFFF


def least_round_trip_ms(sock: Any) -> float | None:  # noqa: ANN401 - paho's union
    """The least round trip of the last minutes; null where the system does not say.

    Source: include/uapi/linux/tcp.h.
    """
    option = getattr(socket, "TCP_INFO", None)
    if sock is None or option is None:
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, option, _MIN_RTT_AT + 4)
    except OSError:
        return None
    if len(data) < _MIN_RTT_AT + 4:
        return None
    (found,) = struct.unpack_from("=I", data, _MIN_RTT_AT)
    return None if found in (0, _UNKNOWN) else found / 1000
