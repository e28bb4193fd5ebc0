"""A network of two thousand parameters, exported once a session to every kind of file."""

import numpy as np
import pytest
import torch
from torch import nn

from export.cache import Cache
from export.pipeline import export_model
from export.request import ExportOptions
from export.source import ModelSource


def _tiny_model(seed: int = 0) -> ModelSource:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return ModelSource(module=module.eval(), example=(torch.zeros(1, 3, 16, 16),), input_names=("picture",))


@pytest.fixture(scope="session")
def tiny_model():
    """Makes the network; another seed gives other weights."""
    return _tiny_model


@pytest.fixture(scope="session")
def tiny_calibration(tmp_path_factory):
    """An .npz with 48 labelled inputs of the network."""
    path = tmp_path_factory.mktemp("calibration") / "inputs.npz"
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((48, 3, 16, 16)).astype(np.float32)
    np.savez(path, picture=inputs, labels=generator.integers(0, 10, 48))
    return path


@pytest.fixture(scope="session")
def export_cache(tmp_path_factory):
    """A cache that the session shares, so that a step is run once."""
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory, export_cache, tiny_calibration):
    """Exports the network: exported("rpi-4b", precision="int8") -> Artefact."""

    def run(board, *, source=None, calibrated=False, calibration=None, **options):
        return export_model(
            source or _tiny_model(),
            board,
            ExportOptions(calibration=tiny_calibration if calibrated else calibration, **options),
            out=tmp_path_factory.mktemp("artefact") / "out",
            cache=export_cache,
        )

    return run
