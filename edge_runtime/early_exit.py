"""The exit of a head: logits beside the latent, which answer on the device where they are sure, or where nobody else does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.manifest import Manifest
from edge_runtime.wire import FormatError


@dataclass(frozen=True, slots=True)
class ExitAnswer:
    """What the exit says of one input.

    Attributes:
        logits: As the head gave them, (1, classes).
        confidence: Largest probability after calibration, in (0, 1].
        leaves: Whether it is sure enough, so that nothing need be sent.
    """

    logits: np.ndarray
    confidence: float
    leaves: bool


class ExitGate:
    """The exit of one head, as its manifest describes it."""

    def __init__(self, manifest: Manifest) -> None:
        policy = manifest.early_exit
        assert policy
        self._policy = policy
        self._index = [spec.name for spec in manifest.outputs].index(policy.output)

    @staticmethod
    def of(manifest: Manifest) -> "ExitGate | None":
        """The gate of a head that has an exit."""
        return ExitGate(manifest) if manifest.early_exit else None

    def divide(self, outputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], ExitAnswer]:
        """The latents, which are sent where the exit is not sure, and the exit's answer.

        Args:
            outputs: Of the head, in the manifest's order.

        Raises:
            FormatError: Logits that are not finite.
        """
        logits = outputs[self._index]
        values = logits.reshape(-1).astype(np.float64) / self._policy.temperature
        if not np.isfinite(values).all():
            raise FormatError(
                f"Wanted finite logits of the exit {self._policy.output!r}, found others. Export it again."
            )
        confidence = float(1 / np.exp(values - values.max()).sum())
        latents = [one for index, one in enumerate(outputs) if index != self._index]
        return latents, ExitAnswer(logits, confidence, confidence >= self._policy.threshold)
