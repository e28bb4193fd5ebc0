"""The device's side of a deployment: collect blocks, verify the artefact, hand it over to be activated."""

import logging
import shutil
import time
from collections.abc import Callable

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.messages import Block, DeployStart, DeployStatus
from edge_runtime.places import GoldenError, LocalPlace
from edge_runtime.slots import SlotStore
from edge_runtime.transfer import IncomingFile, TransferError

log = logging.getLogger(__name__)
_REPORT_EVERY = 4  # blocks
_IDLE_S = 10.0  # a transfer without a message for so long may be replaced


class Deployments:
    """One deployment at a time; a new one replaces another that is not complete and has been silent for 10 s.

    Args:
        store: Where artefacts live.
        boot: Of the agent.
        report: Sends a status to the host.
        activate: Makes a verified, stored artefact run; raises `EdgeError` when it cannot, with nothing changed.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        store: SlotStore,
        *,
        boot: str,
        report: Callable[[DeployStatus], None],
        activate: Callable[[Artefact], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._boot, self._report, self._activate = store, boot, report, activate
        self._clock = clock
        self._touched = clock()
        self._incoming: IncomingFile | None = None
        self._since_report = 0

    def begin(self, start: DeployStart) -> None:
        """Announced, or announced again: answer with what is there already."""
        if start.artefact in (self._store.active.head, self._store.active.whole):
            self._send(start, "active")
            return
        if self._incoming is None or _content(self._incoming.start) != _content(start):
            if self._incoming is not None and self._clock() - self._touched < _IDLE_S:
                self._send(start, "busy")
                return
            try:
                self._incoming = IncomingFile(self._store.incoming, start)
            except (TransferError, OSError) as error:
                self._fail(start, error)
                return
        self._touched = self._clock()
        self._incoming.start = start
        self._go_on(self._incoming)

    def add(self, transfer: str, block: Block) -> None:
        """A block came; blocks of other transfers are ignored."""
        incoming = self._incoming
        if incoming is None or incoming.start.transfer != transfer:
            return
        self._touched = self._clock()
        try:
            self._since_report += incoming.add(block)
        except (TransferError, OSError) as error:
            self._incoming = None
            self._fail(incoming.start, error)
            return
        if incoming.complete or self._since_report >= _REPORT_EVERY:
            self._go_on(incoming)

    def _go_on(self, incoming: IncomingFile) -> None:
        self._since_report = 0
        if not incoming.complete:
            self._send(incoming.start, "receiving", have=incoming.have)
            return
        self._incoming = None
        self._send(incoming.start, "verifying", have=incoming.have)
        try:
            self._activate(self._verified(incoming))
        except (EdgeError, OSError) as error:
            self._fail(incoming.start, error)
            return
        except Exception as error:  # an engine's own: the host must hear of it, or it waits in vain
            log.exception("deployment of %s broke", incoming.start.artefact[:16])
            self._fail(incoming.start, error)
            return
        finally:
            shutil.rmtree(self._store.incoming, ignore_errors=True)
        self._send(incoming.start, "active")

    def _verified(self, incoming: IncomingFile) -> Artefact:
        """Hashes, identity, engine, golden vectors: only then does it enter the store."""
        artefact = open_artefact(incoming.finish())
        if artefact.id != incoming.start.artefact:
            raise TransferError(
                f"Wanted artefact {incoming.start.artefact[:16]}.., found {artefact.id[:16]}.. in the .zip."
            )
        report = LocalPlace().verify(artefact)
        if not report.passed:
            worst = max(check.worst for check in report.checks)
            raise GoldenError(
                f"Wanted the golden outputs of {artefact.id[:16]}.., found a difference of {worst:g} here."
            )
        return self._store.adopt(artefact)

    def _fail(self, start: DeployStart, error: Exception) -> None:
        log.error("deployment of %s failed: %s", start.artefact[:16], error)
        self._send(start, "failed", error=f"{type(error).__name__}: {error}"[:500])

    def _send(self, start: DeployStart, state: str, *, have: bytes = b"", error: str | None = None) -> None:
        self._report(
            DeployStatus(boot=self._boot, transfer=start.transfer, state=state, have=have, error=error)  # type: ignore[arg-type] # one of the literals
        )


def _content(start: DeployStart) -> tuple[str, int]:
    return start.zip_sha256, start.size
