"""The program on a device: says that it is there, takes deployments, runs frames, reports results."""

import logging
import os
import threading
import time
from collections.abc import Callable

import msgspec

from device_profiles import load_board
from device_profiles.errors import EdgeError
from device_profiles.version import __version__
from edge_runtime.agent_options import AgentOptions as AgentOptions
from edge_runtime.artefact import Artefact
from edge_runtime.broker_url import is_loopback
from edge_runtime.deployments import Deployments
from edge_runtime.fetch import fetch_options
from edge_runtime.follow import Follower
from edge_runtime.frame_result import result_of, result_of_error
from edge_runtime.freshness import open_freshness
from edge_runtime.gate import Gatekeeper
from edge_runtime.inbox import Inbox
from edge_runtime.messages import (
    BLOCK_BYTES,
    Birth,
    Death,
    DeployStatus,
    Heartbeat,
    Result,
    RollBack,
    Settings,
    Slots,
    Topics,
    encode_control,
)
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.offload import Counters
from edge_runtime.pipeline import Pipeline
from edge_runtime.process_memory import resident_bytes
from edge_runtime.remote_config import read_config, with_config
from edge_runtime.reporter import Reporter
from edge_runtime.samples import Sampler
from edge_runtime.self_update import SelfUpdate
from edge_runtime.session import available_engines
from edge_runtime.slots import Probation, SlotStore
from edge_runtime.sources import Frame, Newest
from edge_runtime.trial import ProbationError, Trial
from edge_runtime.watchdog import Watchdog

