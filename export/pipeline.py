"""`export_model`: source + board -> artefact. Decides the route, asks the cache, and has the rest assembled."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec

from device_profiles import DeviceProfile, load_board
from edge_runtime.artefact import Artefact, write_artefact
from export.cache import Cache, open_cache
from export.calibration import open_calibration
from export.convert import holds_integers
from export.recall import load_source, loaded
from export.request import ExportOptions, Request
from export.routes import find_route
from export.samples import open_samples
from export.source import ModelSource, Source


def export_model(
    source: str | Path | Source | ModelSource,
    board: str | DeviceProfile,
    options: ExportOptions | None = None,
    *,
    out: Path | None = None,
    cache: Cache | None = None,
    progress: Callable[[str], None] | None = None,
) -> Artefact:
    """Export a model for a board.

    Args:
        source: `module:function`, an .onnx or .tflite path, or a `ModelSource` in memory.
        board: A board's id ("this" is the machine at hand) or its profile.
        options: See `ExportOptions`.
        out: The artefact's folder; `build/<model>-<board>-<precision>` by default. An artefact there is replaced.
        cache: Where finished work is kept; the user's cache folder by default.
        progress: Called with the name of each step that is not in the cache.

    Returns:
        The artefact, written completely.

    Raises:
        EdgeError: A subclass for each reason: `SourceError`, `UnsupportedRouteError`, `CalibrationError`,
            `ConversionError`, `VerificationError`, `MissingDependencyError`, `ArtefactError`.
    """
    request = resolve(source, board, options or ExportOptions(), cache=cache or open_cache(), progress=progress)
    target = out or Path("build", f"{request.source.name}-{request.board.id}-{request.route.name}")
    kept = request.cache.artefact(request.key)
    if kept is None:
        # Imported here: a cached export needs none of the engines.
        from export.assemble import assemble

        request = dataclasses.replace(request, source=loaded(request.source))
        folder = request.cache.artefact_folder(request.key)
        if folder is None or not request.cache.keeps_artefacts():
            return assemble(request, target)
        kept = assemble(request, folder)
        request.cache.prune_artefacts()
    return copy_artefact(kept, target)


def resolve(
    source: str | Path | Source | ModelSource,
    board: str | DeviceProfile,
    options: ExportOptions,
    *,
    cache: Cache,
    progress: Callable[[str], None] | None = None,
) -> Request:
    """Find the model, the board, the data and the route; nothing is converted.

    Raises:
        EdgeError: As `export_model`, for what can be known before converting.
    """
    profile = load_board(board) if isinstance(board, str) else board
    found = load_source(source, cache)
    calibration = open_calibration(options.calibration) if options.calibration is not None else None
    calibrated = calibration is not None
    precision = options.precision or ("int8" if holds_integers(found) else None)
    route = find_route(found.kind, profile, precision=precision, engine=options.engine, calibrated=calibrated)
    if route.precision == "int8" and found.kind == "torch" and not calibrated:
        open_calibration(None)  # raises; a file may be quantised already, so it is asked later
    return Request(
        source=found,
        board=profile,
        route=route,
        options=options,
        calibration=calibration,
        data=open_samples(options.data, label_key=options.label_key) if options.data is not None else None,
        cache=cache,
        progress=progress or (lambda _: None),
    )


def copy_artefact(artefact: Artefact, target: Path) -> Artefact:
    """The same artefact in another folder, written in one step."""
    files: dict[str, bytes | Path] = {name: artefact.path(name) for name in artefact.manifest.files_by_path}
    return write_artefact(target, msgspec.structs.replace(artefact.manifest, files=()), files)
