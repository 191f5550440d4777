"""Reporting: one self-contained HTML file on data, plan, training, cross-validation, selection and test results."""

from autoseg.reporting.document import report

__all__ = ["report"]
