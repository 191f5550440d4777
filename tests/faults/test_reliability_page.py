"""docs/reliability.md: every test that it names exists, every row has a proof or says that it is open."""

import ast
import re

import pytest

NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
GROUPS = 8


@pytest.fixture(scope="module")
def rows(repository):
    lines = (repository / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith(("| Promise", "| ---"))]


def test_every_named_test_exists(rows, repository):
    named = {match for row in rows for match in NAMED.findall(row)}
    assert len(named) > 40
    for file in {file for file, _ in named}:
        tree = ast.parse((repository / file).read_text(encoding="utf-8"))
        known = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        missing = {test for other, test in named if other == file} - known
        assert not missing, f"{file} has no {sorted(missing)}"


def test_every_row_has_a_proof_or_is_open(rows, repository):
    page = (repository / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^## \d\. ", page, flags=re.MULTILINE)) == GROUPS
    for row in rows:
        _, promise, proof, _ = row.split("|")
        assert promise.strip(), row
        assert NAMED.search(proof) or proof.strip().startswith("open: "), row


def test_every_record_that_is_promised_is_there(rows, repository):
    recorded = (repository / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    scripts = {script for row in rows for script in re.findall(r"benchmarks/\w+\.py", row)}
    assert scripts
    for script in scripts:
        assert (repository / script).is_file()
        assert re.search(rf"^## .*`python {script}", recorded, flags=re.MULTILINE), f"no figures of {script}"
