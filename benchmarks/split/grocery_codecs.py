"""WebP and table-less JPEG in front of the grocery network, plain and tuned for them: what bottlenecks of protocol B compete with.

The network is EfficientNet-Lite0 as examples/grocery fine-tunes it (GROCERY_WEIGHTS names its weights). Tuned means the
classifier alone, on features of training pictures that went through the same codec: its whole fine-tuning for each quality is
hours on a CPU. A point takes a minute of one core; what lies in results/split_points is not measured again.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

from benchmarks.data import data_folder
from benchmarks.rows import RESULTS, ROOT, RowError
from edge_runtime.backends.onnxrt import session_options
from export.codec_points import FRAME_BYTES, CodecName, code_picture
from export.evaluate import pictures_of
from export.source import ModelSource
from export.to_onnx import torch_to_onnx
from split.training_data import DataOptions, PictureSet, open_pictures

POINTS = RESULTS / "split_points"
QUALITIES: dict[CodecName, tuple[int, ...]] = {"webp": (1, 10, 30), "jpeg": (5, 12, 25)}
SIZE, CLASSES, MEAN, STD = 160, 43, 127.0, 128.0
_STEPS, _LR, _DECAY = 300, 1e-3, 1e-4


@dataclass(frozen=True)
class CodecPoint:
    """One quality on the test pictures: bytes of each frame, and whether its class is right, plain and tuned."""

    codec: str
    quality: int
    sizes: np.ndarray
    plain: np.ndarray
    tuned: np.ndarray


def points() -> Iterator[CodecPoint]:
    """Every quality, measured where it is not there yet; quality 100 of "raw" are the pixels themselves.

    Raises:
        RowError: Something is to be measured and the network's weights are not there.
    """
    wanted = [("raw", 100), *((codec, quality) for codec, some in QUALITIES.items() for quality in some)]
    measure = None
    for codec, quality in wanted:
        path = POINTS / f"b-{codec}-q{quality}.npz"
        if not path.is_file():
            measure = measure or _Measure()
            measure.point(codec, quality, path)
            print(f"{path.name} is there", file=sys.stderr, flush=True)
        with np.load(path, allow_pickle=False) as file:
            count = len(file["sizes"])
            rights = (np.unpackbits(file[name])[:count].astype(bool) for name in ("plain", "tuned"))
            yield CodecPoint(codec, quality, file["sizes"].astype(np.float64), *rights)


class _Measure:
    """The network's features on onnxruntime, and the three sets of pictures."""

    def __init__(self) -> None:
        self._last, self._session = _network()
        options = DataOptions(SIZE, label_key="coarse_label", classes=CLASSES)
        folder = data_folder() / "data" / "grocery"
        self._sets = {name: open_pictures(folder / f"{name}.npz", options) for name in ("train", "val", "test")}

    def point(self, codec: str, quality: int, path: Path) -> None:
        """Measure one quality and write it down."""
        found = {name: self._features(data, codec, quality) for name, data in self._sets.items()}
        features, sizes = found["test"]
        labels = self._sets["test"].labels
        tuned = _tune(self._last, *((found[name][0], self._sets[name].labels) for name in ("train", "val")))
        with torch.no_grad():
            plain_right, tuned_right = ((net(features).argmax(1) == labels).numpy() for net in (self._last, tuned))
        note = {"codec": codec, "quality": quality, "tuned": "classifier only", "onnxruntime": onnxruntime.__version__}
        arrays = {
            "sizes": sizes.astype(np.uint32),
            "plain": np.packbits(plain_right),
            "tuned": np.packbits(tuned_right),
        }
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, note=np.array(json.dumps(note)), **arrays)
        partial.replace(path)

    def _features(self, data: PictureSet, codec: str, quality: int) -> tuple[torch.Tensor, np.ndarray]:
        features, sizes = [], []
        for picture in pictures_of(data):
            pixels, size = picture, picture.size
            if codec != "raw":
                coded = code_picture(picture, "webp" if codec == "webp" else "jpeg", quality)
                pixels, size = coded.pixels(), coded.size
            x = ((pixels.transpose(2, 0, 1)[None].astype(np.float32) - MEAN) / STD).astype(np.float32)
            features.append(self._session.run(None, {"image": x})[0])
            sizes.append(size + FRAME_BYTES)
        return torch.from_numpy(np.concatenate(features)), np.array(sizes)


def _network() -> tuple[nn.Linear, onnxruntime.InferenceSession]:
    """The classifier, and all before it."""
    if "GROCERY_WEIGHTS" not in os.environ:
        raise RowError("Wanted GROCERY_WEIGHTS to name what examples/grocery/fine_tune.py wrote, found it not set.")
    os.environ["GROCERY_WEIGHTS"] = str(Path(os.environ["GROCERY_WEIGHTS"]).resolve())
    sys.path.insert(0, str(ROOT / "examples" / "grocery"))
    from grocery import lite0

    module = lite0().module
    assert module is not None
    last = module._fc
    module._fc = nn.Identity()
    source = ModelSource(
        module=module, example=(torch.zeros(1, 3, SIZE, SIZE),), input_names=("image",), output_names=("features",)
    )
    data = torch_to_onnx(source)
    return last, onnxruntime.InferenceSession(data, session_options("all", 1), providers=["CPUExecutionProvider"])


def _tune(
    last: nn.Linear, train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor]
) -> nn.Linear:
    """The classifier for features behind a codec, the step that is best on validation pictures; where none is, as it was."""
    torch.manual_seed(0)
    tuned, best = nn.Linear(last.in_features, last.out_features), nn.Linear(last.in_features, last.out_features)
    for one in (tuned, best):
        one.load_state_dict(last.state_dict())
    optimiser = torch.optim.AdamW(tuned.parameters(), lr=_LR, weight_decay=_DECAY)
    top = _right(best, val)
    for step in range(_STEPS):
        rows = torch.randint(len(train[1]), (256,), generator=torch.Generator().manual_seed(step))
        features = functional.dropout(train[0][rows], 0.2)
        loss = functional.cross_entropy(tuned(features), train[1][rows], label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        found = _right(tuned, val) if step % 10 == 9 else 0.0
        if found > top:
            top = found
            best.load_state_dict(tuned.state_dict())
    return best


def _right(net: nn.Linear, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    with torch.no_grad():
        return float((net(data[0]).argmax(1) == data[1]).float().mean())


if __name__ == "__main__":
    for found in points():
        print(found.codec, found.quality, found.sizes.mean(), found.plain.mean(), found.tuned.mean())
