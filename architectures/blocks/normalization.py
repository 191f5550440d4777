"""Batch or instance norm, chosen by name, for 2 or 3 dimensions; the parameters of norms."""

from __future__ import annotations

from torch import nn

NORMS = ("batch", "instance")
_CLASSES = {
    "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
    "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
}


def usual_norm(dims: int) -> str:
    """Return the norm for a network published with batch norm in 2D: 3D batches of two samples are too few for it."""
    return NORMS[dims - 2]


def make_norm(dims: int, kind: str, width: int) -> nn.Module:
    """Return the norm of `width` channels, with scale and shift; `kind` is one of NORMS."""
    layer = _CLASSES[kind][dims - 2]
    return layer(width) if kind == "batch" else layer(width, affine=True)


def norm_parameters(network: nn.Module) -> set[str]:
    """Return the names of the scales and shifts of all norms of a network."""
    kinds = (*(kind for pair in _CLASSES.values() for kind in pair), nn.GroupNorm, nn.LayerNorm)
    found = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, kinds))
    return {name for prefix, layer in found for name, _ in layer.named_parameters(prefix)}
