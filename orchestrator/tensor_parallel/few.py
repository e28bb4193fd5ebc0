"""float32 products of a matrix with few tokens, by our C (csrc/few.c): weights are read from memory once for all tokens.

A token's values do not depend on how many share the call.
"""

import ctypes
from typing import Any

import torch

FEW = 16  # tokens; a matrix product of torch is as fast with more

Tensor = Any  # torch is untyped here


def product(library: ctypes.CDLL, x: Tensor, weights: Tensor) -> Tensor:
    """The product x W^T, (n, columns) -> (n, rows)."""
    y = torch.empty((x.shape[0], weights.shape[0]))
    return _into(library.ht_few_product, y, x, weights)


def mix(library: ctypes.CDLL, x: Tensor, weights: Tensor) -> Tensor:
    """The product x W, (n, rows) -> (n, columns)."""
    y = torch.empty((x.shape[0], weights.shape[1]))
    return _into(library.ht_few_mix, y, x, weights)


def _into(function: Any, y: Tensor, x: Tensor, weights: Tensor) -> Tensor:  # noqa: ANN401 - a foreign function
    x, weights = x.contiguous(), weights.contiguous()
    shape = (ctypes.c_int64 * 3)(weights.shape[0], weights.shape[1], x.shape[0])
    function(weights.data_ptr(), x.data_ptr(), y.data_ptr(), shape, torch.get_num_threads())
    return y
