"""What `headtail plan` plans with: times of both places, measured or from a board file, and pictures as rivals."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles.measurement import (
    EngineSettings,
    MemoryUse,
    Profile,
    ProfileMismatchError,
    load_profile,
    require_usable,
)
from device_profiles.schema import DeviceProfile
from edge_runtime.artefact import Artefact
from edge_runtime.preprocess import MAX_PIXELS, centre_crop, decode_image
from edge_runtime.profiler import profile_artefact
from export.cut_source import CutSource, CutSourceError
from export.picture_sizes import DEFAULT_PICTURE, picture_input
from split.cold_start import cold_start
from split.cut_graph import CutGraph
from split.graph_work import work_of
from split.plan import PlanError, Power, format_ms
from split.plan_problem import Cost, costs_from_profile
from split.plan_variants import Picture
from split.predict import Calibration, predict

if TYPE_CHECKING:
    from PIL import Image

QUALITIES = (50, 75, 90)
_REPEATS = 5
_ATTEMPTS = 3  # at an undisturbed measurement


@dataclass(frozen=True)
class PlaceTimes:
    """Times of each operator on one place. `origin`: measured, datasheet or derived; `remarks` say from what."""

    costs: tuple[Cost, ...]
    origin: str
    remarks: tuple[str, ...] = ()
    power: Power | None = None
    memory: MemoryUse | None = None  # as measured

    @property
    def whole(self) -> Cost:
        """The whole network."""
        return Cost(sum(one.p50_ms for one in self.costs), sum(one.p95_ms for one in self.costs))


class MeasuredHere:
    """Measures a network on this machine when it is first asked for, and only once."""

    def __init__(self, source: CutSource, on_step: Callable[[str], None]) -> None:
        self._source, self._on_step = source, on_step
        self._found: Profile | None = None

    def profile(self) -> Profile:
        """Undisturbed, if one of a few attempts is."""
        artefact = _artefact(self._source)
        for attempt in range(1, _ATTEMPTS + 1):
            if self._found is not None and (self._found.status == "ok" or not self._found.kernels):
                break  # an engine that tells no kernels will not tell them later
            self._on_step(f"measuring {self._source.name} on this machine, attempt {attempt} of {_ATTEMPTS}")
            self._found = profile_artefact(artefact)
        assert self._found is not None
        return self._found


def place_times(
    source: CutSource, board: DeviceProfile, *, here: MeasuredHere | None, profile: Path | None,
    calibration: Calibration | None = None,
) -> PlaceTimes:  # fmt: skip
    """Times on one board: a profile if there is one, else its calibration, a measurement on this machine, the board file.

    Args:
        source: The network, of an artefact.
        board: Where it would run.
        here: Measures it, where that is the machine at hand.
        profile: What `headtail profile --out` wrote.
        calibration: Of the board; used where there is no profile.

    Raises:
        ProfileError, NoisyProfileError: The profile is not valid, of other settings or another model, or disturbed.
        MissingKernelError: The profile has no times of single kernels.
        PredictError: The board file says nothing of speed.
    """
    artefact = _artefact(source)
    if profile is not None:
        return _from_profile(source, artefact, board, load_profile(profile))
    if here is not None and calibration is None:
        return _from_profile(source, artefact, board, here.profile())
    known = calibration or cold_start(board, precision=artefact.manifest.precision)
    return predicted_times(source.graph, known, board, precision=artefact.manifest.precision)


def predicted_times(graph: CutGraph, calibration: Calibration, board: DeviceProfile, *, precision: str) -> PlaceTimes:
    """Times of each operator from a calibration; p95 is the upper end of the interval of whole networks.

    Raises:
        ProfileMismatchError: The calibration is of another board or precision.
        PredictError: Nothing in the network that could be predicted.
    """
    if (calibration.board, calibration.precision) != (board.id, precision):
        raise ProfileMismatchError(
            f"Wanted a calibration of {board.id} in {precision}, found one of {calibration.board} in {calibration.precision}."
        )
    work = work_of(graph, precision=precision)
    prediction = predict(calibration, [one for one in work if one is not None])
    times = iter(prediction.kernels)
    scale, spread = calibration.whole, calibration.interval.high
    costs = []
    for one in work:
        ms = 0.0 if one is None else next(times).ms * scale
        costs.append(Cost(ms, ms * spread))
    power = None
    if board.idle_power_w is not None and board.active_power_w is not None:
        power = Power(board.idle_power_w, board.active_power_w, origin="datasheet")
    interval = f"{board.id}: predicted {format_ms(prediction.ms)}, 90 % within {format_ms(prediction.low_ms)} to {format_ms(prediction.high_ms)}"
    if calibration.origin != "measured":
        interval = f"{board.id}: predicted {format_ms(prediction.ms)} ({calibration.origin}), not measured"
    remarks = (interval, *(f"{board.id}: {text}" for text in calibration.remarks))
    return PlaceTimes(tuple(costs), calibration.origin, remarks, power)


def pictures(
    source: CutSource, *, slower: float, picture: Path | None, qualities: Sequence[tuple[str, int]] = ()
) -> list[Picture]:
    """JPEG and WebP at several qualities, sizes and times measured here; the device's time is scaled.

    Args:
        source: The network; nothing is given when it does not take a picture.
        slower: How many times slower than this machine the device is.
        picture: The file to encode; one that ships with headtail when null.
        qualities: Codecs and qualities beside the usual ones: those whose accuracy was measured.
    """
    from PIL import Image

    manifest = _artefact(source).manifest
    size = picture_input(source.inputs)
    if size is None or manifest.preprocessing is None:
        return []
    path = picture or DEFAULT_PICTURE
    if not path.is_file():
        raise PlanError(f"Wanted a picture, found no file at {path}.")
    image = decode_image(path.read_bytes(), MAX_PIXELS)
    cropped = Image.fromarray(centre_crop(image, manifest.preprocessing))
    usual = [(codec, quality) for codec in ("jpeg", "webp") for quality in QUALITIES]
    return [_coded(cropped, codec, quality, slower) for codec, quality in dict.fromkeys([*usual, *qualities])]


def _coded(image: "Image.Image", codec: str, quality: int, slower: float) -> Picture:
    """Encode and decode a picture here, a few times."""
    from PIL import Image

    encoded = io.BytesIO()

    def encode() -> None:
        encoded.seek(0)
        encoded.truncate()
        image.save(encoded, format=codec.upper(), quality=quality)

    there = slower * _fastest_ms(encode)
    data = encoded.getvalue()
    decode_ms = _fastest_ms(lambda: Image.open(io.BytesIO(data)).load())
    return Picture(codec, quality, len(data), Cost(there, 2 * there), Cost(decode_ms, 2 * decode_ms), None)


def _from_profile(source: CutSource, artefact: Artefact, board: DeviceProfile, profile: Profile) -> PlaceTimes:
    engine = artefact.manifest.engine
    wanted = EngineSettings(
        name=engine.name,
        version=engine.built,
        optimisation=engine.optimisation,
        threads=profile.engine.threads,
        provider=profile.engine.provider,
    )
    require_usable(profile, engine=wanted, board=board.id)
    sha256 = artefact.manifest.files_by_path[artefact.manifest.entry].sha256
    if profile.model_sha256 != sha256:
        raise ProfileMismatchError(
            f"Wanted a profile of the file {sha256[:12]} in {artefact.folder}, found one of {profile.model_sha256[:12]} "
            f"({profile.model}). Profile this artefact."
        )
    power = None
    if profile.energy is not None:
        energy = profile.energy
        power = Power(energy.idle_w, energy.active_w, energy.tx_w, origin=energy.origin)
    remark = f"{board.id}: measured, {format_ms(profile.whole.p50)} (p50), {profile.engine.threads} thread(s)"
    return PlaceTimes(costs_from_profile(source.graph, profile), "measured", (remark,), power, profile.memory)


def _artefact(source: CutSource) -> Artefact:
    if source.artefact is None:
        raise CutSourceError(
            f"Wanted an artefact, found the bare file {source.path}. Run `headtail export` first: a plan needs its engine."
        )
    return source.artefact


def _fastest_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return min(times)
