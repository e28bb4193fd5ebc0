"""What the agent costs with everything of a fleet: mTLS, key set, signed model from its store, jobs and desired states.

A fresh `edge-agent run` each time against a real broker; the start counts from the process's start until its birth has
arrived at the host, so it holds the TLS handshake too. Memory is the largest resident set after the frames.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.bench_rtt_tls import HOST, device_files, secured_broker
from benchmarks.lite0 import whole
from benchmarks.rows import ROOT
from edge_runtime.artefact import open_artefact, pack_artefact
from edge_runtime.broker_url import tls_url
from edge_runtime.gate import Gatekeeper, install_trust
from edge_runtime.messages import Topics
from edge_runtime.mqtt import LinkOptions, MqttLink
from edge_runtime.slots import SlotStore
from orchestrator.signing import first_trust, public_key, sign_artefact

STARTS = 7
FRAMES = 10
_TIMEOUT_S = 60
_FRAMES = """import time
import numpy


def frames():
    for number in range({count}):
        yield numpy.zeros({shape}, numpy.uint8)
        time.sleep(0.01)
    time.sleep(1.0)
"""


def prepare(state: Path) -> tuple[int, ...]:
    """A device that runs a signed Lite0; the shape of its pictures."""
    key = Ed25519PrivateKey.generate()
    install_trust(state / "trust.json", first_trust([public_key(key, "bench")], 1))
    copy = open_artefact(pack_artefact(open_artefact(whole()), state / "copy.zip"))
    sign_artefact(copy, [key], counter=1)
    store = SlotStore(state, Gatekeeper(state, "this", unsigned=False).ask)
    store.activate(store.adopt(open_artefact(copy.folder)))
    height, width = copy.manifest.inputs[0].shape[2:4]
    return (int(height), int(width), 3)


def run_once(command: list[str], environment: dict[str, str], host: str, topic: str) -> tuple[float, float]:
    """Seconds until the birth is here, and the largest resident set in MB (10^6 B)."""
    born = threading.Event()
    with MqttLink(host, LinkOptions(subscriptions=((topic, 1),)), lambda *_: born.set()) as link:
        link.wait_connected(_TIMEOUT_S)
        born.wait(0.3)  # the retained birth of the agent before
        born.clear()
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            if not born.wait(_TIMEOUT_S):
                raise RuntimeError("the agent was not born")
            start_s = time.perf_counter() - begun
            peak = 0.0
            while process.poll() is None:
                peak = max(peak, _peak_bytes(process.pid))
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
            _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors.decode()[-500:])
    return start_s, peak / 1e6


def _peak_bytes(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else 0.0


def rows() -> list[dict[str, object]]:
    """Rows agent.start and agent.rss."""
    with secured_broker() as (authority, access), tempfile.TemporaryDirectory(prefix="headtail-agent.") as folder:
        state = Path(folder, "state")
        state.mkdir()
        shape = prepare(state)
        Path(folder, "bench_frames.py").write_text(_FRAMES.format(count=FRAMES, shape=shape))
        device = tls_url(HOST, access.device_port, device_files(authority, "bench"))
        host = tls_url(HOST, access.service_port, authority.files("orchestrator"))
        command = [sys.executable, "-c", "from edge_runtime.cli import main; main()", "run", "--broker", device]
        command += ["--device", "bench", "--state", str(state), "--source", "bench_frames:frames", "--keep-all"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(ROOT)]), "OMP_NUM_THREADS": "1"}
        topic = Topics("default", "bench").up("birth")
        found = [run_once(command, environment, host, topic) for _ in range(STARTS)]
    what = f"edge-agent with mTLS, key set and a signed int8 Lite0 on onnxruntime {version('onnxruntime')}"
    start, peak = (float(np.median([one[which] for one in found])) for which in (0, 1))
    spread = statistics.pstdev(one[0] for one in found)
    return [
        _row(
            "start",
            f"{what}: process start to birth at the host, median of {STARTS} (spread {spread:.2f} s)",
            start,
            "s",
            0.8,
        ),
        _row("rss", f"{what}: largest resident set after {FRAMES} frames (MB = 10^6 B)", peak, "MB", 110),
    ]


def _row(name: str, what: str, value: float, unit: str, bar: float) -> dict[str, object]:
    return {"id": f"agent.{name}", "what": what, "value": value, "unit": unit, "direction": "<=", "bar": bar}


if __name__ == "__main__":
    for one in rows():
        print(one)
