"""Interop: trained models of nnU-Net in and out, their plans for other data sets, ONNX and OpenVINO out."""

from autoseg.interop.moving_plans import move_plans
from autoseg.interop.nnunet_export import export_nnunet
from autoseg.interop.nnunet_import import import_nnunet
from autoseg.interop.portable import export

__all__ = ["export", "export_nnunet", "import_nnunet", "move_plans"]
