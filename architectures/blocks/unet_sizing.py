"""How plans size the U-Nets of nnU-Net. Without torch, so that nnU-Net's plans are made without it.

Sources: Isensee et al. 2021, Nature Methods 18, 203-211; Isensee et al. 2024, nnU-Net Revisited, arXiv:2404.09556.
"""

from __future__ import annotations

from autoseg.network_sizing import NetworkSizing
from autoseg.plans import NetworkSpec

BLOCKS = (1, 3, 4, 6)  # of a residual encoder's first stages; deeper stages repeat the last entry


class PlainUNetSizing(NetworkSizing):
    """nnU-Net's plain U-Net: two convolutions in every stage."""

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Two convolutions in every stage."""
        stages = len(spec.features)
        return spec.model_copy(update={"blocks_encoder": (2,) * stages, "blocks_decoder": (2,) * (stages - 1)})


class ResidualEncoderSizing(NetworkSizing):
    """nnU-Net's U-Net with a residual encoder."""

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """1, 3, 4, 6, 6, ... residual blocks in the encoder, one convolution per decoder stage."""
        stages = len(spec.features)
        blocks = (*BLOCKS, *[BLOCKS[-1]] * stages)[:stages]
        return spec.model_copy(update={"blocks_encoder": blocks, "blocks_decoder": (1,) * (stages - 1)})
