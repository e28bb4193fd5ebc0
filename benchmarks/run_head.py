"""Run an artefact on many inputs and keep the bytes of its outputs; needs the device packages and numpy alone.

    python benchmarks/run_head.py ARTEFACT INPUTS.npz OUTPUTS.npz

INPUTS holds one array for each input, in order, with the samples stacked first; OUTPUTS is alike.
"""

import sys
from pathlib import Path

import numpy as np

from edge_runtime.artefact import open_artefact
from edge_runtime.session import open_session


def run_head(artefact: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Run every sample at batch 1.

    Args:
        artefact: Its folder.
        inputs: One array for each input, shape (samples, *shape of the input).

    Returns:
        One array for each output, shape (samples, *shape of the output).
    """
    session = open_session(open_artefact(artefact))
    answers = [session.run([np.ascontiguousarray(one) for one in sample]) for sample in zip(*inputs, strict=True)]
    session.close()
    return [np.stack(column) for column in zip(*answers, strict=True)]


def main(artefact: str, source: str, target: str) -> None:
    """Read inputs, run, write outputs."""
    with np.load(source, allow_pickle=False) as content:
        inputs = [content[f"arr_{index}"] for index in range(len(content.files))]
    outputs = run_head(Path(artefact), inputs)
    with Path(target).open("wb") as stream:
        np.savez(stream, *outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
