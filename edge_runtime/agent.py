"""The program on a device: says that it is there, takes deployments, runs frames, reports results."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, Full, Queue

from device_profiles import load_board
from device_profiles.errors import EdgeError
from device_profiles.version import __version__
from edge_runtime.agent_options import AgentOptions as AgentOptions
from edge_runtime.artefact import Artefact
from edge_runtime.blocks import decode_block
from edge_runtime.broker_url import MqttError, is_loopback
from edge_runtime.deployments import Deployments
from edge_runtime.fetch import fetch_options
from edge_runtime.follow import Follower
from edge_runtime.gate import Gatekeeper
from edge_runtime.messages import (
    BLOCK_BYTES,
    Birth,
    Death,
    DeployStart,
    DeployStatus,
    Desired,
    Heartbeat,
    JobOrder,
    JobStatus,
    Reported,
    Result,
    RollBack,
    Slots,
    Topics,
    decode_control,
    encode_control,
    parse_topic,
)
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.offload import Counters
from edge_runtime.pipeline import Pipeline
from edge_runtime.process_memory import resident_bytes
from edge_runtime.session import available_engines
from edge_runtime.slots import Probation, SlotStore
from edge_runtime.sources import Frame, Newest
from edge_runtime.trial import ProbationError, Trial
from edge_runtime.watchdog import Watchdog

log = logging.getLogger(__name__)
_POLL_S = 0.2
_MAX_UNSENT = 16  # statuses of deployments that wait for a connection


class Agent:
    """One device.

    Args:
        options: See `AgentOptions`.
        source: Frames to run; null only takes deployments.
        on_result: Called with every result, in the order in which frames ended.
        head: Run this head, whatever was deployed.
        whole: Run this whole model, whatever was deployed.

    Raises:
        EdgeError: The state folder, the board, or an artefact given here.
    """

    def __init__(
        self,
        options: AgentOptions,
        *,
        source: Newest | None = None,
        on_result: Callable[[Result], None] | None = None,
        head: Artefact | None = None,
        whole: Artefact | None = None,
    ) -> None:
        self._options = options
        self._source = source
        self._on_result = on_result
        self._topics = Topics(options.offload.tenant, options.device)
        self._board = load_board(options.board).id
        unsigned = options.insecure or is_loopback(options.broker)
        self._gate = Gatekeeper(options.state, self._board, unsigned=unsigned)
        self._store = SlotStore(options.state, self._gate.ask)
        self._given = (head, whole)
        self.boot = os.urandom(8).hex()
        self._stop = threading.Event()
        self._watchdog = Watchdog()
        self._started = time.monotonic()
        self._inbox: Queue[tuple[str, bytes]] = Queue(maxsize=64)  # what does not fit, the host sends again
        self._unsent: deque[DeployStatus] = deque(maxlen=_MAX_UNSENT)
        self._trial = Trial(self._store, options.probation, boot=self.boot, report=self._report)
        self._deployments = Deployments(
            self._store,
            self._gate,
            boot=self.boot,
            report=self._report,
            activate=self._activate,
            fetch=fetch_options(options.broker),
            stopped=self._stop.is_set,
        )
        self._follower = Follower(
            self._store, self._deployments, boot=self.boot, activate=self._activate, publish=self._tell
        )
        self._pipeline: Pipeline | None = None
        self._next: Pipeline | None = None  # built by a deployment, taken by the main loop
        self._swap = threading.Lock()
        self._changing = threading.Lock()  # held while the slots change and a pipeline is built for them
        self._told: Probation | None = None  # what the host wants to be left; the main loop does it
        self._frames = self._heartbeats = 0
        self._before = Counters()  # of the pipelines that ran earlier
        topics = self._topics
        subscriptions = tuple(
            (topic, 1) for topic in (topics.deploy, topics.rollback, topics.desired, topics.job, topics.block("+"))
        )
        self._death = Packet(self._topics.up("death"), encode_control(Death(boot=self.boot)), 1, retain=True)
        link_options = LinkOptions(subscriptions=subscriptions, greeting=self._birth, will=self._death)
        self._link = MqttLink(options.broker, link_options, self._received)

    def run(self, *, frames: int | None = None) -> None:
        """Work until `stop`, the end of the source, or so many frames.

        Raises:
            EdgeError: The source broke, or an artefact given on the command line cannot be opened.
        """
        threads = [threading.Thread(target=work, daemon=True) for work in (self._take_deployments, self._beat)]
        self._pipeline = self._build_at_start()
        with self._link:
            for thread in threads:
                thread.start()
            try:
                self._loop(frames)
            finally:
                self._stop.set()
                self._watchdog.stopping()
                if self._source is not None:
                    self._source.stop()
                for thread in threads:
                    thread.join(timeout=5)
                self._say_goodbye()
                for pipeline in (self._pipeline, self._next):
                    if pipeline is not None:
                        pipeline.close()

    def stop(self) -> None:
        """End `run` soon; from another thread or a signal."""
        self._stop.set()

    def _loop(self, frames: int | None) -> None:
        started = False
        self._watchdog.ready()
        while not self._stop.is_set() and (frames is None or self._frames < frames):
            self._watchdog.alive()
            self._take_next()
            self._judge()
            if self._pipeline is None or self._source is None:
                self._stop.wait(_POLL_S)
                continue
            if not started:
                self._source.start()
                started = True
            frame = self._source.take(_POLL_S)
            if frame is not None:
                self._run_frame(self._pipeline, frame)
            elif self._source.ended:
                return

    def _run_frame(self, pipeline: Pipeline, frame: Frame) -> None:
        self._frames += 1
        try:
            outcome = pipeline.run(frame)
        except EdgeError as error:
            self._trial.note(error)
            text = f"{type(error).__name__}: {error}"[:500]
            result = Result(boot=self.boot, seq=frame.seq, frame=frame.name[:500], source="error", error=text)
        else:
            self._trial.note(None)
            answer = outcome.answer
            why = None if answer.why_local is None else answer.why_local[:500]
            result = Result(
                boot=self.boot,
                seq=frame.seq,
                frame=frame.name[:500],
                source=answer.source,
                top=outcome.top,
                error=why,
                ms=answer.breakdown.as_dict(),
                plan_id=answer.plan_id,
                sent=answer.bytes_sent,
                agrees=outcome.agrees,
            )
        if self._on_result is not None:
            self._on_result(result)
        if self._options.publish_results:
            self._publish(Packet(self._topics.up("result"), encode_control(result)))

    def _take_next(self) -> None:
        with self._swap:
            following, self._next = self._next, None
            if following is None:
                return
            old, self._pipeline = self._pipeline, following
            if old is not None:
                self._before = self._before.plus(old.counters)
        if old is not None:
            old.close()

    def _judge(self) -> None:
        """Commit what is on probation, or go back when it failed or the host says so."""
        told, self._told = self._told, None
        failure = ProbationError("Told by the host.") if told is not None else self._trial.judge()
        if failure is not None:
            self._go_back(failure, told)

    def _go_back(self, why: Exception, told: Probation | None) -> None:
        with self._changing:
            active = self._store.active
            if told is not None and told.artefact not in (active.head, active.whole):
                return  # another one was activated since the host said so
            self._trial.roll_back(why, told)
            built = self._build_or_fall_back()
            with self._swap:
                replaced, self._next = self._next, None
                old, self._pipeline = self._pipeline, built
                if old is not None:
                    self._before = self._before.plus(old.counters)
        for pipeline in (replaced, old):
            if pipeline is not None:
                pipeline.close()

    def _build_at_start(self) -> Pipeline | None:
        """What is active; on probation it goes back to what was committed when it cannot run or ended the agent often."""
        if not self._trial.survived_starts():
            self._trial.roll_back(ProbationError("Wanted the agent to stay up, found it started again and again."))
        elif self._store.probation is not None:
            try:
                return self._build()
            except Exception as error:
                self._trial.roll_back(error)
        return self._build_or_fall_back()

    def _build_or_fall_back(self) -> Pipeline | None:
        """What is active, else what ran before, else only what was given: the device must stay reachable."""
        for slots in (self._store.previous, Slots()):
            try:
                return self._build()
            except (EdgeError, OSError) as error:
                if self._store.active == Slots():
                    raise
                log.error("what was deployed cannot run: %s. Falling back to %s.", error, slots)
                self._store.fall_back(slots, error)
        return self._build()

    def _build(self) -> Pipeline | None:
        """The pipeline of what was given or deployed; null when that is nothing."""
        head = self._given[0] or self._store.open(self._store.active.head)
        whole = self._given[1] or self._store.open(self._store.active.whole)
        if head is None and whole is None:
            return None
        return Pipeline(
            self._options.offload_broker or self._options.broker, self._options.device, head=head, whole=whole, options=self._options.offload,
            plan=self._options.plan,
        )  # fmt: skip

    def _activate(self, slots: Slots, probation: Probation) -> None:
        """Switch the pointer, build the pipeline; switch back when that fails."""
        with self._changing, self._trial.suspended():  # what was on probation must not be judged by what comes
            self._store.replace(slots, probation)
            try:
                built = self._build()
            except BaseException:  # whatever it was: after a restart the device must come up with what ran before
                self._store.undo()
                raise
            with self._swap:
                replaced, self._next = self._next, built
        if replaced is not None:
            replaced.close()

    def _received(self, topic: str, payload: bytes, _qos: int) -> None:
        try:
            self._inbox.put_nowait((topic, payload))
        except Full:
            log.warning("too many messages at once; %s is dropped", topic)

    def _take_deployments(self) -> None:
        while not self._stop.is_set():
            try:
                topic, payload = self._inbox.get(timeout=_POLL_S)
            except Empty:
                continue
            try:
                rest = parse_topic(topic).rest
                if rest == ("down", "deploy"):
                    self._deployments.begin(decode_control(payload, DeployStart))
                elif rest == ("down", "rollback"):
                    self._told_to_go_back(decode_control(payload, RollBack))
                elif rest == ("down", "desired"):
                    self._follower.follow(decode_control(payload, Desired))
                elif rest == ("down", "job"):
                    self._follower.work(decode_control(payload, JobOrder))
                elif rest[:2] == ("down", "blk"):
                    self._deployments.add(rest[2], decode_block(payload))
            except EdgeError as error:
                log.warning("ignored a message: %s", error)
            except Exception:
                log.exception("a deployment message could not be handled")

    def _told_to_go_back(self, message: RollBack) -> None:
        leave = Probation(message.artefact, message.artefact[:16])
        try:
            self._deployments.check_roll_back(message)
        except EdgeError as error:
            self._trial.tell(leave, "failed", error)
        else:
            self._told = leave

    def _report(self, status: DeployStatus) -> None:
        """Send a status; the last word on a deployment waits for a connection when there is none."""
        self._follower.observe(status)
        try:
            self._link.publish(self._status_packet(status))
        except MqttError as error:
            log.info("not published: %s", error)
            if status.state in ("committed", "rolled-back", "failed"):
                self._unsent.append(status)

    def _tell(self, message: Reported | JobStatus) -> None:
        self._publish(self._told_packet(message))

    def _told_packet(self, message: Reported | JobStatus) -> Packet:
        if isinstance(message, Reported):
            return Packet(self._topics.up("reported"), encode_control(message), 1, retain=True)
        return Packet(self._topics.up("job"), encode_control(message), 1)

    def _status_packet(self, status: DeployStatus) -> Packet:
        return Packet(self._topics.up("deploy"), encode_control(status), 1)

    def _birth(self) -> list[Packet]:
        birth = Birth(
            boot=self.boot,
            agent=__version__,
            board=self._board,
            engines=available_engines(),
            max_block_bytes=BLOCK_BYTES,
            slots=self._slots(),
            problem=self._store.problem,
            boot_count=self._follower.starts,
            desired_rev=self._follower.rev,
        )
        unsent = [self._status_packet(self._unsent.popleft()) for _ in range(len(self._unsent))]
        return [
            Packet(self._topics.up("birth"), encode_control(birth), 1, retain=True),
            *unsent,
            self._told_packet(self._follower.reported()),
        ]

    def _beat(self) -> None:
        while not self._stop.wait(self._options.heartbeat_s):
            self._publish(self._heartbeat())

    def _say_goodbye(self) -> None:
        """The last counters, and what the will would say: the broker drops a will when a client leaves in order."""
        self._publish(self._heartbeat())
        self._publish(self._death)

    def _heartbeat(self) -> Packet:
        self._heartbeats += 1
        source = self._source
        with self._swap:
            counters = self._before.plus(self._pipeline.counters if self._pipeline else Counters())
        beat = Heartbeat(
            boot=self.boot,
            seq=self._heartbeats,
            uptime_s=time.monotonic() - self._started,
            frames=self._frames,
            dropped=source.dropped if source else 0,
            remote=counters.remote,
            local=counters.local,
            failed=counters.failed,
            late=counters.late,
            rss_bytes=resident_bytes(),
            slots=self._slots(),
            desired_rev=self._follower.rev,
        )
        return Packet(self._topics.up("hb"), encode_control(beat))

    def _slots(self) -> Slots:
        head, whole = self._given
        active = self._store.active
        return Slots(head=head.id if head else active.head, whole=whole.id if whole else active.whole)

    def _publish(self, packet: Packet) -> None:
        try:
            self._link.publish(packet)
        except MqttError as error:
            log.info("not published: %s", error)
