"""LiteRT's reference kernels as the engine to equal, for exports that round FULLY_CONNECTED once."""

from __future__ import annotations

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from export.mcu.errors import ProofError
from export.mcu.network import Network
from export.mcu.oracle import Int8s, Truth, edge_input, from_physical, to_physical


class LitertOracle:
    """Runs a ``.tflite`` file with LiteRT's reference kernels; same face as ``Oracle``.

    Raises:
        ProofError: LiteRT refuses the model.
    """

    name = "LiteRT"

    def __init__(self, model: bytes, network: Network) -> None:
        self._network = network
        try:
            self._engine = Interpreter(
                model_content=model,
                experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
                experimental_preserve_all_tensors=True,
            )
            self._engine.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ProofError(f"LiteRT refuses the model: {error}; leave --rounding at tflm.") from error

    def run(self, inputs: tuple[Int8s, ...]) -> Truth:
        """Run once; see ``Oracle.run``."""
        for port, data in zip(self._network.inputs, inputs, strict=True):
            self._engine.set_tensor(port.tensor, edge_input(from_physical(data, port.view), port.dtype, port.quant))
        self._engine.invoke()
        tensors = {}
        for key, (index, view) in self._network.homes.items():
            raw = np.asarray(self._engine.get_tensor(index))
            tensors[key] = to_physical(raw.reshape(view.shape), view, self._network.values[key].shape)
        return Truth(inputs, tuple(tensors[port.key] for port in self._network.outputs), tensors)
