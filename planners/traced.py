"""Any architecture, sized by the traced memory of its own training step."""

from __future__ import annotations

from autoseg.planning.traced import TracedPlanner
from autoseg.plugins import register


@register.planner("traced")
class Traced(TracedPlanner):
    """Patch and batch as large as the memory at hand holds, for any `--architecture`; nnU-Net's recipe otherwise."""
