"""`autoseg list`, `new` and `check-plugin`, `doctor`."""

import json
import subprocess
import sys

import pytest

from autoseg.cli.doctor import bottleneck
from autoseg.plugins import list_plugins


def test_list_shows_name_dims_and_source(autoseg):
    shown = autoseg("list", "architectures")
    assert shown.code == 0
    line = next(line for line in shown.out.splitlines() if line.startswith("plain_unet "))
    assert "2D, 3D" in line
    assert "Isensee et al. 2021" in line


def test_list_tells_where_a_name_stands_twice(autoseg, tmp_path):
    (tmp_path / "trainers").mkdir()
    definition = '@register.trainer("{}")\nclass A(Trainer):\n    """A."""\n'
    for name in ("one", "two"):
        (tmp_path / "trainers" / f"{name}.py").write_text(definition.format(name) + definition.format("mine"))
    shown = autoseg("list", "trainers")
    assert shown.code == 0
    (warning,) = [line for line in shown.err.splitlines() if line.startswith("warning: ")]
    first, second = (tmp_path / "trainers" / f"{name}.py:5" for name in ("one", "two"))
    assert warning == f"warning: trainer 'mine' is defined twice: {first} and {second}"


@pytest.mark.parametrize("kinds", ["trainers", "architectures", "planners"])
def test_list_as_json_is_complete(autoseg, kinds):
    entries = json.loads(autoseg("list", kinds, "--json").out)
    assert [entry["name"] for entry in entries] == [found.name for found in list_plugins(kinds[:-1])]
    for entry in entries:
        assert entry["summary"], entry["name"]
        assert (entry["dims"] is not None) == (kinds == "architectures")


def test_list_reads_dims_and_family_from_the_source(autoseg, tmp_path):
    folder = tmp_path / "architectures" / "mamba"
    folder.mkdir(parents=True)
    (folder / "flat.py").write_text(
        '"""Nets. Source: Someone 2020, arXiv:1."""\nraise RuntimeError\n'
        '@register.architecture("flat_net")\nclass Flat(Architecture):\n    """Flat."""\n    dims: ClassVar = (2,)\n'
    )
    entry = next(e for e in json.loads(autoseg("list", "architectures", "--json").out) if e["name"] == "flat_net")
    assert (entry["dims"], entry["family"], entry["source"]) == ("2D", "mamba", "Someone 2020, arXiv:1.")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            "Doe et al. 2020, after Roe,\narXiv:2; written from the\ndescription.",
            "Doe et al. 2020, after Roe, arXiv:2.",
        ),
        ("Doe, Nature 1, 2-3 (2020), no code taken. It has\nblocks.", "Doe, Nature 1, 2-3 (2020)."),
        ("Doe 2020, arXiv:1. It has\nblocks.\n\nMore.", "Doe 2020, arXiv:1."),
    ],
)
def test_list_shows_the_whole_source_and_no_more(autoseg, tmp_path, said, wanted):
    folder = tmp_path / "architectures"
    folder.mkdir()
    (folder / "mine.py").write_text(
        f'"""Nets.\n\nSource: {said}\n"""\n@register.architecture("mine")\nclass Mine(Architecture):\n    """Mine."""\n'
    )
    entry = next(e for e in json.loads(autoseg("list", "architectures", "--json").out) if e["name"] == "mine")
    assert entry["source"] == wanted


