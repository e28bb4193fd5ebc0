"""What an agent says to the host: published when there is a connection; the last word on a deployment waits for one."""

import logging
from collections import deque

from edge_runtime.broker_url import MqttError
from edge_runtime.messages import DeployStatus, JobStatus, Reported, Topics, encode_control
from edge_runtime.mqtt import MqttLink, Packet

log = logging.getLogger(__name__)
_MAX_UNSENT = 16  # statuses of deployments that wait for a connection


class Reporter:
    """Publishes over one link.

    Args:
        topics: Of the device.
    """

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._unsent: deque[DeployStatus] = deque(maxlen=_MAX_UNSENT)
        self.link: MqttLink | None = None  # set once it is made: it greets with `waiting`

    def status(self, status: DeployStatus) -> None:
        """How far a deployment is."""
        if not self.publish(self._status_packet(status)) and status.state in ("committed", "rolled-back", "failed"):
            self._unsent.append(status)

    def tell(self, message: Reported | JobStatus) -> None:
        """A report, or what became of a job."""
        self.publish(self.packet_of(message))

    def packet_of(self, message: Reported | JobStatus) -> Packet:
        """The message on its topic; a report is retained."""
        if isinstance(message, Reported):
            return Packet(self._topics.up("reported"), encode_control(message), 1, retain=True)
        return Packet(self._topics.up("job"), encode_control(message), 1)

    def waiting(self) -> list[Packet]:
        """Statuses that could not be sent; they are given up with this."""
        return [self._status_packet(self._unsent.popleft()) for _ in range(len(self._unsent))]

    def publish(self, packet: Packet) -> bool:
        """Publish; False, with a line in the log, when that is not possible now."""
        if self.link is None:
            return False
        try:
            self.link.publish(packet)
        except MqttError as error:
            log.info("not published: %s", error)
            return False
        return True

    def _status_packet(self, status: DeployStatus) -> Packet:
        return Packet(self._topics.up("deploy"), encode_control(status), 1)
