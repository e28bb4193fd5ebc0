"""A head and its tail in one process: picture to integers, integers to the bytes of a frame, frame to logits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact
from edge_runtime.codecs import check_heads, codec_of, codecs_of, encode_first
from edge_runtime.early_exit import ExitAnswer, ExitGate
from edge_runtime.preprocess import prepare
from edge_runtime.session import Session, open_session
from edge_runtime.wire import (
    FormatError,
    Header,
    decode_frame,
    decode_tensors,
    frame_layers,
    limits_of,
    pack_heads,
)
from export.verify import dequantize

U8 = npt.NDArray[np.uint8]
Result = TypeVar("Result")


class PairError(EdgeError):
    """Artefacts that are not a head and the tail that serves it."""


@dataclass
class PairRunner:
    """Runs a pair as a device and its host would, without a link between them.

    Attributes:
        head: The head's artefact.
        tail: One that accepts it.
        threads: Of both engines.
        layers: Of a progressive stream at most so many, the first ones, are sent; 0 for all.
        head_ms: CPU time of each run of the head so far, in ms.
        encode_ms: The same of the entropy coder and the frame.
        decode_ms: The same of taking the frame apart.
        tail_ms: The same of the tail.
    """

    head: Artefact
    tail: Artefact
    threads: int = 1
    layers: int = 0
    head_ms: list[float] = field(default_factory=list)
    encode_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    tail_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_pair(self.head, self.tail)
        self._code, self._codec = codec_of(self.head)
        self._codecs = codecs_of(self.tail)
        self._sessions: tuple[Session, Session] = (
            open_session(self.head, threads=self.threads),
            open_session(self.tail, threads=self.threads),
        )
        self._gate = ExitGate.of(self.head.manifest)
        self._limits = limits_of(self.tail.manifest.inputs)

    def input_of(self, picture: U8) -> np.ndarray:
        """The head's input for a picture, uint8 (height, width, 3).

        Raises:
            PairError: The head takes no pictures.
        """
        return picture_input(self.head, picture)

    def latents(self, tensor: np.ndarray) -> list[np.ndarray]:
        """What the head makes of its input."""
        return self.latents_and_exit(tensor)[0]

    def latents_and_exit(self, tensor: np.ndarray) -> tuple[list[np.ndarray], ExitAnswer | None]:
        """What the head makes of its input, and what its exit says; null for a head without one."""
        outputs = _timed(self.head_ms, lambda: self._sessions[0].run([tensor]))
        return self._gate.divide(outputs) if self._gate else (outputs, None)

    def frame(self, latents: Sequence[np.ndarray]) -> bytes:
        """The bytes that travel: header and layers."""
        return b"".join(_timed(self.encode_ms, lambda: self._pieces(latents)))

    def logits(self, frame: bytes) -> np.ndarray:
        """The tail's answer to a frame, float32 (1, classes).

        Raises:
            WireError: A frame that the tail does not accept.
        """
        return dequantize(self.outputs(frame)[0], self.tail.manifest.outputs[0])

    def outputs(self, frame: bytes) -> list[np.ndarray]:
        """The tail's outputs for a frame, as its engine stores them; raises as `logits`."""
        return self.run_tail(self.decode(frame))

    def decode(self, frame: bytes) -> list[np.ndarray]:
        """The integers in a frame; raises as `logits`."""
        return _timed(self.decode_ms, lambda: self._decoded(frame))

    def run_tail(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tail's outputs for integers that came without a frame."""
        return _timed(self.tail_ms, lambda: self._sessions[1].run(latents))

    def close(self) -> None:
        """Free the engines."""
        for session in self._sessions:
            session.close()

    def _pieces(self, latents: Sequence[np.ndarray]) -> list[bytes | memoryview]:
        header = Header(self._code, bytes.fromhex(self.head.key), self._codec.table_id)
        return frame_layers(header, encode_first(self._codec, latents, self.layers), pack_heads(latents), len(latents))

    def _decoded(self, data: bytes) -> list[np.ndarray]:
        frame = decode_frame(data, self._limits)
        cut = self.tail.manifest.cut
        if cut is None or frame.cut_id.hex() not in cut.accepts:
            raise FormatError(f"Wanted a frame of {cut and list(cut.accepts)}, found one of {frame.cut_id.hex()}.")
        check_heads(frame, self.tail.manifest.inputs)
        return decode_tensors(frame, self._codecs)


def check_pair(head: Artefact, tail: Artefact) -> None:
    """Whether the tail serves the head.

    Raises:
        PairError: Other roles, or a cut id that the tail does not accept.
    """
    cuts = head.manifest.cut, tail.manifest.cut
    if head.manifest.role != "head" or tail.manifest.role != "tail" or cuts[0] is None or cuts[1] is None:
        raise PairError(
            f"Wanted a head and a tail, found a {head.manifest.role} in {head.folder} and a {tail.manifest.role} in {tail.folder}."
        )
    if cuts[0].cut_id not in cuts[1].accepts:
        raise PairError(
            f"Wanted a tail that accepts the cut {cuts[0].cut_id} of {head.folder}, found one for {list(cuts[1].accepts)} in "
            f"{tail.folder}. Give the head and tail that were written together."
        )


def picture_input(artefact: Artefact, picture: U8) -> np.ndarray:
    """The input tensor of an artefact for a picture, uint8 (height, width, 3).

    Raises:
        PairError: It takes no pictures.
    """
    preprocessing = artefact.manifest.preprocessing
    if preprocessing is None:
        raise PairError(f"Wanted an artefact that takes pictures, found none in {artefact.folder}. Export it again.")
    return prepare(picture, artefact.manifest.inputs[0], preprocessing)


def _timed(times: list[float], work: Callable[[], Result]) -> Result:
    begun = time.process_time()
    result = work()
    times.append(1000 * (time.process_time() - begun))
    return result
