"""A trained bottleneck with an int8 LiteRT head: for boards that run LiteRT, and for microcontrollers with a C project.

The head's output keeps the latent's own grid (scale 1, zero point 0), so that an integer means what it meant in training. Its
layout is channels last. The integers of calibration pictures, which choose the tables, are those of the head's own engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from device_profiles import DeviceProfile
from edge_runtime.codecs import TABLES_NAME
from edge_runtime.entropy import CountOptions, count_tables
from edge_runtime.manifest import Cut, Manifest, TensorSpec
from export.assemble import METHODS, c_name
from export.convert import load_step
from export.cut_check import Runner, open_tflite_runner
from export.cut_golden import GoldenRule
from export.cut_mcu import exact_rule, head_engine, head_files, tflm_runner
from export.exit_graph import EXIT
from export.head_graph import IMAGE, LATENT
from export.late_training import LateTraining, exit_late, refine_late
from export.pair_tail import make_tail
from export.trained_manifest import (
    HEAD_STEPS,
    Half,
    Parts,
    TrainedPairOptions,
    head_golden,
    head_manifest,
    make_cut,
    pair_engine,
    produced_on,
    tail_files,
)
from export.trained_pair import (
    Files,
    PairFormError,
    TrainedPair,
    augmentation_of,
    calibration_pictures,
    write_checked,
)
from split.inject import SplitNetwork
from split.latents import IntegerHead, IntegerTail, fit_grid, input_batches
from split.training_data import PictureSet


def write_litert_pair(
    network: SplitNetwork,
    calibration: PictureSet,
    options: TrainedPairOptions,
    late: LateTraining | None = None,
    board: DeviceProfile | None = None,
) -> TrainedPair:
    """Quantise the head with LiteRT's tools, count tables, and write head and tail.

    Args:
        network: Trained; only `late` changes it, and only its tail.
        calibration: As in `export.trained_pair.write_trained_pair`.
        options: As there.
        late: As there; a microcontroller's head has no exit.
        board: A microcontroller, for which the head's C is generated; null for a head on LiteRT.

    Raises:
        PairFormError: A head that has no int8 form, for a microcontroller.
        MissingDependencyError: LiteRT's converters or TensorFlow Lite Micro are not installed.
        EdgeError: As `write_trained_pair`, and `export.cut_mcu.head_files` for a head that does not fit the board.
    """
    heads, tails = load_step("export.litert_head"), load_step("export.litert_tail")
    augmentation = augmentation_of(options.preprocessing)
    network = network.cpu().eval()
    pictures = calibration_pictures(calibration, augmentation)
    grid = fit_grid(network, input_batches(calibration, augmentation))
    integers = IntegerHead(network.bottleneck, grid)
    if board is not None:
        _check_form(heads, integers, board)
    head = heads.head_to_litert(integers, pictures, floats=board is None)
    made = _MadeHead(head, _runner(head.data, board))
    stored = [head.stored(one) for one in pictures]
    latents = [made.run([one])[0] for one in stored]
    plan = network.bottleneck.stream
    tables = count_tables(latents, CountOptions(1, plan.layers, plan.variants, plan.block))
    if late is not None:
        refine_late(network, made.run_real, grid, late)
    tail = make_tail(tails.ChannelsLastTail(IntegerTail(network, grid)), latents, options)
    data, leaving = head.data, None
    if late is not None:

        def run_tail(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            return tail.run_real([np.ascontiguousarray(arrays[0].transpose(0, 2, 3, 1))])

        leaving = exit_late((made.run_real, run_tail), augmentation, late)
    if leaving is not None:
        data = tails.add_litert_exit(data, leaving.classifier, latents[0])
    parts = Parts(data, tail.data, tables.data, stored, latents, leaving)
    cut = make_cut(parts, "nhwc")
    written = _head(parts, head.image, cut, options, board)
    return write_checked(written, tail_files(parts, cut, options, tail.half, tail.logits), stored, options.out)


@dataclass(frozen=True)
class _MadeHead:
    """A head's file, and how its engine runs it."""

    head: Any  # export.litert_head.LiteRtHead: its module needs LiteRT's converters
    run: Runner

    def run_real(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As an ONNX head runs: a normalised picture to int8 latents, channels first."""
        found = self.run([self.head.stored(arrays[0])])[0]
        return [np.ascontiguousarray(found.transpose(0, 3, 1, 2))]


def _check_form(heads: Any, head: IntegerHead, board: DeviceProfile) -> None:  # noqa: ANN401 - a module
    """Refuse heads of which not everything is int8."""
    for found, what in ((heads.has_gdn(head), "a GDN"), (heads.has_codebook(head), "the choice of a word")):
        if found:
            raise PairFormError(
                f"Wanted a head of convolutions and ReLU for {board.name}, found {what}, which has no int8 form there. Use --method "
                "slim, progressive, positions or bottlefit."
            )


def _runner(data: bytes, board: DeviceProfile | None) -> Runner:
    return open_tflite_runner(data, [IMAGE], [LATENT]) if board is None else tflm_runner(data, 1)


def _head(
    parts: Parts, image: TensorSpec, cut: Cut, options: TrainedPairOptions, board: DeviceProfile | None
) -> tuple[Manifest, Files]:
    """The head's manifest and files."""
    if board is None:
        names = [LATENT] if parts.leaving is None else [LATENT, EXIT]
        half = Half(pair_engine("litert"), open_tflite_runner(parts.head, [IMAGE], names))
        golden = head_golden(parts, half, GoldenRule("absolute", HEAD_STEPS, produced_on(half.engine)))
        c_files: dict[str, bytes] = {}
    else:
        half = Half(head_engine(), tflm_runner(parts.head, 1))
        golden = head_golden(parts, half, exact_rule())
        name = c_name(options.name)
        c_files = head_files(parts.head, board, name=name, cut_id=str(cut.cut_id), tables=parts.tables)
    manifest = head_manifest(parts, image, cut, options, half, calibrated=METHODS["tflite"])
    manifest = msgspec.structs.replace(manifest, golden=golden.vectors)
    return manifest, {half.entry: parts.head, TABLES_NAME: parts.tables, **golden.files, **c_files}