log = logging.getLogger(__name__)
_POLL_S = 0.2
_CONNECT_S = 5.0  # for a new head's own connection


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
        self._options = self._started_with = options
        self._log_level = logging.getLogger().level
        self._source = source
        self._on_result = on_result
        self._topics = Topics(options.offload.tenant, options.device)
        self._board = load_board(options.board).id
        unsigned = options.insecure or is_loopback(options.broker)
        fresh = open_freshness(options.state, options.broker)
        self._gate = Gatekeeper(options.state, self._board, unsigned=unsigned, fresh=fresh)
        self._store = SlotStore(options.state, self._gate.ask)
        self._given = (head, whole)
        self.boot = os.urandom(8).hex()
        self._stop = threading.Event()
        self._watchdog = Watchdog()
        self._started = time.monotonic()
        self._reporter = Reporter(self._topics)
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
        self._updates = SelfUpdate(options.state, self._gate, options.launched)
        self._follower = Follower(
            self._store,
            self._deployments,
            self._updates,
            boot=self.boot,
            activate=self._activate,
            publish=self._reporter.tell,
            configure=self._configure,
        )
        self._inbox = Inbox(self._deployments, self._follower, self._told_to_go_back)
        self._pipeline: Pipeline | None = None
        self._next: Pipeline | None = None  # built by a deployment, taken by the main loop
        self._swap = threading.Lock()
        self._changing = threading.Lock()  # held while the slots change and a pipeline is built for them
        self._told: Probation | None = None  # what the host wants to be left; the main loop does it
        self._frames = self._heartbeats = 0
        self._before = Counters()  # of the pipelines that ran earlier
        subscriptions = tuple((topic, 1) for topic in self._topics.orders)
        self._death = Packet(self._topics.up("death"), encode_control(Death(boot=self.boot)), 1, retain=True)
        link_options = LinkOptions(subscriptions=subscriptions, greeting=self._birth, will=self._death)
        self._link = self._reporter.link = MqttLink(options.broker, link_options, self._inbox.put)
        allowed = options.samples
        self._sampler = None if allowed is None else Sampler(allowed, options.state, self._topics, self._link.publish)

    def run(self, *, frames: int | None = None) -> None:
        """Work until `stop`, the end of the source, or so many frames.

        Raises:
            EdgeError: The source broke, or an artefact given on the command line cannot be opened.
        """
        threads = [threading.Thread(target=work, daemon=True) for work in (self._take_orders, self._beat)]
        self._follower.configure_again()
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

    @property
    def restart_wanted(self) -> bool:
        """Whether `run` has ended so that another version of the agent takes over."""
        return self._updates.restart_wanted

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

    def _take_orders(self) -> None:
        self._inbox.work(self._stop.is_set)

    def _run_frame(self, pipeline: Pipeline, frame: Frame) -> None:
        self._frames += 1
        try:
            outcome = pipeline.run(frame)
        except EdgeError as error:
            self._trial.note(error)
            result = result_of_error(self.boot, frame, error)
        else:
            self._trial.note(None)
            result = result_of(self.boot, frame, outcome)
        if self._on_result is not None:
            self._on_result(result)
        if self._options.publish_results:
            self._reporter.publish(Packet(self._topics.up("result"), encode_control(result)))
        if self._sampler is not None and result.source != "error":
            self._sampler.offer(frame, result, self._slots().head)

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
        if self._updates.judge(connected=self._link.connected, models_problem=self._store.problem):
            self._follower.agent_proved()
        if self._updates.restart_wanted:
            self._stop.set()
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
                if built is not None:
                    built.wait_connected(_CONNECT_S)  # or the first frames would find nobody to ask
            except BaseException:  # whatever it was: after a restart the device must come up with what ran before
                self._store.undo()
                raise
            with self._swap:
                replaced, self._next = self._next, built
        if replaced is not None:
            replaced.close()

    def _configure(self, settings: Settings) -> str | None:
        """Work under this remote configuration from now on; what is wrong with it."""
        config, problem = read_config(settings)
        before, self._options = self._options, with_config(self._started_with, config)
        if self._sampler is not None:
            self._sampler.enabled = config.samples is not False
        logging.getLogger().setLevel(self._log_level if config.log_level is None else config.log_level.upper())
        if before.offload != self._options.offload and self._pipeline is not None:
            try:
                self._replace_pipeline()
            except (EdgeError, OSError) as error:  # what runs goes on
                return f"{type(error).__name__}: {error}"[:500]
        return problem

    def _replace_pipeline(self) -> None:
        """Run the same models under the options of now."""
        with self._changing:
            built = self._build()
            if built is not None:
                built.wait_connected(_CONNECT_S)
            with self._swap:
                replaced, self._next = self._next, built
        if replaced is not None:
            replaced.close()

    def _told_to_go_back(self, message: RollBack) -> None:
        leave = Probation(message.artefact, message.artefact[:16])
        try:
            self._deployments.check_roll_back(message)
        except EdgeError as error:
            self._trial.tell(leave, "failed", error)
        else:
            self._told = leave

    def _report(self, status: DeployStatus) -> None:
        self._follower.observe(status)
        self._reporter.status(status)

    def _birth(self) -> list[Packet]:
        birth = Birth(
            boot=self.boot,
            agent=__version__,
            board=self._board,
            engines=available_engines(),
            max_block_bytes=BLOCK_BYTES,
            slots=self._slots(),
            problem=self._store.problem or self._updates.problem,
            agent_artefact=self._updates.running or msgspec.UNSET,
            boot_count=self._follower.starts,
            desired_rev=self._follower.rev,
        )
        return [
            Packet(self._topics.up("birth"), encode_control(birth), 1, retain=True),
            *self._reporter.waiting(),
            self._reporter.packet_of(self._follower.reported()),
        ]

    def _beat(self) -> None:
        while not self._stop.wait(self._options.heartbeat_s):
            self._reporter.publish(self._heartbeat())

    def _say_goodbye(self) -> None:
        """The last counters, and what the will would say: the broker drops a will when a client leaves in order."""
        self._reporter.publish(self._heartbeat())
        self._reporter.publish(self._death)

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
            config_rev=self._follower.config_rev,
        )
        return Packet(self._topics.up("hb"), encode_control(beat))

    def _slots(self) -> Slots:
        head, whole = self._given
        active = self._store.active
        return Slots(head=head.id if head else active.head, whole=whole.id if whole else active.whole)
