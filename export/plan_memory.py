"""Peak memory of the device's process for each plan: measured where it was, predicted by a calibration, else at least."""

from dataclasses import dataclass, replace

from edge_runtime.artefact import Artefact
from export.cut_source import CutSource
from export.plan_inputs import PlaceTimes
from split.graph_work import work_of
from split.plan_heads import Candidate
from split.predict import Calibration


@dataclass(frozen=True)
class DeviceMemory:
    """What `of` fills in. `whole` is the measured peak of the whole network's process, bytes."""

    source: CutSource
    kernel_bytes: tuple[int, ...]  # of each operator of the graph
    whole: int | None
    calibration: Calibration | None
    remarks: tuple[str, ...]

    def of(self, candidate: Candidate) -> Candidate:
        """The same candidate with its peak, where there is one."""
        return replace(candidate, rss_bytes=self._peak(candidate))

    def _peak(self, candidate: Candidate) -> int | None:
        if candidate.method == "whole" and self.whole is not None:
            return self.whole
        known = self.calibration
        if known is None or known.memory is None or candidate.method not in ("whole", "raw"):
            return None
        graph = self.source.graph
        nodes, _ = graph.reach_back(candidate.tensors or graph.outputs)
        largest = max((self.kernel_bytes[index] for index in nodes), default=0)
        return known.memory.peak(weights=candidate.weight_bytes or 0, largest_kernel=largest)


def device_memory(source: CutSource, times: PlaceTimes, calibration: Calibration | None) -> DeviceMemory:
    """What is known of memory on the device.

    Args:
        source: The network.
        times: Of the device: a profile that was measured holds the peak of a fresh process.
        calibration: Of the device.
    """
    artefact: Artefact | None = source.artefact
    whole, remarks = None, []
    if times.memory is not None and times.memory.rss_bare is not None and times.memory.rss_peak is not None:
        whole = times.memory.rss_bare + times.memory.rss_peak
        remarks.append(f"Peak memory of the whole model's process: {whole / 1e6:.1f} MB, measured.")
    model = None if calibration is None else calibration.memory
    if model is not None:
        remarks.append(f"Peak memory is predicted from {model.samples} networks measured on the board.")
    elif whole is None:
        remarks.append(
            "Memory is weights and activations only, a lower bound: a calibration predicts the process's peak."
        )
    precision = "fp32" if artefact is None else artefact.manifest.precision
    sizes = tuple(0 if one is None else one.bytes for one in work_of(source.graph, precision=precision))
    return DeviceMemory(kernel_bytes=sizes, whole=whole, calibration=calibration, remarks=tuple(remarks), source=source)
