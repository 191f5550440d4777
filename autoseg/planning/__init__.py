"""Planning: from the fingerprint and the resources at hand to plans."""

from autoseg.planning.entry import plan
from autoseg.planning.frame import Frame, Sized
from autoseg.planning.planner import Planner
from autoseg.planning.resources import Resources

__all__ = ["Frame", "Planner", "Resources", "Sized", "plan"]
