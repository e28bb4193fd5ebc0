"""What was asked for, resolved: the model, the board, the route and the data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device_profiles import DeviceProfile
from edge_runtime.manifest import EngineName, Licence, Precision, Preprocessing
from export.cache import Cache, cache_key
from export.mcu.generator_hash import generator_hash
from export.routes import Route
from export.samples import SampleSet
from export.source import Source


@dataclass(frozen=True, kw_only=True)
class McuChoices:
    """How the C for a microcontroller is scheduled; other boards ignore it.

    Attributes:
        schedule: Whole layers, patches, row streams, or the best mixture.
        frame: Where the input lies: in the arena (intact or overwritten), pulled row by row, or anywhere outside.
        max_ram_bytes: Largest arena; null: what the board has.
        max_macs_factor: Most recomputation, 1.0 is none.
        optimise: Fewest bytes, or fewest multiply-accumulates within the limits.
        rounding: Whose FULLY_CONNECTED to equal: TensorFlow Lite Micro rounds twice, LiteRT once.
    """

    schedule: Literal["auto", "layer", "patch", "stream"] = "auto"
    frame: Literal["resident", "overwritten", "pulled", "external"] = "overwritten"
    max_ram_bytes: int | None = None
    max_macs_factor: float = 1.0
    optimise: Literal["ram", "speed"] = "ram"
    rounding: Literal["tflm", "litert"] = "tflm"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export. Null lets headtail choose.

    Attributes:
        precision: int8 for microcontrollers or with calibration data, fp16 for GPUs, else fp32.
        engine: The first of the board's kind.
        calibration: A folder of pictures, or an .npz of inputs; needed for int8.
        data: The same, with class ids: to measure agreement and accuracy on.
        preprocessing: How pictures become the input; a module's own wins.
        labels: One name for each class; a module's own win.
        licences: Of the weights, beside those that the module names.
        threads: Of the engine on the board.
        mcu: The schedule of generated C.
    """

    precision: Precision | None = None
    engine: EngineName | None = None
    calibration: Path | None = None
    data: Path | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    licences: tuple[Licence, ...] = ()
    threads: int = 1
    mcu: McuChoices = McuChoices()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One export, before any converter is imported."""

    source: Source
    board: DeviceProfile
    route: Route
    options: ExportOptions
    calibration: SampleSet | None
    data: SampleSet | None
    cache: Cache
    progress: Callable[[str], None]

    @property
    def key(self) -> str:
        """The artefact's place in the cache: everything that its bytes depend on."""
        options = self.options
        declared = (options.preprocessing, options.labels, options.licences, options.threads, options.mcu)
        route = self.route
        steps = (route.source, route.format, route.precision, route.engine, route.scheme)
        generator = generator_hash() if self.board.is_microcontroller else None
        data = [None if one is None else (Path(one.source).name, one.sha256) for one in (self.calibration, self.data)]
        return cache_key(
            "artefact", self.source.sha256, self.source.name, self.board.id, steps, generator, declared, data
        )

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The module's own, else the option's."""
        model = self.source.model
        return (model.preprocessing if model is not None else None) or self.options.preprocessing

    @property
    def labels(self) -> tuple[str, ...]:
        """The module's own, else the option's."""
        model = self.source.model
        return (model.labels if model is not None else ()) or self.options.labels

    @property
    def licences(self) -> tuple[Licence, ...]:
        """The module's and the option's."""
        model = self.source.model
        return (*(model.licences if model is not None else ()), *self.options.licences)
