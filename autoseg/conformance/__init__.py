"""Conformance: whether a plug-in keeps its contract, told check by check."""

from autoseg.conformance.findings import Finding
from autoseg.conformance.plugin import check_plugin, find_plugins

__all__ = ["Finding", "check_plugin", "find_plugins"]
