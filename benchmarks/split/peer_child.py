"""Runs in sc2bench's own environment (scripts/setup-sc2bench): its FP block, unmodified, on arrays from an .npz.

    python peer_child.py weights|strings|steps IN.npz OUT.npz

Imports torch, NumPy, sc2bench and `nets.py` beside it, nothing of headtail. Names of arrays: `state.<parameter of sc2bench's block>`,
`net.<parameter of the network>`, `picture` or `batch` (uint8 or float), `seed`, `beta`.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def import_sc2bench() -> ModuleType:
    """sc2bench's layers. Without CUDA's libraries torchvision's operators do not load; two must exist for its import."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [one for one in sys.modules if one.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        declare = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            declare.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_sc2bench.keeps = declare  # the schemas live as long as the library object
    return importlib.import_module("sc2bench.models.layer")


def block_of(arrays: Arrays) -> Any:
    """sc2bench's Entropic Student block with the weights of the file, or its own initial ones from the seed."""
    torch.manual_seed(int(arrays["seed"]))
    block = import_sc2bench().FPBasedResNetBottleneck(
        num_bottleneck_channels=int(arrays["latent_channels"]), num_target_channels=int(arrays["target_channels"])
    )
    state = block.state_dict()
    given = {key[6:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("state.")}
    for key, value in given.items():
        state[key] = value
    block.load_state_dict(state)
    return block


def weights(arrays: Arrays) -> Arrays:
    """Latents and target of given pictures; returns the block's weights too."""
    block = block_of(arrays).eval()
    with torch.no_grad():
        latent = block.encoder(torch.from_numpy(arrays["picture"]))
        medians = block.entropy_bottleneck._get_medians().detach().reshape(1, -1, 1, 1)
        target = block.decoder(torch.round(latent - medians) + medians)
    state = {f"state.{key}": value.numpy() for key, value in block.state_dict().items()}
    return {"latent": latent.numpy(), "target": target.numpy(), **state}


def strings(arrays: Arrays) -> Arrays:
    """Bytes of each picture as the block itself codes it."""
    block = block_of(arrays).eval()
    block.update(force=True)
    with torch.no_grad():
        found = block.encode(torch.from_numpy(arrays["picture"]))
    return {"sizes": np.array([sum(map(len, one)) for one in zip(*found["strings"], strict=True)])}


def steps(arrays: Arrays) -> Arrays:
    """Stage 1 of the published recipe on given batches: squared errors of two layers, beta times bits, auxiliary loss; Adam."""
    sys.path.insert(0, str(Path(__file__).parent))
    from nets import CifarResNet18

    block = block_of(arrays).train()
    nets = []
    for _ in range(2):
        net = CifarResNet18()
        net.load_state_dict({key[4:]: torch.from_numpy(v) for key, v in arrays.items() if key.startswith("net.")})
        nets.append(net.requires_grad_(False))
    teacher, student = nets[0].eval(), nets[1].train()
    likelihoods = []
    block.entropy_bottleneck.register_forward_hook(lambda module, given, result: likelihoods.append(result[1]))
    optimiser = torch.optim.Adam(block.parameters(), lr=1e-3)
    beta = float(arrays["beta"])
    found = []
    for number, batch in enumerate(arrays["batches"]):
        x = torch.from_numpy(batch)
        with torch.no_grad():
            early = teacher.layer3(teacher.layer2(teacher.layer1(torch.relu(teacher.bn1(teacher.conv1(x))))))
            late = teacher.layer4(early)
        torch.manual_seed(int(arrays["noise_seeds"][number]))
        target = block(x)
        ours = student.layer4(target)
        errors = [torch.nn.functional.mse_loss(a, b, reduction="sum") for a, b in ((target, early), (ours, late))]
        bits = -torch.log2(likelihoods.pop()).sum()
        auxiliary = block.entropy_bottleneck.loss()
        optimiser.zero_grad(set_to_none=True)
        (errors[0] + errors[1] + beta * bits + auxiliary).backward()
        optimiser.step()
        found.append([float(one.detach()) for one in (errors[0], errors[1], bits, auxiliary)])
    return {"terms": np.array(found)}


def main() -> None:
    command, source, target = sys.argv[1:]
    torch.set_num_threads(1)
    with np.load(source, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(target, **{"weights": weights, "strings": strings, "steps": steps}[command](arrays))


if __name__ == "__main__":
    main()
