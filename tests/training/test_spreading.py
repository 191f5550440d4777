"""Folds on several devices: the same runs as one after the other, equal shares of time, errors by device."""

import pytest

from autoseg.errors import AutosegError, UserError
from autoseg.storage import file_hash
from autoseg.training import spreading, train

NAME = "Dataset004_Hippocampus"
OPTIONS = {"plans_name": "tiny", "workers": 1, "deterministic": True, "settings": {"steps": 3}}


def test_spread_folds_are_the_same_runs(scratch):
    together = train(NAME, "3d_fullres", "0,1", workspace=scratch, device="cpu,cpu", **OPTIONS)
    assert [folder.name for folder in together] == ["fold_0", "fold_1"]
    spread = [file_hash(folder / "weights.safetensors") for folder in together]
    alone = train(NAME, "3d_fullres", "0,1", workspace=scratch, device="cpu", restart=True, **OPTIONS)
    assert [file_hash(folder / "weights.safetensors") for folder in alone] == spread


def test_an_error_names_its_device_and_folds(scratch, tmp_path):
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "from autoseg import Trainer, register\n"
        "@register.trainer('broken')\n"
        "class Broken(Trainer):\n"
        "    def loss(self, logits, target):\n"
        "        return logits.sum() * float('nan')\n"
    )
    with pytest.raises(AutosegError, match=r"cpu, folds 1: the loss became nan"):
        train(NAME, "3d_fullres", "0,1", workspace=scratch, device="cpu,cpu", trainer=str(plugin), **OPTIONS)


def test_every_fold_gets_the_same_time(monkeypatch):
    given = []

    class Ended:
        exitcode = 0

        def is_alive(self):
            return False

    class Nothing:
        def poll(self):
            return True

        def recv(self):
            return None

        def close(self):
            pass

    class Context:
        def Pipe(self, duplex):
            return Nothing(), Nothing()

        def Process(self, target, args):
            given.append(args[1])
            ended = Ended()
            ended.start = ended.join = lambda *_: None
            return ended

    monkeypatch.setattr(spreading.multiprocessing, "get_context", lambda kind: Context())
    spreading.spread_folds(train, {"time_budget": 600.0}, ["0", "1", "2", "3", "4"], ["cuda:0", "cuda:1"])
    assert given == [
        {"device": "cuda:0", "folds": "0,2,4", "time_budget": 600.0},
        {"device": "cuda:1", "folds": "1,3", "time_budget": 400.0},
    ]


def test_devices_and_processes_exclude_each_other(scratch):
    with pytest.raises(UserError, match="not both"):
        train(NAME, "3d_fullres", "0,1", workspace=scratch, device="cpu,cpu", processes=2, **OPTIONS)
