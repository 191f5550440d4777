"""Parameters of published configurations are counted from the networks, and said so wherever they are written."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from published_sizes import PUBLISHED, ours

from autoseg import plugins

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 0.003  # of published counts that are rounded, or count what is never used
IN_WORDS = tomllib.loads((ROOT / "docs" / "architectures.toml").read_text(encoding="utf-8"))
NEEDS_MONAI = ("swin_unetr", "swin_bob")


def shipped():
    """Name -> file of the networks that come with autoseg."""
    found = plugins.list_plugins("architecture")
    return {each.name: each.path for each in found if each.path.resolve().is_relative_to(ROOT / "architectures")}


def test_every_network_has_its_published_configuration():
    assert PUBLISHED.keys() == shipped().keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones_and_the_written_ones(name):
    if name in NEEDS_MONAI:
        pytest.importorskip("monai", reason="MONAI is not installed")
    counted, published = ours(name), PUBLISHED[name].count
    if published is None:
        assert IN_WORDS[name]["published"] == "not published"
    else:
        assert counted == pytest.approx(published, rel=TOLERANCE)
        millions = [float(number) for number in re.findall(r"\d+\.\d+", IN_WORDS[name]["published"])]
        assert any(abs(published / 1e6 - each) <= 0.06 for each in millions), IN_WORDS[name]["published"]
    said = ast.get_docstring(ast.parse(shipped()[name].read_text(encoding="utf-8")))
    written = [int(number.replace(" ", "")) for number in re.findall(r"\b\d{1,3}(?: \d{3})+\b", " ".join(said.split()))]
    assert counted in written or published in written
