"""Options of slim and its recipe: the task and its rate together, then int8, then the tail behind a fixed head."""

from dataclasses import dataclass

from split.bottleneck import BottleneckError, StreamPlan
from split.losses import TASK, TaskLoss
from split.stages import Stage, Targets
from split.units import Activation

_QUANTISED_SHARE = 0.2  # of the joint epochs, at least one
_QUANTISED_LR = 0.2  # of the joint part's learning rate


@dataclass(frozen=True)
class SlimOptions:
    """A small ReLU head, trained for the task and its bytes together.

    Attributes:
        beta: Weight of a bit: more for fewer bytes; 1e-4 to 1e-2 are usual.
        latent_channels: Of the latent.
        width: Channels of the head's first convolution; the later ones have twice as many.
        shrink: Pixels of the layer for each one of the latent, both directions: 1, 2 or 4.
        depth: Convolutions of the head at the latent's resolution.
        decoder_width: Channels of the decoder.
        decoder_depth: Residual blocks of the decoder.
        activation: Of the head: relu, prelu, or gdn, which has a quotient and therefore stays float.
        front: The last of the network's own first layers that the head keeps, with their training; without, all layers of the
            head are new.
        straight: The decoder learns from rounded latents; otherwise from latents with noise.
        epochs: Of the joint part and of the part with a fixed head.
        batch: Pictures for each step.
        lr: Learning rate of the joint part.
        last_lr: Learning rate of the part with a fixed head.
        tail_lr: Factor of the learning rates for what starts trained: the tail, and the kept first layers.
        fixed_norm: The network's own batch normalisations keep their statistics in training.
        task: Loss on logits; kind kd, ce or balanced.
        features: Weight of the relative feature error in the joint part; 0 for the task alone.
        targets: Whose feature errors count: all, cut (the layer that is replaced) or deep (those behind it).
        saliency: Weigh feature errors by how much the teacher's decision depends on the place.
        int8: The last fifth of the joint part trains the head as int8.
        variants: Entropy tables that a block of positions may choose from.
        block: Positions of such a block, a multiple of 32.
    """

    beta: float = 5e-4
    latent_channels: int = 8
    width: int = 24
    shrink: int = 1
    depth: int = 1
    decoder_width: int = 128
    decoder_depth: int = 2
    activation: Activation = "relu"
    front: str = ""
    straight: bool = True
    epochs: tuple[int, int] = (16, 4)
    batch: int = 64
    lr: float = 3e-3
    last_lr: float = 5e-4
    tail_lr: float = 0.3
    fixed_norm: bool = False
    task: TaskLoss = TASK
    features: float = 5.0
    targets: Targets = "all"
    saliency: bool = False
    int8: bool = False
    variants: int = 1
    block: int = 0

    @property
    def stream(self) -> StreamPlan:
        """One layer."""
        return StreamPlan((), self.variants, self.block)


@dataclass(frozen=True)
class ProgressiveOptions(SlimOptions):
    """One stream for all rates: any prefix of its layers decodes. Head and recipe are those of slim.

    Attributes:
        layers: Channels at which a layer of the stream ends, rising, the last one all of them.
        price_step: How much dearer a bit is with each layer less.
        whole: Share of the pictures that keep all layers in training, beside those whose draw is all of them.
    """

    beta: float = 2e-4
    latent_channels: int = 16
    layers: tuple[int, ...] = (4, 8, 12, 16)
    price_step: float = 2.0
    whole: float = 0.0

    @property
    def stream(self) -> StreamPlan:
        """As many layers as were asked for."""
        return StreamPlan(self.layers, self.variants, self.block)


@dataclass(frozen=True)
class CodebookOptions(SlimOptions):
    """The head sends indices of the nearest words of several codebooks; all else as slim.

    Attributes:
        books: Codebooks, that is channels of the latent on the wire.
        words: Of each book, 2 to 256.
        latent_channels: Before the books, which share them evenly.
    """

    latent_channels: int = 16
    books: int = 4
    words: int = 32


@dataclass(frozen=True)
class PositionsOptions(SlimOptions):
    """One strided convolution and a learned, fixed subset of its places; all else as slim, without its depth.

    Attributes:
        kept: Places that are sent.
    """

    latent_channels: int = 8
    depth: int = 0
    kept: int = 32


def slim_stages(recipe: SlimOptions) -> tuple[Stage, ...]:
    """Joint, (int8,) fixed.

    Raises:
        BottleneckError: A negative beta.
    """
    if not recipe.beta >= 0:
        raise BottleneckError(f"Wanted a beta of at least 0, found {recipe.beta}. Usual are 1e-4 to 1e-2.")
    joint, last = recipe.epochs
    quantised = max(1, round(joint * _QUANTISED_SHARE)) if recipe.int8 else 0
    stages = []
    if joint > quantised:
        stages.append(_joint("joint", joint - quantised, recipe.lr, recipe))
    if quantised:
        stages.append(_joint("int8", quantised, recipe.lr * _QUANTISED_LR, recipe))
    if last:
        fixed = Stage(
            "fixed",
            last,
            recipe.batch,
            lr=recipe.last_lr,
            cosine=True,
            task=recipe.task,
            tail_lr=recipe.tail_lr,
            fixes_encoder=True,
        )
        stages.append(fixed)
    return tuple(stages)


def _joint(name: str, epochs: int, lr: float, recipe: SlimOptions) -> Stage:
    return Stage(
        name,
        epochs,
        recipe.batch,
        lr=lr,
        cosine=True,
        beta=recipe.beta,
        task=recipe.task,
        features=recipe.features,
        targets=recipe.targets,
        saliency=recipe.saliency,
        tail_lr=recipe.tail_lr,
        quantises_encoder=name == "int8",
    )