@pytest.mark.parametrize("kind", ["trainer", "planner", "architecture"])
def test_starter_files_work_and_are_clean(autoseg, tmp_path, kind):
    made = autoseg("new", kind, "my_first")
    assert made.code == 0
    file = tmp_path / f"{kind}s" / "my_first.py"
    assert str(file.relative_to(tmp_path)) in made.out
    listed = json.loads(autoseg("list", f"{kind}s", "--json").out)
    assert "my_first" in {entry["name"] for entry in listed}
    checked = autoseg("check-plugin", file, "--json")
    findings = json.loads(checked.out)
    assert [finding for finding in findings if not finding["ok"]] == []
    assert len(findings) > 2
    assert checked.code == 0
    ruff = [sys.executable, "-m", "ruff"]
    if subprocess.run([*ruff, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("ruff is not installed")
    for arguments in (["check", "--select", "E,F,B,UP,D101,D102,D103"], ["format", "--check"]):
        command = [*ruff, *arguments, "--line-length", "120", file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_new_overwrites_nothing_and_shadows_nothing(autoseg, tmp_path):
    assert autoseg("new", "trainer", "mine").code == 0
    (tmp_path / "trainers" / "mine.py").write_text("# precious")
    again = autoseg("new", "trainer", "mine")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert (tmp_path / "trainers" / "mine.py").read_text() == "# precious"
    taken = autoseg("new", "architecture", "plain_unet")
    assert (taken.code, "architecture 'plain_unet' exists already" in taken.err) == (2, True)
    assert autoseg("new", "trainer", "../evil").code == 2


BROKEN = '''
import torch
from torch import nn
from autoseg import Architecture, register


@register.architecture("broken")
class Broken(Architecture):
    """Wrong in four ways."""

    dims = (2,)

    def __init__(self, spec):
        super().__init__(spec)
        self.body = nn.Conv2d(1, spec.num_outputs, 3, padding=1)
        self.unused = nn.Conv2d(1, 1, 1)

    def encode(self, x):
        return [x + 0.1 * torch.rand_like(x)]

    def decode(self, features):
        return torch.sigmoid(self.body(features[0]))
'''


def test_check_plugin_finds_what_is_wrong(autoseg, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    outcome = autoseg("check-plugin", file, "--json")
    assert outcome.code == 2
    failed = {finding["check"]: finding["message"] for finding in json.loads(outcome.out) if not finding["ok"]}
    assert "without activation" in failed["2D: isotropic logits"]
    assert "expected input" in failed["2D: anisotropic logits, odd channels"]  # three channels into one
    assert "bit for bit" in failed["2D: eval is deterministic"]
    assert "2D: without deep supervision" not in failed
    shown = autoseg("check-plugin", file)
    assert "FAILED  architecture broken: 2D: eval is deterministic" in shown.out


def test_check_plugin_without_plugins(autoseg, tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "registered here" in autoseg("check-plugin", tmp_path / "empty.py").err
    (tmp_path / "typo.py").write_text("def\n")
    assert "not valid Python" in autoseg("check-plugin", tmp_path / "typo.py").err
    assert "does not exist" in autoseg("check-plugin", tmp_path / "none.py").err
    assert autoseg("check-plugin", "no_such_name").code == 2


def test_doctor_tells_what_there_is(autoseg, tmp_path):
    import torch

    facts = json.loads(autoseg("doctor", "--json").out)
    assert facts["torch"] == torch.__version__
    assert 1 <= facts["cores"] <= facts["cores_of_machine"]
    assert 0 < facts["memory_gib"] <= facts["memory_of_machine_gib"]
    assert facts["shared_memory_free_gib"] is None or facts["shared_memory_free_gib"] >= 0
    assert min(facts["disk_free_gib"], facts["disk_write_mb_s"], facts["disk_read_mb_s"]) > 0
    assert facts["precision"] in ("fp32", "bf16", "fp16")
    assert facts["cpu_formats"][0] == "fp32"
    assert facts["torch_threads"] == min(torch.get_num_threads(), facts["cores"])
    assert "core_quota" in facts
    assert "bottleneck" in autoseg("doctor").out
    assert list(tmp_path.iterdir()) == []  # the disk test leaves nothing behind


def test_bottleneck_by_hand():
    machine = {
        "disk_free_gib": 100.0,
        "memory_gib": 64.0,
        "device": "cuda",
        "gpus": ["A", "B"],
        "cores": 32,
        "disk_read_mb_s": 900,
    }
    assert "as it should be" in bottleneck(machine)
    assert "as it should be" in bottleneck(machine | {"cores": 8}), "four cores per GPU never wait"
    assert "1.5 core(s) per GPU; reserve at least 2" in bottleneck(machine | {"cores": 3})
    assert "local SSD" in bottleneck(machine | {"disk_read_mb_s": 30})
    assert "this CPU" in bottleneck(machine | {"device": "cpu", "gpus": []})
    assert bottleneck(machine | {"memory_gib": 4.0}).startswith("memory")
    assert bottleneck(machine | {"disk_free_gib": 1.0}).startswith("disk space")
    assert bottleneck(machine | {"device": "cpu", "gpus": [], "unused_gpu": "a GPU is not used"}) == "a GPU is not used"
