"""Where an artefact can be tried: here, on this machine. Other places come from the packages that reach them."""

import time
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, read_raw
from edge_runtime.engine_version import check_version, installed_version
from edge_runtime.manifest import Golden
from edge_runtime.session import Session, open_session

if TYPE_CHECKING:
    from device_profiles.measurement import Profile
    from edge_runtime.profiler import ProfileOptions


class GoldenError(EdgeError):
    """An artefact does not give the outputs that its golden vectors say."""


class Check(msgspec.Struct, frozen=True):
    """One golden vector: how it compared and how long the run took."""

    inputs: tuple[str, ...]
    compare: str
    tolerance: float
    worst: float  # largest absolute difference; for argmax the share of rows, for an emulator the bytes that differ
    passed: bool
    ms: float | None  # null where the place knows no time
    instructions: int | None = None  # counted by an emulator


class Report(msgspec.Struct, frozen=True):
    """What a place found out about an artefact."""

    place: str
    artefact: str
    engine: str
    load_ms: float | None
    checks: tuple[Check, ...]
    installed: str | None = None  # version of the engine that ran
    built: str | None = None  # the one that the exporter ran
    remark: str | None = None  # what differs and is no error

    @property
    def passed(self) -> bool:
        """Whether every golden vector held."""
        return all(check.passed for check in self.checks)


class Place(Protocol):
    """Somewhere that can run an artefact."""

    def verify(self, artefact: Artefact) -> Report:
        """Open it with its engine and compare the golden vectors.

        Raises:
            EngineError: The engine refuses it.
        """

    def profile(self, artefact: Artefact, options: "ProfileOptions") -> "Profile":
        """Measure it there; an emulator counts instructions and says so in the profile's unit.

        Raises:
            EngineError: The engine refuses it.
            ProfilerError: The measurement did not come to its end.
        """


class LocalPlace:
    """This machine."""

    def verify(self, artefact: Artefact, *, warm: bool = False) -> Report:
        """Open it with its engine here and compare the golden vectors; see `Place.verify`.

        Args:
            artefact: Checked.
            warm: Run each vector twice, so that its time is not that of a first run.
        """
        begun = time.perf_counter()
        session = open_session(artefact)
        load_ms = 1000 * (time.perf_counter() - begun)
        try:
            for golden in artefact.manifest.golden if warm else ():
                compare_golden(artefact, session, golden)
            checks = tuple(compare_golden(artefact, session, golden) for golden in artefact.manifest.golden)
        finally:
            session.close()
        engine = artefact.manifest.engine
        installed = installed_version(engine.name)
        remark = check_version(engine, installed)
        return Report("local", artefact.id, engine.name, load_ms, checks, installed, engine.built, remark)

    def profile(self, artefact: Artefact, options: "ProfileOptions") -> "Profile":
        """Measure it here, in fresh processes; see `Place.profile`."""
        from edge_runtime.profiler import profile_artefact

        return profile_artefact(artefact, options)


def local() -> LocalPlace:
    """The entry point `local` of `headtail.places`."""
    return LocalPlace()


def compare_golden(artefact: Artefact, session: Session, golden: Golden) -> Check:
    """Run one golden vector.

    Raises:
        GoldenError: It has another number of inputs or outputs than the model, or the model gives another shape.
        IntegrityError: A file's size is not that of its tensor.
    """
    if len(golden.inputs) != len(session.inputs) or len(golden.expected) != len(session.outputs):
        raise GoldenError(
            f"Wanted {len(session.inputs)} inputs and {len(session.outputs)} outputs in the golden vector, "
            f"found {len(golden.inputs)} and {len(golden.expected)} in {artefact.folder}. Export it again."
        )
    inputs = [read_raw(artefact, path, spec) for path, spec in zip(golden.inputs, session.inputs, strict=True)]
    wanted = [read_raw(artefact, path, spec) for path, spec in zip(golden.expected, session.outputs, strict=True)]
    begun = time.perf_counter()
    found = session.run(inputs)
    ms = 1000 * (time.perf_counter() - begun)
    if [array.shape for array in found] != [array.shape for array in wanted]:
        raise GoldenError(
            f"Wanted outputs {[array.shape for array in wanted]} as in the manifest, "
            f"found {[array.shape for array in found]} in {artefact.folder}. Export it again."
        )
    if golden.compare == "exact":
        passed = all(a.tobytes() == b.tobytes() for a, b in zip(found, wanted, strict=True))
        worst = max(_difference(a, b) for a, b in zip(found, wanted, strict=True))
    elif golden.compare == "argmax":
        worst = max(float(np.mean(a.argmax(-1) != b.argmax(-1))) for a, b in zip(found, wanted, strict=True))
        passed = worst <= golden.tolerance
    else:
        worst = max(_difference(a, b) for a, b in zip(found, wanted, strict=True))
        passed = worst <= golden.tolerance
    return Check(golden.inputs, golden.compare, golden.tolerance, worst, passed, ms)


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute difference; infinite where one is not a number and the other is."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    both_nan = np.isnan(a) & np.isnan(b)
    difference = np.where(both_nan | (a == b), 0.0, np.abs(a - b))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))
