"""What was asked for, resolved: the model, the board, the route and the data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device_profiles import DeviceProfile
from edge_runtime.manifest import EngineName, Licence, Precision, Preprocessing
from export.cache import Cache, cache_key
from export.routes import Route
from export.samples import SampleSet
from export.source import Source


@dataclass(frozen=True, kw_only=True)
class McuChoices:
    """How the C for a microcontroller is scheduled; see docs/microcontrollers.md.

    Attributes:
        schedule: What a segment may be; auto takes whatever is best.
        input_mode: Where the first input lives: kept, overwritten as it is read, or pulled row by row from a callback.
        max_ram_bytes: Largest arena; the board's SRAM when null.
        max_macs_factor: How much may be computed twice, as a factor of the network's work; 1 is nothing.
        optimise: Least RAM, or least instructions within the RAM that there is.
        rounding: Whose FULLY_CONNECTED to equal: TensorFlow Lite Micro's rounds twice, LiteRT's once.
    """

    schedule: Literal["auto", "layer", "patch", "stream"] = "auto"
    input_mode: Literal["overwritten", "resident", "pulled", "external"] = "overwritten"
    max_ram_bytes: int | None = None
    max_macs_factor: float = 1.0
    optimise: Literal["ram", "speed"] = "ram"
    rounding: Literal["tflm", "litert"] = "tflm"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export. Null lets headtail choose.

    Attributes:
        precision: int8 for microcontrollers, with calibration data or of a quantised file, fp16 for GPUs, else fp32.
        engine: The first of the board's kind.
        calibration: A folder of pictures, or an .npz of inputs; needed for int8.
        data: The same, with class ids: to measure agreement and accuracy on.
        label_key: Array of an .npz of `data` that holds the class ids.
        preprocessing: How pictures become the input; a module's own wins.
        labels: One name for each class; a module's own win.
        licences: Of the weights, beside those that the module names.
        threads: Of the engine on the board.
        mcu: For microcontrollers only.
    """

    precision: Precision | None = None
    engine: EngineName | None = None
    calibration: Path | None = None
    data: Path | None = None
    label_key: str = ""
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
        data = [None if one is None else (Path(one.source).name, one.sha256) for one in (self.calibration, self.data)]
        return cache_key("artefact", self.source.sha256, self.source.name, self.board.id, steps, declared, data)

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
