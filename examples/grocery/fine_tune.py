"""Fine-tune EfficientNet-Lite0 on the coarse classes of the Grocery Store Dataset: the teacher of the shipped pairs.

python fine_tune.py --data FOLDER --out build/grocery/lite0.pt            every layer; minutes on a GPU
python fine_tune.py --data FOLDER --freeze 16 --epochs 60                 only the last layer; for a CPU

FOLDER holds train.npz, val.npz and test.npz (`data`, `offset`, `coarse_label`). The epoch is chosen on val.npz; test.npz
is looked at once, at the end. Beside the weights stands lite0.json: the command, the seed, and what was measured.
"""

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import torch
from grocery import LABELS, MEAN, SIZE, STD, untrained
from torch import nn
from torch.nn import functional

from split.augment import Augmentation, augment, centre, draw
from split.training_data import DataOptions, PictureSet, open_pictures

BATCH = 64


def main():
    options = arguments()
    torch.manual_seed(options.seed)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    train, val, test = (pictures(Path(options.data, f"{name}.npz")) for name in ("train", "val", "test"))
    network = untrained().to(device)
    trunk, rest = cut(network, options.freeze)
    if options.freeze:
        views = [features(trunk, train, device, flip=flip) for flip in (False, True)]
        batches = lambda rows, seed: torch.where(  # noqa: E731 - one expression
            draw(len(rows), seed).flip[:, None, None, None], views[1][rows], views[0][rows]
        ).to(device, torch.float32)
    else:
        kind = Augmentation(SIZE, "crop", options.padding, (MEAN,) * 3, (STD,) * 3)
        batches = lambda rows, seed: augment(train.images[rows].to(device), kind, draw(len(rows), seed))  # noqa: E731
    best = fit(network, rest, batches, train.labels, val, options, device)
    network.load_state_dict(best)
    result = {
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": options.seed,
        "torch": torch.__version__,
        "device": device,
        "val_accuracy": accuracy(network, val, device),
        "test_accuracy": accuracy(network, test, device),
        "test_pictures": len(test),
    }
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", default="build/grocery/lite0.pt")
    parser.add_argument(
        "--freeze",
        type=int,
        default=0,
        help="how many of the 16 blocks stay as they are; 16: the head's convolution too",
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument(
        "--lr", type=float, default=0.0, help="largest learning rate; 3e-4, or 3e-3 for the last layer alone"
    )
    parser.add_argument("--padding", type=int, default=16, help="of the random crop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="")
    return parser.parse_args()


def pictures(path: Path) -> PictureSet:
    return open_pictures(path, DataOptions(SIZE, label_key="coarse_label", classes=len(LABELS)))


def cut(network: nn.Module, blocks: int):
    """The frozen part and the part that is trained, as functions of pictures and of the frozen part's output."""

    def trunk(x):
        x = functional.relu6(network._bn0(network._conv_stem(x)))
        for block in network._blocks[:blocks]:
            x = block(x)
        return x

    def top(x):
        for block in network._blocks[blocks:]:
            x = block(x)
        return network._avg_pooling(functional.relu6(network._bn1(network._conv_head(x))))

    def last(x):
        return network._fc(functional.dropout(x.flatten(1), 0.2, network.training))

    if blocks == len(network._blocks):
        return lambda x: top(trunk(x)), last
    return trunk, (lambda x: last(top(x))) if blocks else (lambda x: last(top(trunk(x))))


def features(trunk, data: PictureSet, device: str, *, flip: bool) -> torch.Tensor:
    found = []
    with torch.no_grad():
        for x in inputs(data, device):
            found.append(trunk(x.flip(3) if flip else x).to("cpu", torch.float16))
            print(f"\rfrozen part: {len(found) * BATCH} of {len(data)}", end="", file=sys.stderr)
    return torch.cat(found)


def inputs(data: PictureSet, device: str):
    plain = Augmentation(SIZE, "none", 0, (MEAN,) * 3, (STD,) * 3)
    for first in range(0, len(data), BATCH):
        yield centre(data.images[first : first + BATCH].to(device), plain)


def fit(network, rest, batches, labels, val, options, device):
    """Train, and return the weights of the epoch that is best on `val`."""
    trained = [network._blocks[options.freeze :], network._conv_head, network._bn1, network._fc]
    if not options.freeze:
        trained = [network]
    elif options.freeze == len(network._blocks):
        trained = [network._fc]
    weights = [one for module in trained for one in module.parameters()]
    network.eval().requires_grad_(False)
    for one in weights:
        one.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.02)
    steps, best, best_accuracy = len(labels) // BATCH, None, -1.0
    total = steps * options.epochs
    top = options.lr or (3e-3 if trained == [network._fc] else 3e-4)
    for epoch in range(options.epochs):
        begun = time.monotonic()
        network.training = True
        for module in trained:
            module.train()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(options.seed * 1000 + epoch))
        for step in range(steps):
            done = (epoch * steps + step) / total
            optimiser.param_groups[0]["lr"] = top * min(1, 10 * done + 0.01) * (1 + math.cos(math.pi * done)) / 2
            rows = order[step * BATCH : (step + 1) * BATCH]
            logits = rest(batches(rows, (options.seed * 1000 + epoch) * 10_000 + step))
            loss = functional.cross_entropy(logits, labels[rows].to(device), label_smoothing=0.1)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        found = accuracy(network, val, device)
        print(
            f"epoch {epoch + 1}: loss {float(loss):.3f}, val {found:.4f}, {time.monotonic() - begun:.0f} s",
            file=sys.stderr,
        )
        if found >= best_accuracy:
            best, best_accuracy = copy.deepcopy(network.state_dict()), found
    return best


def accuracy(network: nn.Module, data: PictureSet, device: str) -> float:
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(x).argmax(1).cpu() for x in inputs(data, device)])
    return float((found == data.labels).float().mean())


if __name__ == "__main__":
    main()
