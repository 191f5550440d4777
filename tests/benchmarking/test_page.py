"""The page: honest words, every name escaped, charts and matrix there."""

import re
from html.parser import HTMLParser

import pytest

from autoseg.benchmarking.judging import conclude
from autoseg.benchmarking.tables import run_row, seconds_of_a_step
from autoseg.reporting.charts import scatter_chart

DATASET = "Dataset004_Hippocampus"
VOID = {"meta", "br", "img", "line", "circle", "rect", "polyline", "path"}


class Balanced(HTMLParser):
    """Raises where a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def page_of(done):
    text = (done.folder / "index.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text


def test_a_page_with_a_winner(campaign):
    done = campaign("plain_unet", "unet", "swin_unet", recipes="common")
    text = page_of(done)
    assert "plain_unet is best on this split with a mean Dice of" in text
    assert ">a winner</span>" in text
    assert text.count("<figure") == 5
    assert "Dice by label" in text
    assert re.search(r'<span class="good" title="plain_unet minus unet: \+0\.\d+, \+0\.\d+ to \+0\.\d+', text)
    assert not re.search(r"(src|href)=.?(https?:|/)", text)  # self-contained


def test_a_page_without_a_winner(campaign):
    done = campaign("plain_unet", "unet", seeds=1)
    text = page_of(done)
    assert ">no winner</span>" in text
    assert "No winner. " in text
    assert "add seeds (--seeds 3)" in text


def test_seconds_of_a_step_are_those_of_the_runs():
    on_cpu = {"seconds": 1.3, "clock": "cpu", "threads": 2}
    runs = [
        {"steps": 100, "train_seconds": 90.0, "train_cpu_seconds": 40.0},
        {"steps": 300, "train_seconds": 90.0, "train_cpu_seconds": 80.0},
    ]
    assert seconds_of_a_step(on_cpu, runs) == pytest.approx(0.15)  # (40 + 80) / 2 / 400
    assert seconds_of_a_step({**on_cpu, "clock": "device"}, runs) == pytest.approx(0.45)
    assert seconds_of_a_step(on_cpu, []) == 1.3
    assert seconds_of_a_step(on_cpu, [{"steps": 5, "train_seconds": 1.0}]) == 1.3  # of a version that did not count it


def test_tables_have_the_seconds_of_the_runs(campaign):
    done = campaign("plain_unet", "unet", seeds=1)
    rows = [run_row(done.record, run) for run in done.record["runs"].values()]
    assert [row["step_seconds"] for row in rows] == [0.009, 0.009]  # 0.9 s of 100 steps, not the 0.1 and 0.2 timed
    waiting = {**next(iter(done.record["runs"].values())), "status": "waiting"}
    assert run_row(done.record, waiting)["step_seconds"] == 0.1


def test_equal_time_that_came_out_unequal_is_told(campaign):
    done = campaign("plain_unet", "unet", equal="time", seeds=1)
    assert "came out unequal" not in page_of(done)
    for key, run in done.record["runs"].items():
        run["train_cpu_seconds"] = 37.0 if "/plain_unet-" in key else 63.0
    verdicts, _ = conclude(done.record)
    assert any("unequal: for a budget of 20 s, training took 37 s (plain_unet) to 63 s (unet)" in note
               for note in verdicts[0].notes)  # fmt: skip
    assert "came out unequal" in page_of(done)
    done.record["question"]["equal"] = "steps"
    assert not any("unequal" in note for note in conclude(done.record)[0][0].notes)


def test_unequal_data_at_equal_steps_are_told(campaign):
    done = campaign("plain_unet", "unet", seeds=1)
    assert done.record["question"]["equal"] == "steps"
    assert not any("equal data" in note for note in conclude(done.record)[0][0].notes)
    for key, plan in done.record["plans"].items():
        plan.update(patch_size=[32, 16, 16] if key.endswith("/unet") else [16, 16, 16], batch_size=2)
    verdicts, _ = conclude(done.record)
    assert any("a step sees 8,192 voxels (plain_unet) to 16,384 voxels (unet)" in note for note in verdicts[0].notes)
    assert "<th>million voxels per step</th>" in re.sub(r"<th[^>]*>", "<th>", page_of(done))
    done.record["question"]["equal"] = "time"
    assert not any("equal data" in note for note in conclude(done.record)[0][0].notes)


def test_own_recipes_are_shown_as_they_were_used(campaign):
    text = page_of(campaign("plain_unet", "swin_unet"))
    assert "Own recipes" in text
    assert re.search(r"swin_unet \(own recipe\)</td>.*?weight_decay=0\.05", text)
    assert "Own recipes" not in page_of(campaign("plain_unet", "unet", name="d"))


def test_names_are_escaped(campaign):
    done = campaign("plain_unet", "unet")
    evil = "<script>alert('x')</script>"
    content = done.record.content
    content["name"] = evil
    for entry in content["entries"].values():
        entry["name"] += evil
    content["skipped"][f"{DATASET}/{evil}"] = evil
    content["question"]["settings"] = {evil: evil}
    for run in content["runs"].values():
        summary = done.folder / run["folder"] / "validation" / "summary.json"
        summary.write_text(summary.read_text().replace("Anterior", "<img src=x>"))
    conclude(done.record)
    text = page_of(done)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert" in text
    assert "&lt;img src=x&gt;" in text


def test_scatter_charts_stress_what_none_beats():
    drawn = scatter_chart("t", {"a": ("1", 10.0, 0.9), "b": ("2", 100.0, 0.8), "c": ("3", 1.0, 0.5)}, across="x")
    assert drawn.count('class="dot"') == 2
    assert drawn.count('class="f6 mark"') == 1
    assert "<title>b: 0.800 at 100</title>" in drawn
    assert scatter_chart("t", {"a": ("1", 0.0, 0.9)}, across="x") == ""


@pytest.mark.parametrize("values", [(1.0,), (3.0, 3.1), (0.001, 4000.0), (20.0, 90.0)])
def test_scatter_charts_have_a_few_round_numbers_across(values):
    drawn = scatter_chart("t", {str(x): ("1", x, 0.5) for x in values}, across="x")
    across = re.findall(r'text-anchor="middle">([\d.e-]+)</text>', drawn)
    assert 1 <= len(across) <= 7
