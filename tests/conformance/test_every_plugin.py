"""A plug-in is tested by existing: every registered planner, architecture and trainer keeps its contract."""

import pytest

from autoseg.conformance import check_plugin
from autoseg.plugins import KINDS, list_plugins

PLUGINS = [found for kind in KINDS for found in list_plugins(kind)]
MONAI = {"swin_unetr", "swin_bob"}  # 50 s each, and tests/architectures/test_architecture_contract.py walks them, too
WALKED = [found for found in PLUGINS if found.name not in MONAI]


@pytest.mark.parametrize("found", WALKED, ids=lambda found: f"{found.kind}-{found.name}")
def test_keeps_its_contract(found):
    findings = list(check_plugin(found))
    assert len(findings) > 3
    assert [f"{finding.check}: {finding.message}" for finding in findings if not finding.ok] == []


@pytest.mark.parametrize("found", PLUGINS, ids=lambda found: f"{found.kind}-{found.name}")
def test_says_what_it_is(found):
    assert found.summary.endswith("."), "the docstring starts with one whole sentence"
