"""Gzip streams that the memory cannot hold."""

import gzip

import pytest

from autoseg.errors import UserError
from autoseg.raw import compression


def test_a_stream_that_the_memory_cannot_hold_is_refused_before_anything_is_inflated(tmp_path, monkeypatch):
    content = gzip.compress(bytes(30_000_000))
    monkeypatch.setattr(compression, "_inflater", None)
    monkeypatch.setattr(compression, "available_memory", lambda: 20_000_000)
    with pytest.raises(UserError, match=r"a\.nii\.gz: the image takes 0\.0 GiB of memory, more than is free"):
        compression.inflate(content, tmp_path / "a.nii.gz", 29_000_000)


def test_memory_is_not_looked_up_for_small_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "available_memory", None)  # a dozen files under /proc and /sys
    content = gzip.compress(b"1" * 250_000)
    assert compression.inflate(content, tmp_path / "a.nii.gz", 250_000) == b"1" * 250_000


def test_what_no_stream_of_that_length_can_hold_is_not_a_matter_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "available_memory", lambda: 20_000_000)
    content = gzip.compress(b"short")
    assert compression.inflate(content, tmp_path / "a.nii.gz", 10**12) == b"short"  # too short: told by who asks


def test_memory_that_ends_while_inflating_is_told_as_that(tmp_path, monkeypatch):
    class Full:
        def decompress(self, _content, _most):
            raise MemoryError

    monkeypatch.setattr(compression, "_inflater", lambda: lambda wbits: Full())
    with pytest.raises(UserError, match="of memory, more than is free"):
        compression.inflate(gzip.compress(b"x"), tmp_path / "a.nii.gz", 100)
