"""An exit behind a head: the latents stay, the logits are those of the trained exit."""

import io

import numpy as np
import onnxruntime
import torch

from export.exit_graph import EXIT, add_exit
from split.early_exit import ExitClassifier, ExitOptions


def test_exit_leaves_the_latents_and_computes_its_logits():
    torch.manual_seed(1)

    class Head(torch.nn.Module):
        def forward(self, x):
            return torch.clamp(torch.round(x), -128, 127).to(torch.int8)

    file = io.BytesIO()
    torch.onnx.export(
        Head(),
        (torch.zeros(1, 4, 6, 6),),
        file,
        input_names=["image"],
        output_names=["latent"],
        opset_version=18,
        dynamo=False,
    )
    leaving = ExitClassifier(4, 3, ExitOptions(width=8))
    leaving(torch.randint(-9, 9, (32, 4, 6, 6)))  # statistics
    leaving.eval()
    session = onnxruntime.InferenceSession(add_exit(file.getvalue(), leaving))
    assert [one.name for one in session.get_outputs()] == ["latent", EXIT]
    for _ in range(4):
        x = (torch.randn(1, 4, 6, 6) * 5).numpy()
        latent, logits = session.run(None, {"image": x})
        assert np.array_equal(latent, np.clip(np.round(x), -128, 127).astype(np.int8))
        with torch.no_grad():
            assert np.allclose(logits, leaving(torch.from_numpy(latent)).numpy(), atol=1e-4)
