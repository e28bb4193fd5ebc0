import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from export.trained_manifest import TrainedPairOptions
from export.trained_pair import augmentation_of, write_trained_pair
from split.bottlefit import BottleFit, BottleFitOptions, bottlefit_stages
from split.distill import TrainOptions, train
from split.entropic_student import EntropicOptions, EntropicStudent, entropic_stages
from split.inject import inject, trace_network
from split.training_data import PictureSet


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def colour():
    """The module colour_network."""
    path = Path(__file__).with_name("colour_network.py")
    spec = importlib.util.spec_from_file_location("colour_network", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["colour_network"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def picture_set(colour):
    """Makes a set of pictures."""

    def make(count=48, seed=5):
        return PictureSet.of_arrays(*colour.colours(count, seed), classes=colour.LABELS)

    return make


@pytest.fixture(scope="session")
def trained(colour, picture_set, tmp_path_factory):
    """Networks with a trained bottleneck: "entropic" behind layer2, "bottlefit" behind layer3."""
    torch.manual_seed(3)
    recipes = {
        "entropic": (
            "layer2",
            lambda at: EntropicStudent(at.shape[0], EntropicOptions(6, at.stride)),
            entropic_stages(0.02, epochs=(8, 4), batches=(16, 16)),
        ),
        "bottlefit": (
            "layer3",
            lambda at: BottleFit(at.shape[0], BottleFitOptions(channels=3, stride=at.stride)),
            bottlefit_stages(epochs=(8, 4), batch=16),
        ),
    }
    found = {}
    for name, (layer, make, stages) in recipes.items():
        trace = trace_network(colour.trained_network(), torch.zeros(1, 3, 32, 32))
        student, teacher = inject(trace, layer, make, size=(32, 32))
        options = TrainOptions(folder=tmp_path_factory.mktemp(name), augmentation=augmentation_of(colour.PREPROCESSING))
        train(student, teacher, picture_set(96, seed=2), stages, options)
        found[name] = student
    return found


@pytest.fixture(scope="session")
def pairs(trained, colour, picture_set, tmp_path_factory):
    """Both networks as pairs; the tail of "bottlefit" is int8."""
    found = {}
    for name, precision in (("entropic", "fp32"), ("bottlefit", "int8")):
        options = TrainedPairOptions(
            out=tmp_path_factory.mktemp("pair") / name,
            name=name,
            source_sha256="0" * 64,
            preprocessing=colour.PREPROCESSING,
            labels=colour.LABELS,
            tail_precision=precision,
        )
        found[name] = write_trained_pair(trained[name], picture_set(96, seed=2), options)
    return found
