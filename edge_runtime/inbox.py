"""What the host says to an agent: taken from the network's thread, handled one after the other in a thread of its own."""

import logging
from collections.abc import Callable
from queue import Empty, Full, Queue

from device_profiles.errors import EdgeError
from edge_runtime.blocks import decode_block
from edge_runtime.deployments import Deployments
from edge_runtime.follow import Follower
from edge_runtime.messages import DeployStart, Desired, JobOrder, RollBack, decode_control, parse_topic

log = logging.getLogger(__name__)
_POLL_S = 0.2
_MOST = 64  # messages that wait; what does not fit, the host sends again


class Inbox:
    """The queue, and who gets what.

    Args:
        deployments: Gets announcements and blocks.
        follower: Gets desired states and jobs.
        roll_back: Gets orders to go back.
    """

    def __init__(self, deployments: Deployments, follower: Follower, roll_back: Callable[[RollBack], None]) -> None:
        self._deployments, self._follower, self._roll_back = deployments, follower, roll_back
        self._queue: Queue[tuple[str, bytes]] = Queue(maxsize=_MOST)

    def put(self, topic: str, payload: bytes, _qos: int) -> None:
        """From the network's thread."""
        try:
            self._queue.put_nowait((topic, payload))
        except Full:
            log.warning("too many messages at once; %s is dropped", topic)

    def work(self, stopped: Callable[[], bool]) -> None:
        """Handle messages until `stopped`."""
        while not stopped():
            try:
                self._follower.go_on()
                topic, payload = self._queue.get(timeout=_POLL_S)
                self._handle(topic, payload)
            except Empty:
                continue
            except EdgeError as error:
                log.warning("ignored a message: %s", error)
            except Exception:
                log.exception("a message of the host could not be handled")

    def _handle(self, topic: str, payload: bytes) -> None:
        rest = parse_topic(topic).rest
        if rest == ("down", "deploy"):
            self._deployments.begin(decode_control(payload, DeployStart))
        elif rest == ("down", "rollback"):
            self._roll_back(decode_control(payload, RollBack))
        elif rest == ("down", "desired"):
            self._follower.follow(decode_control(payload, Desired))
        elif rest == ("down", "job"):
            self._follower.work(decode_control(payload, JobOrder))
        elif rest[:2] == ("down", "blk"):
            self._deployments.add(rest[2], decode_block(payload))
