"""Evaluation: overlap, surface distances and volumes per case and label; means and bootstrap intervals over cases."""

from autoseg.evaluation.case import METRICS, Scores, evaluate_case
from autoseg.evaluation.folders import Evaluation, EvaluationFailed, evaluate
from autoseg.evaluation.summary import bootstrap_interval, score_table, summarize, write_summary

__all__ = [
    "METRICS",
    "Evaluation",
    "EvaluationFailed",
    "Scores",
    "bootstrap_interval",
    "evaluate",
    "evaluate_case",
    "score_table",
    "summarize",
    "write_summary",
]
