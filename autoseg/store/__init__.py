"""Preprocessed cases on disk: compressed, checksummed, read by patches."""

from autoseg.store.case_store import CaseStore
from autoseg.store.records import CaseProperties, CaseRecord, Preprocessed
from autoseg.store.stored_case import StoredCase

__all__ = ["CaseProperties", "CaseRecord", "CaseStore", "Preprocessed", "StoredCase"]
