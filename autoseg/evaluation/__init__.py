"""Evaluation: overlap, surface distances and volumes per case and label; means and bootstrap intervals over cases."""

from autoseg.evaluation.case import METRICS, Scores, evaluate_case
from autoseg.evaluation.summary import bootstrap_interval, score_table, summarize, write_summary

__all__ = [
    "METRICS",
    "Scores",
    "bootstrap_interval",
    "evaluate_case",
    "score_table",
    "summarize",
    "write_summary",
]
