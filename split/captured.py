"""A training step as one CUDA graph: thousands of small kernels start at once instead of one after another.

Networks of small pictures keep a GPU waiting for its next kernel. What is captured is the same step with the same numbers:
random numbers come from the generator that was seeded before each replay, the learning rate is a tensor.
"""

from collections.abc import Callable

import torch

Terms = dict[str, torch.Tensor]


class CapturedStep:
    """Replays a step on new pictures and labels of the same shapes.

    Args:
        step: From pictures and labels to the terms of the loss; the optimiser's step included. It waits for nothing that the
            GPU computes and has run a few times, so that every state that it makes is there.
        x: Pictures of the first batch.
        labels: Of the same.
    """

    def __init__(
        self, step: Callable[[torch.Tensor, torch.Tensor], Terms], x: torch.Tensor, labels: torch.Tensor
    ) -> None:
        self._x, self._labels = x.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(x.device)
        with torch.cuda.device(x.device), torch.cuda.graph(self._graph):
            self._terms = step(self._x, self._labels)

    def __call__(self, x: torch.Tensor, labels: torch.Tensor) -> Terms:
        """The terms of this batch's loss; they are overwritten by the next call."""
        self._x.copy_(x)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._terms
