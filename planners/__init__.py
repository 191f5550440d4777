"""Planners, one per file; found by name, see `autoseg.plugins`."""
