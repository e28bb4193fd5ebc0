"""What is trained in several parts and deployed as one: GDN with its constraints, convolution with normalisation."""

from torch import nn

from split.gdn import GDN1, FoldedGDN1
from split.units import ConvUnit, DeployedConv, LatentConv


def fold(module: nn.Module) -> nn.Module:
    """Replace every layer below (or at) a module by its deployed form, in place; returns the module."""
    if isinstance(module, GDN1):
        return FoldedGDN1(module)
    if isinstance(module, ConvUnit | LatentConv):
        return DeployedConv(module)
    for name, child in module.named_children():
        setattr(module, name, fold(child))
    return module
