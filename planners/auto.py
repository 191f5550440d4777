"""The default planner: what fits the memory of a GPU, or what a CPU trains in the time there is."""

from __future__ import annotations

from autoseg.planning.timed import TimedPlanner
from autoseg.plugins import register


@register.planner("auto")
class Auto(TimedPlanner):
    """GPU: a residual encoder U-Net sized by traced memory. CPU or time budget: a small U-Net sized by timed steps."""
