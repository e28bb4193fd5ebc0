"""A trained bottleneck for a microcontroller: an int8 LiteRT head with its C project, and a tail that reads its integers.

The head's output keeps the latent's own grid (scale 1, zero point 0), so that an integer means what it meant in training. Its
layout is channels last. The integers of calibration pictures, which choose the tables, are those of TensorFlow Lite Micro.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch import nn

from device_profiles import DeviceProfile
from edge_runtime.artefact import write_artefact
from edge_runtime.codecs import TABLES_NAME
from edge_runtime.entropy import CountOptions, count_tables
from edge_runtime.manifest import TensorSpec
from export.assemble import METHODS, c_name
from export.convert import load_step
from export.cut_check import CutEqualityError
from export.cut_golden import make_golden
from export.cut_mcu import exact_rule, head_engine, head_files, tflm_runner
from export.head_graph import IMAGE, fold_head
from export.joined import Equality
from export.pair_runner import PairRunner
from export.source import ModelSource
from export.tail_graph import tail_to_onnx
from export.trained_pair import (
    PairFormError,
    Parts,
    TrainedPair,
    TrainedPairOptions,
    augmentation_of,
    base_manifest,
    calibration_of,
    calibration_pictures,
    make_cut,
    tail_files,
)
from export.verify import quantize
from split.gdn import GDN1
from split.inject import SplitNetwork
from split.latents import HIGH, LOW, IntegerHead, IntegerTail, fit_grid, input_batches
from split.training_data import PictureSet

HEAD_FILE = "model.tflite"


class _ChannelsLastTail(nn.Module):
    """A tail whose integers come channels last."""

    def __init__(self, tail: IntegerTail) -> None:
        super().__init__()
        self.decoder = nn.Sequential(_ToChannelsFirst(), tail.decoder)
        self.tail = tail.tail
        for name in ("step", "offset"):
            self.register_buffer(name, getattr(tail, name).permute(0, 2, 3, 1).contiguous())

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """int8 (batch, height, width, channels) to logits."""
        logits: torch.Tensor = self.tail(self.decoder(latent.to(torch.float32) * self.step + self.offset))[0]
        return logits


class _ToChannelsFirst(nn.Module):
    """(batch, height, width, channels) to (batch, channels, height, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same values in the other order."""
        return x.permute(0, 3, 1, 2)


def write_microcontroller_pair(
    network: SplitNetwork, calibration: PictureSet, board: DeviceProfile, options: TrainedPairOptions
) -> TrainedPair:
    """Quantise the head with LiteRT's tools, generate its C, count tables, and write head and tail.

    Args:
        network: Trained; its head has no GDN.
        calibration: As in `export.trained_pair.write_trained_pair`.
        board: A microcontroller.
        options: As there; the tail is ONNX.

    Raises:
        PairFormError: The head has a GDN.
        MissingDependencyError: LiteRT's converters or TensorFlow Lite Micro are not installed.
        EdgeError: As `export.cut_mcu.head_files`, for a head that does not fit the board.
    """
    if any(isinstance(one, GDN1) for one in network.bottleneck.encoder.modules()):
        raise PairFormError(
            f"Wanted a head of convolutions and ReLU for {board.name}, found a GDN, which has no int8 form there. Use --method slim "
            "or bottlefit."
        )
    augmentation = augmentation_of(options.preprocessing)
    network = network.cpu().eval()
    pictures = calibration_pictures(calibration, augmentation)
    grid = fit_grid(network, input_batches(calibration, augmentation))
    encoder = _pools_without_padding(fold_head(IntegerHead(network.bottleneck, grid)))
    converters = load_step("export.to_litert")
    example = torch.from_numpy(pictures[0])
    source = ModelSource(module=encoder, example=(example,), input_names=(IMAGE,))
    fp32 = converters.torch_to_tflite(source, channels_last_outputs=True)
    moved = [[np.ascontiguousarray(one.transpose(0, 2, 3, 1))] for one in pictures]
    head = converters.quantize_tflite(fp32, moved, output_range=(float(LOW), float(HIGH)))
    spec = load_step("export.tflite_model").read_tflite(head, where="the head").inputs[0]
    image = msgspec.structs.replace(spec, name=IMAGE, layout="nhwc", semantic="image")
    run = tflm_runner(head, 1)
    stored = [quantize(one[0], image) for one in moved]
    latents = [run([one])[0] for one in stored]
    plan = network.bottleneck.stream
    tables = count_tables(latents, CountOptions(1, plan.layers, plan.variants, plan.block))
    tail = tail_to_onnx(_ChannelsLastTail(IntegerTail(network, grid)), latents, options.tail_precision)
    return _write(Parts(head, tail, tables.data, stored, latents), image, board, options)


def _pools_without_padding(encoder: nn.Module) -> nn.Module:
    """Behind a ReLU a maximum is the same with zeros around as with nothing; kernels know padding with zeros alone."""
    if not isinstance(encoder, nn.Sequential):
        return encoder
    parts: list[nn.Module] = []
    for layer in encoder:
        if isinstance(layer, nn.MaxPool2d) and layer.padding and parts and isinstance(parts[-1], nn.ReLU):
            parts += [nn.ZeroPad2d(layer.padding), nn.MaxPool2d(layer.kernel_size, layer.stride)]
        else:
            parts.append(layer)
    return nn.Sequential(*parts).eval()


def _write(parts: Parts, image: TensorSpec, board: DeviceProfile, options: TrainedPairOptions) -> TrainedPair:
    cut = make_cut(parts, "nhwc")
    rows = [([one], [two]) for one, two in zip(parts.pictures[:3], parts.latents, strict=False)]
    golden = make_golden(rows, exact_rule())
    manifest = msgspec.structs.replace(
        base_manifest(options),
        target=board.id,
        engine=head_engine(),
        entry=HEAD_FILE,
        inputs=(image,),
        outputs=cut.tensors,
        preprocessing=options.preprocessing,
        calibration=calibration_of(parts, options, METHODS["tflite"]),
        golden=golden.vectors,
        cut=cut,
    )
    c_files = head_files(parts.head, board, name=c_name(options.name), cut_id=str(cut.cut_id), tables=parts.tables)
    head = write_artefact(
        options.out / "head", manifest, {HEAD_FILE: parts.head, TABLES_NAME: parts.tables, **golden.files, **c_files}
    )
    tail = write_artefact(options.out / "tail", *tail_files(parts, cut, options))
    pair = TrainedPair(head, tail, Equality(0, 0, ""))
    return replace(pair, equality=_equality(pair, parts.latents[:16]))


def _equality(pair: TrainedPair, latents: Sequence[np.ndarray]) -> Equality:
    """Through frame and tail against the tail alone: the frame carries the integers that the head made."""
    runner = PairRunner(pair.head, pair.tail)
    frames = [runner.frame([one]) for one in latents]
    found = [runner.outputs(frame)[0] for frame in frames]
    wanted = [runner.run_tail([one])[0] for one in latents]
    runner.close()
    equal = sum(a.tobytes() == b.tobytes() for a, b in zip(wanted, found, strict=True))
    if equal != len(latents):
        raise CutEqualityError(f"Wanted frames that carry the integers, found {equal} of {len(latents)} equal.")
    return Equality(equal, len(latents), "head on tflite-micro, tail on onnxruntime: frame against no frame")
