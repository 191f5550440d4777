"""The report holds what exists, says what does not, and lets no foreign text become markup."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from autoseg.errors import UserError
from autoseg.reporting import report
from autoseg.reporting.result_sections import _postprocessing
from autoseg.selection import find_best
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Checker(HTMLParser):
    """Collects text and faults of nesting."""

    def __init__(self):
        super().__init__()
        self.open, self.faults, self.text, self.ids, self.hrefs = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids.add(values.get("id"))
        self.hrefs += [values[key] for key in ("href", "src") if key in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.hrefs += [value for key, value in attrs if key in ("href", "src")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert not checker.faults
    assert not checker.open
    return checker, " ".join(checker.text)


@pytest.fixture(scope="module")
def full_report(full_workspace):
    find_best(NAME, full_workspace, ensembles=False, workers=1)
    return report(NAME, full_workspace)


def test_everything_is_shown(full_report):
    checker, words = read(full_report)
    for expected in (
        "3d_fullres", "Anterior", "Posterior", "95 %", "Best: hippocampus_", "Median: hippocampus_",
        "Worst: hippocampus_", "keep the largest component of all foreground together", "Selected:", "12.6 min",
        "Whole images fit into one patch.", "310 of 2,000", "5.60 M", "2.13.0", "case_9", "running",
    ):  # fmt: skip
        assert expected in words, expected
    links = {href[1:] for href in checker.hrefs if href.startswith("#")}
    assert links <= checker.ids


def test_nothing_is_loaded_from_elsewhere(full_report):
    checker, _ = read(full_report)
    assert all(href.startswith(("#", "data:image/png;base64,")) for href in checker.hrefs)
    source = full_report.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", source)
    assert source.count("data:image/png") == 6


def test_figures_come_from_the_artefacts(full_report, full_workspace):
    model = json.loads((full_workspace.model_folder(NAME) / "model.json").read_text())
    _, words = read(full_report)
    for candidate in model["selection"]["candidates"]:
        assert f"{candidate['foreground_dice']:.3f}" in words


def test_an_empty_workspace_says_what_is_missing(full_workspace, tmp_path):
    bare = replace(Workspace.open(tmp_path), raw=full_workspace.raw)
    _, words = read(report(NAME, bare))
    for expected in ("no fingerprint yet", "no plan yet", "No run has been started", "No model has been selected"):
        assert expected in words


def test_raw_data_may_be_gone(full_workspace, full_report, tmp_path):
    without = replace(full_workspace, raw=tmp_path)
    _, words = read(report(NAME, without, output=tmp_path / "report.html"))
    assert "Pictures need the raw images" in words
    assert "Anterior" in words


def test_unknown_data_set(tmp_path):
    with pytest.raises(UserError):
        report("Dataset999_Nothing", Workspace.open(tmp_path))


def test_broken_artefacts_are_named_and_left_out(full_workspace, tmp_path):
    copy = Workspace.open(tmp_path / "copy")
    shutil.copytree(full_workspace.root, copy.root)
    copy.plans_file(NAME, "default").write_text("{")
    _, words = read(report(NAME, copy))
    assert "default.json" in words
    assert "not valid JSON" in words


def test_foreign_text_is_escaped(full_workspace, tmp_path):
    copy = Workspace.open(tmp_path / "copy")
    shutil.copytree(full_workspace.root, copy.root)
    run = copy.run_folder(NAME, "default", "default", "2d", 0)
    record = json.loads((run / "run.json").read_text()) | {"device": "<script>alert(1)</script>"}
    (run / "run.json").write_text(json.dumps(record))
    source = report(NAME, copy).read_text(encoding="utf-8")
    assert "<script>alert" not in source
    assert "&lt;script&gt;alert" in source


def test_pictures_that_a_method_left_are_shown(full_workspace, tmp_path):
    workspace = Workspace.open(tmp_path / "copy")
    shutil.copytree(full_workspace.root, workspace.root)
    run = next((workspace.results / NAME).glob("*/fold_0"))
    Image.new("L", (4, 3), 128).save(run / "reconstruction_of<b>.png")
    content = (run / "reconstruction_of<b>.png").read_bytes()
    (run / "huge.png").write_bytes(b"0" * 3_000_000)
    page = report(NAME, workspace).read_text("utf-8")
    assert base64.b64encode(content).decode() in page
    assert "reconstruction of&lt;b&gt;" in page
    assert "huge" not in page


def test_every_row_of_the_post_processing_says_whose_dice_it_shows():
    before, after = {"a": 0.5, "b": 0.7, "foreground_mean": 0.6}, {"a": 0.6, "b": 0.7, "foreground_mean": 0.65}
    trial = {"rule": "keep_largest", "before": before, "after": after, "accepted": True}
    html = _postprocessing([{**trial, "names": ["a", "b"]}, {**trial, "names": ["a"]}])
    rows = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in html.split("<tr>")[1:]]
    assert rows[0] == "rule Dice of before after"
    assert rows[1] == "keep the largest component of all foreground together foreground mean 0.6000 0.6500 used"
    assert rows[2] == "keep the largest component of a a 0.5000 0.6000 used"
