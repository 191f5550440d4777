"""Threads of a run and runs at a time, when a campaign begins and when it goes on."""

import pytest
import torch

from autoseg.benchmarking import cores
from autoseg.benchmarking.record import Record
from autoseg.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """Call `machine(cores)`, `machine(cores, variable)`."""

    def call(count, variable=None):
        monkeypatch.setattr(cores, "available_cores", lambda: count)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if variable is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", variable)

    return call


@pytest.mark.parametrize(
    ("variable", "jobs", "threads"),
    [(None, 1, 8), (None, 2, 4), (None, 9, 1), ("3", 1, 3), ("3", 4, 2), ("1,2", 1, 1), ("0", 2, 4), ("many", 2, 4)],
)
def test_a_run_has_its_share_of_the_cores_and_no_more_threads_than_asked_for(machine, variable, jobs, threads):
    machine(8, variable)
    assert cores.threads_of_a_run(jobs, "cpu") == threads
    assert cores.threads_of_a_run(jobs, "cuda:1") == max(1, 8 // jobs)  # they load its data


def begun(tmp_path, threads):
    return Record.open(tmp_path, "c", {}, threads=threads)


def test_a_campaign_goes_on_with_its_threads_and_as_many_runs_as_have_room(machine, tmp_path, caplog):
    machine(8)
    assert cores.threads_and_jobs(begun(tmp_path, 2), 4, "cpu") == (2, 4)
    assert caplog.messages == []
    assert cores.threads_and_jobs(begun(tmp_path, 4), 4, "cpu") == (4, 2)
    (said,) = caplog.messages
    assert "4 threads each, as when it began, so 2 go(es) on at a time on 8 core(s), not 4" in said


def test_fewer_cores_than_threads_are_told(machine, tmp_path, caplog):
    machine(1)
    assert cores.threads_and_jobs(begun(tmp_path, 2), 1, "cpu:0") == (2, 1)
    (said,) = caplog.messages
    assert "2 threads each, and 1 core(s) can be used now" in said


def test_runs_of_one_thread_are_as_many_as_asked_for(machine, tmp_path, caplog):
    machine(2)
    assert cores.threads_and_jobs(begun(tmp_path, 1), 4, "cpu") == (1, 4)
    assert caplog.messages == []


@pytest.mark.parametrize("device", ["cuda:0,cuda:1", "auto"])
def test_on_gpus_runs_keep_the_threads_that_load_their_data(machine, tmp_path, caplog, monkeypatch, device):
    machine(8)
    monkeypatch.setattr(cores, "choose_device", lambda: torch.device("cuda"))
    assert cores.threads_and_jobs(begun(tmp_path, 8), 2, device) == (8, 2)
    assert caplog.messages == []


def test_a_record_without_threads_is_told(tmp_path):
    begun(tmp_path, 0).write()
    with pytest.raises(UserError, match="name or threads are not there"):
        begun(tmp_path, 2)


def test_a_restart_begins_with_threads_of_its_own(machine, campaign):
    machine(8)
    campaign(jobs=2)
    assert campaign.record()["threads"] == 4
    campaign(jobs=4)
    assert campaign.record()["threads"] == 4
    campaign(jobs=4, restart=True)
    assert campaign.record()["threads"] == 2
