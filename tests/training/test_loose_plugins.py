"""A user's own file beside the data, in processes started by spawn: each of them finds its code again."""

import os
import shutil

import pytest

from autoseg.errors import UserError
from autoseg.storage import read_json
from autoseg.training import train
from autoseg.training.checkpoint import load_weights

NAME = "Dataset004_Hippocampus"
OPTIONS = {"plans_name": "tiny", "workers": 1, "deterministic": True, "settings": {"steps": 2, "observed_cases": 0}}
SOURCE = '''
"""Patches of one grey value, and a network of one layer."""
import os
from dataclasses import replace

import torch
from torch import nn

from autoseg import Architecture, Trainer, register
from autoseg.batches import PatchStream


class Flat(PatchStream):
    def augment(self, batch, step, device="cpu"):
        (self.place / f"augmented_by_{os.getpid()}").touch()
        done = super().augment(batch, step, device)
        return replace(done, image=torch.full_like(done.image, 0.25))


@register.trainer("greyish")
class Greyish(Trainer):
    shade: float = 0.25  # what its network must see

    def build_streams(self):
        streams = super().build_streams()
        for stream in streams.values():
            stream.__class__, stream.place = Flat, self.context.folder.parent
        return streams

    def network_input(self, batch):
        assert (batch.image == self.shade).all(), "these patches are not of the user's stream"
        return super().network_input(batch)


@register.architecture("one_layer")
class OneLayer(Architecture):
    def __init__(self, spec):
        super().__init__(spec)
        kind = (nn.Conv2d, nn.Conv3d)[spec.dims - 2]
        self.only = kind(spec.in_channels, spec.num_outputs, 1)

    def encode(self, x):
        return [x]

    def decode(self, features):
        return self.only(features[0])
'''


@pytest.fixture
def beside(scratch, monkeypatch):
    """Return the workspace with the file in both folders of plug-ins; nothing is found from where we are."""
    for folder in ("trainers", "architectures"):
        (scratch.root / folder).mkdir()
        (scratch.root / folder / "mine.py").write_text(SOURCE)
    (scratch.root / "elsewhere").mkdir()
    monkeypatch.chdir(scratch.root / "elsewhere")
    return scratch


def workers_of(folder):
    found = {int(file.name.rpartition("_")[2]) for file in folder.parent.glob("augmented_by_*")}
    assert os.getpid() not in found
    assert list(load_weights(folder / "weights.safetensors")) == ["only.bias", "only.weight"]
    return found


def test_found_by_name_in_each_process_of_a_fold(beside):
    own = {"trainer": "greyish", "architecture": "one_layer"}
    (folder,) = train(NAME, "2d", "0", workspace=beside, device="cpu", processes=2, **own, **OPTIONS)
    assert len(workers_of(folder)) == 2


def test_what_lies_with_the_data_is_not_run_by_its_name(scratch, tmp_path):
    data = shutil.copytree(scratch.raw / NAME, tmp_path / "DATA" / NAME)
    file = tmp_path / "DATA" / "trainers" / "mine.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    with pytest.raises(UserError) as error:
        train(data, "2d", "0", workspace=scratch, device="cpu", trainer="greyish", **OPTIONS)
    assert error.value.mend == f"read this file, then give its path: --trainer {file}"
    own = {"trainer": str(file), "settings": {"shade": 0.25, "steps": 1, "observed_cases": 0}}
    (folder,) = train(data, "2d", "0", workspace=scratch, device="cpu", **{**OPTIONS, **own})
    assert read_json(folder / "run.json")["method"] == f"{file}:greyish"


def test_found_by_path_in_the_process_of_each_device(beside):
    own = {"trainer": "../trainers/mine.py", "architecture": "../architectures/mine.py:one_layer"}
    folders = train(NAME, "2d", "0,1", workspace=beside, device="cpu,cpu", **own, **OPTIONS)
    assert len(workers_of(folders[0])) == 2
