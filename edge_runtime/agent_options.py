"""How an agent is set up."""

from pathlib import Path

import msgspec

from edge_runtime.offloader import OffloadOptions
from edge_runtime.pipeline import PlanChoice
from edge_runtime.probation import ProbationOptions
from edge_runtime.sample_options import SampleOptions


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """How `edge-agent` was started, so that another version can be started in the same way."""

    arguments: tuple[str, ...]  # after the program's name
    confirm_s: float = 60.0  # besides its probation, a new version has so long to come up, connect and confirm


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Who the device is and how it works.

    Without a key set in the state folder, unsigned artefacts run only when the broker is on this machine, or `insecure`.
    """

    broker: str
    offload_broker: str | None = None  # for requests to tails; the same one when null
    device: str
    state: Path
    board: str = "this"
    heartbeat_s: float = 5.0
    offload: OffloadOptions = OffloadOptions()
    publish_results: bool = True
    plan: PlanChoice | None = None  # follow a plan table; the deployed or given whole model is its local plan
    probation: ProbationOptions = ProbationOptions()
    insecure: bool = False
    launched: Launched | None = None  # null: not by `edge-agent`; then the agent cannot replace itself
    samples: SampleOptions | None = None  # pictures that may be sent where the model is unsure; null: none
