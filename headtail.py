"""The Python API of headtail: one lazy façade over the packages.

    from pathlib import Path

    import headtail

    whole = headtail.export("my_package:network", "rpi-5-4gb", headtail.ExportOptions(precision="int8", calibration=Path("photos")))
    cut = min(headtail.cuts(whole.folder).cuts, key=lambda cut: cut.payload_bytes)
    head, tail = headtail.cut(whole.folder, cut.names, out="build/pair")
    with headtail.serve_tail("mqtt://host", tail.folder), headtail.Offloader("mqtt://host", "pi-1", head=head) as offloader:
        answer = offloader.infer(picture, deadline_ms=100)

Where its time goes here, and where to cut it for another board and a link (`docs/planning.md`):

    print(headtail.profile(whole).whole.p50, "ms")
    found = headtail.plan(whole.folder, headtail.PlanOptions(link="20mbit/15ms", device="rpi-4b", deadline_ms=80))
    print(found.plan.reason)

A bottleneck instead of a cut (`docs/bottlenecks.md`):

    options = headtail.BottleneckOptions(method="slim", layer="layer2", data="photos/train", out=Path("pair"), time_budget_s=300)
    made = headtail.train_bottleneck("my_package:network", options)
    print(made.pair.head.folder, made.evaluation.ways[-1].accuracy)
    pairs = {"slim": (made.pair.head, made.pair.tail)}
    found = headtail.evaluate(pairs, made.whole, pictures, headtail.EvaluationOptions(data="photos/test"))

Nothing heavy is imported until a name is used: `import headtail` costs milliseconds and pulls in no torch.
`examples/python_api.py` runs all of it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from device_profiles.errors import EdgeError
from device_profiles.version import __version__

if TYPE_CHECKING:
    from device_profiles.load import list_boards, load_board
    from edge_runtime.artefact import open_artefact as load
    from edge_runtime.offloader import Offloader, OffloadOptions
    from edge_runtime.profiler import ProfileOptions
    from edge_runtime.profiler import profile_artefact as profile
    from edge_runtime.session import open_session
    from export.bottleneck_run import BottleneckOptions, train_bottleneck
    from export.cut_pair import cut_network as cut
    from export.cut_pair import list_cuts as cuts
    from export.evaluation import EvaluationOptions
    from export.evaluation import evaluate_pairs as evaluate
    from export.pipeline import export_model as export
    from export.planning import PlanOptions
    from export.planning import plan_network as plan
    from export.request import ExportOptions
    from orchestrator.broker import start_broker
    from orchestrator.deploy import deploy
    from orchestrator.tail_server import serve_tail

# name -> where it lives
_LAZY = {
    "BottleneckOptions": "export.bottleneck_run:BottleneckOptions",
    "EvaluationOptions": "export.evaluation:EvaluationOptions",
    "ExportOptions": "export.request:ExportOptions",
    "OffloadOptions": "edge_runtime.offloader:OffloadOptions",
    "Offloader": "edge_runtime.offloader:Offloader",
    "PlanOptions": "export.planning:PlanOptions",
    "ProfileOptions": "edge_runtime.profiler:ProfileOptions",
    "cut": "export.cut_pair:cut_network",
    "cuts": "export.cut_pair:list_cuts",
    "deploy": "orchestrator.deploy:deploy",
    "evaluate": "export.evaluation:evaluate_pairs",
    "export": "export.pipeline:export_model",
    "list_boards": "device_profiles.load:list_boards",
    "load": "edge_runtime.artefact:open_artefact",
    "load_board": "device_profiles.load:load_board",
    "open_session": "edge_runtime.session:open_session",
    "plan": "export.planning:plan_network",
    "profile": "edge_runtime.profiler:profile_artefact",
    "serve_tail": "orchestrator.tail_server:serve_tail",
    "start_broker": "orchestrator.broker:start_broker",
    "train_bottleneck": "export.bottleneck_run:train_bottleneck",
}

__all__ = [
    "BottleneckOptions",
    "EdgeError",
    "EvaluationOptions",
    "ExportOptions",
    "OffloadOptions",
    "Offloader",
    "PlanOptions",
    "ProfileOptions",
    "__version__",
    "cut",
    "cuts",
    "deploy",
    "evaluate",
    "export",
    "list_boards",
    "load",
    "load_board",
    "open_session",
    "plan",
    "profile",
    "serve_tail",
    "start_broker",
    "train_bottleneck",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import a name of the API when it is first used (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'headtail' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    module, attribute = _LAZY[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names of the API."""
    return sorted(__all__)


if __name__ == "__main__":  # python -m headtail
    importlib.import_module("orchestrator.cli").main()
