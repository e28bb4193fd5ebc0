"""Every listed cut of EfficientNet-Lite0, ONNX and LiteRT: does head + tail give the bytes of the unsplit int8 network?"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import lite0
from benchmarks.data import imagenet_samples
from edge_runtime.preprocess import decode_image, prepare
from export.cut_check import Arrays, count_equal, run_cut, run_whole, sample_inputs
from export.cut_source import CutSource, open_cut_source
from split.cuts import find_cuts

PICTURES = 6  # real inputs for each cut
RANDOM = 2  # and random ones
ENGINES = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert"}  # engine -> distribution


def rows() -> list[dict[str, Any]]:
    """`cuts_equal` over both engines, and for each engine the share and the number of cuts."""
    found: list[dict[str, Any]] = []
    shares = []
    for engine, distribution in ENGINES.items():
        source = open_cut_source(lite0.whole(engine=engine))
        equal, listed, singles, inputs = measure(source)
        shares.append(equal / listed if listed else 0.0)
        peer = {"peer": f"unsplit network on {engine}", "peer_version": version(distribution)}
        what = f"of {listed} listed cuts of Lite0 int8 bit-equal on {inputs} inputs, {engine}, 1 thread"
        found.append(_row(f"cuts_equal.{engine}", what, 100 * shares[-1], "%", 100) | peer)
        found.append(
            _row(f"cuts_listed.{engine}", f"listed cuts of Lite0 int8, {singles} at one tensor", listed, "cuts", None)
        )
    whole = _row(
        "cuts_equal", "of all listed cuts of Lite0 bit-equal, worse of the two engines", 100 * min(shares), "%", 100
    )
    return [whole, *found]


def measure(source: CutSource) -> tuple[int, int, int, int]:
    """Check every cut; returns (equal cuts, listed cuts, of these at one tensor, inputs each)."""
    samples = _pictures(source) + sample_inputs(source.inputs, count=RANDOM)
    wanted = run_whole(source, samples)
    cuts = find_cuts(source.graph)
    equal = sum(
        count_equal(wanted, run_cut(source, cut, source.split(cut), samples)) == len(samples) for cut in cuts.cuts
    )
    return equal, len(cuts.cuts), len(cuts.single()), len(samples)


def _pictures(source: CutSource) -> list[Arrays]:
    """Evaluation pictures as the network takes them; random inputs stand in for a file without preprocessing."""
    if source.artefact is None or source.artefact.manifest.preprocessing is None:
        return sample_inputs(source.inputs, count=PICTURES, seed=1)
    samples = imagenet_samples()
    preprocessing = source.artefact.manifest.preprocessing
    chosen = samples.evaluation()[:: max(1, len(samples.evaluation()) // PICTURES)][:PICTURES]
    return [[prepare(decode_image(samples.pictures[i]), source.inputs[0], preprocessing)] for i in chosen]


def _row(name: str, what: str, value: float, unit: str, bar: float | None) -> dict[str, Any]:
    direction = "info" if bar is None else ">="
    return {"id": name, "what": what, "value": value, "unit": unit, "direction": direction, "bar": bar}


if __name__ == "__main__":
    import sys

    for path in sys.argv[1:]:
        print(path, measure(open_cut_source(Path(path))))
