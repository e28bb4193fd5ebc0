"""What a device process costs: run in a fresh interpreter, prints one line of JSON.

python benchmarks/agent_probe.py start ARTEFACT...       imports the agent, opens the artefacts, runs each ten times
python benchmarks/agent_probe.py overhead ARTEFACT       our session against plain onnxruntime, interleaved
"""

import importlib
import json
import sys
import time
from pathlib import Path
from statistics import median

AGENT = ("edge_runtime.cli", "edge_runtime.agent")  # what `edge-agent run` imports
RUNS = 10
PAIRS = 400
WARM_UP = 20
_STATUS = Path("/proc/self/status")


def start(folders: list[str]) -> dict[str, float]:
    """Import what `edge-agent run` imports and open the artefacts.

    Returns:
        import_s and load_s: how long both took; peak_bytes: the largest resident set so far, after ten runs of each.
    """
    started = time.perf_counter()
    for module in AGENT:
        importlib.import_module(module)
    from edge_runtime.artefact import open_artefact
    from edge_runtime.session import open_session

    imported = time.perf_counter()
    sessions = [open_session(open_artefact(folder)) for folder in folders]
    loaded = time.perf_counter()
    import numpy as np

    for session in sessions:
        inputs = [np.zeros(spec.shape, spec.dtype) for spec in session.inputs]
        for _ in range(RUNS):
            session.run(inputs)
    return {"import_s": imported - started, "load_s": loaded - imported, "peak_bytes": peak_bytes()}


def overhead(folder: str, first: str) -> dict[str, float]:
    """Time `Session.run` and plain `InferenceSession.run` in turn on the same input.

    Returns:
        ratio: median over pairs of ours / plain; plain_ms and ours_ms: medians.
    """
    import numpy as np
    import onnxruntime as ort

    from edge_runtime.artefact import open_artefact
    from edge_runtime.backends.onnxrt import session_options
    from edge_runtime.session import open_session

    artefact = open_artefact(folder)
    engine = artefact.manifest.engine
    options = session_options(engine.optimisation, engine.threads)
    # Where memory lands differs between two sessions and moves the ratio by up to 1 %: callers take turns.
    ours = open_session(artefact) if first == "ours" else None
    plain = ort.InferenceSession(str(artefact.entry), options, providers=["CPUExecutionProvider"])
    ours = open_session(artefact) if ours is None else ours
    inputs = [np.random.default_rng(0).standard_normal(spec.shape).astype(spec.dtype) for spec in ours.inputs]
    feeds = {spec.engine_name: array for spec, array in zip(ours.inputs, inputs, strict=True)}
    names = [spec.engine_name for spec in ours.outputs]

    def run_ours() -> float:
        before = time.perf_counter()
        ours.run(inputs)
        return time.perf_counter() - before

    def run_plain() -> float:
        before = time.perf_counter()
        plain.run(names, feeds)
        return time.perf_counter() - before

    pairs: list[tuple[float, float]] = []
    for index in range(WARM_UP + PAIRS):
        if index % 2:  # neither is always the first
            other = run_plain()
            pairs.append((run_ours(), other))
        else:
            own = run_ours()
            pairs.append((own, run_plain()))
    pairs = pairs[WARM_UP:]
    return {
        "ratio": median(own / other for own, other in pairs),
        "ours_ms": median(own for own, _ in pairs) * 1e3,
        "plain_ms": median(other for _, other in pairs) * 1e3,
    }


def peak_bytes() -> int:
    """The largest resident set of this process so far (VmHWM)."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    print(json.dumps(start(sys.argv[2:]) if sys.argv[1] == "start" else overhead(*sys.argv[2:])))
