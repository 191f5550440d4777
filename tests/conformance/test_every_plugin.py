"""A plug-in is tested by existing: every registered planner, architecture and trainer keeps its contract."""

import pytest

from autoseg.conformance import check_plugin
from autoseg.plugins import KINDS, list_plugins

PLUGINS = [found for kind in KINDS for found in list_plugins(kind)]
WALKED = [found for found in PLUGINS if found.name != "swin_bob"]  # swin_unetr's network: the same, for 50 s more


@pytest.mark.parametrize("found", WALKED, ids=lambda found: f"{found.kind}-{found.name}")
def test_keeps_its_contract(found):
    if found.name == "swin_unetr":
        pytest.importorskip("monai", reason="Swin UNETR needs MONAI")
    findings = list(check_plugin(found))
    assert len(findings) > 3
    assert [f"{finding.check}: {finding.message}" for finding in findings if not finding.ok] == []


@pytest.mark.parametrize("found", PLUGINS, ids=lambda found: f"{found.kind}-{found.name}")
def test_says_what_it_is(found):
    assert found.summary.endswith("."), "the docstring starts with one whole sentence"
