"""Full and read-only disks, missing permission, one core: told with the file and the mend, and gone on from there."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_factory import write_model

from autoseg.cli.running import run
from autoseg.store import CaseStore
from autoseg.training.checkpoint import load_weights
from autoseg.workers import available_cores
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"
FULL = "No space left on device"
SPACE = "To mend it: free some space, then repeat the command: what is finished is kept"
PLACE = "To mend it: choose another place, or ask for the right to use this one"
NOBODY = 65534
UNDER_LIMITS = """
import resource, shutil, sys
from autoseg.cli.running import run
resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30,) * 2)
assert shutil.disk_usage("/dev/shm").total == 64 * 2**20
name, place, images, output = sys.argv[1:]
where = ["--workspace", place]
for command in (
    ["check", name, *where],
    ["plan-and-preprocess", name, "--planner", "nnunet", "-c", "3d_fullres", "--workers", "2", *where],
    ["train", name, "3d_fullres", "0", "--plans", "tiny", "--set", "steps=2", "--set", "mirror=false", *where],
    ["find-best", name, *where],
    ["predict", "-i", images, "-o", output, "-d", name, *where],
):
    if code := run(command):
        sys.exit(f"{command[0]}: {code}")
"""
WITHOUT_TEMPORARY_FILES = """
from autoseg.cli.running import explain, run
from autoseg.workers import run_cases

if __name__ == "__main__":
    import tempfile
    try:
        tempfile.gettempdir()
    except OSError:
        codes = run(["check", "/mnt/data/Dataset004_Hippocampus"]), explain(ValueError("a defect"))[1]
        found = sorted(result.value for result in run_cases(abs, [-1, 2], stage="a test", workers=2))
        print("codes", *codes, end=f", {found}\\n")
    else:
        print("mount: there is a place")
"""
SMALL_SHM = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.fixture
def disk():
    """A function that makes a folder a disk of some KiB, or changes the size of the disk that is there."""
    mounted = []

    def of(place, kib, *options):
        if shutil.which("mount") is None or sys.platform != "linux":
            pytest.skip("no disk can be mounted here")
        place.mkdir(parents=True, exist_ok=True)
        options = ",".join([f"size={kib}k", *options, *(["remount"] if place in mounted else [])])
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield of
    for place in set(mounted):
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def call(capfd):
    """Run a command; returns its exit code and what it said on stderr."""

    def run_it(*arguments):
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, capfd.readouterr().err

    return run_it


def train(place, *more):
    return ["train", NAME, "3d_fullres", "0", "--plans", "tiny", "--deterministic", "--device", "cpu", "--workers", "1",
            "--set", "checkpoint_minutes=0", "--workspace", place, *more]  # fmt: skip


def leftovers(folder):
    return [path.name for path in folder.rglob(".*")]


def test_a_disk_that_fills_up_while_preprocessing(tiny, tmp_path, disk, call, monkeypatch):
    """A quota, which no look at the free space foretells."""
    usage = SimpleNamespace(total=2**40, used=0, free=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    small, root = disk(tmp_path / "small", 500), tmp_path / "work"
    root.mkdir()
    (root / "raw").symlink_to(tiny.raw)
    (root / "preprocessed").symlink_to(small)
    command = [
        "plan-and-preprocess",
        NAME,
        "--planner",
        "nnunet",
        "-c",
        "3d_fullres",
        "--workers",
        1,
        "--workspace",
        root,
    ]
    code, said = call(*command)
    assert code == 2, "no case fits"
    assert "there is no other case" in said
    assert FULL in said
    assert SPACE in said
    assert "defect" not in said
    assert leftovers(small) == []
    disk(small, 65536)
    assert call(*command)[0] == 0
    place = Workspace.open(root).store_folder(NAME, "nnunet_3d_fullres")
    assert len(CaseStore(place).cases) == 6
    assert CaseStore(place).verify() == ()
    assert leftovers(small) == []


def test_a_disk_that_is_full_at_a_checkpoint(place, tmp_path, disk, call):
    small = disk(place / "results", 60)
    code, said = call(*train(place))
    assert code == 2
    assert FULL in said
    assert SPACE in said
    assert "defect" not in said
    assert leftovers(small) == []
    disk(small, 65536)
    assert call(*train(place))[0] == 0
    assert call(*train(place, "--name", "undisturbed"))[0] == 0
    runs = [small / NAME / f"{name}__tiny__3d_fullres" / "fold_0" for name in ("supervised", "undisturbed")]
    one, other = (load_weights(run / "weights.safetensors") for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def predict(tiny, folder):
    """Return images, and the command that segments them into `out`."""
    images = copied_images(tiny, folder / "images")
    model = write_model(folder / "model")
    return images, ["predict", "-i", images, "-o", folder / "out", "-m", model, "--device", "cpu"]


def test_a_disk_that_is_full_when_predicting(tiny, tmp_path, disk, call, monkeypatch):
    images, command = predict(tiny, tmp_path)
    small = disk(tmp_path / "out", 64)
    code, said = call(*command)
    assert code == 1
    assert "MiB left" in said
    assert "free some space" in said
    usage = SimpleNamespace(total=2**40, used=0, free=2**40)
    with monkeypatch.context() as patch:  # a quota, which no look at the free space foretells
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        disk(small, 8)
        code, said = call(*command)
    assert code == 1
    assert FULL in said
    assert leftovers(small) == []
    disk(small, 65536)
    assert call(*command)[0] == 0
    assert len(list(small.glob("*.nii.gz"))) == len(list(images.iterdir()))


def test_a_read_only_disk(tiny, tmp_path, disk, call, place):
    _, command = predict(tiny, tmp_path)
    disk(tmp_path / "out", 65536, "ro")
    code, said = call(*command)
    assert code == 1
    assert f"{tmp_path / 'out'}" in said
    assert "the file cannot be written (Read-only file system)" in said
    assert PLACE in said
    disk(place / "results", 65536, "ro")
    code, said = call(*train(place))
    assert code == 2
    assert "Read-only file system" in said
    assert PLACE in said


@contextlib.contextmanager
def nobody():
    """Be a user without rights; the modules that a command needs must be imported before."""
    if not hasattr(os, "seteuid") or os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_missing_permission(tiny, call):
    with tempfile.TemporaryDirectory() as open_to_all:
        root = Path(open_to_all)
        images, model = copied_images(tiny, root / "images"), write_model(root / "model")
        for name in ("mine", "theirs"):
            (root / name).mkdir()
        for path in (root, *model.rglob("*.safetensors")):
            path.chmod(0o755)
        os.chown(root / "theirs", NOBODY, NOBODY)
        command = ["predict", "-i", images, "-m", model, "--device", "cpu", "-o"]
        assert call(*command, root / "first")[0] == 0  # imports everything
        with nobody():
            code, said = call(*command, root / "mine")
        assert code == 1
        assert f"{root / 'mine'}" in said
        assert "the file cannot be written (Permission denied)" in said
        assert PLACE in said
        with nobody():
            code, said = call(*command, root / "mine" / "below")
        assert code == 2
        assert said.startswith(f"error: {root / 'mine' / 'below'}: Permission denied\n{PLACE}")
        min(images.iterdir()).chmod(0)
        with nobody():
            code, said = call(*command, root / "theirs")
        assert code == 1
        assert "_0000.nii.gz: the file cannot be read (Permission denied)" in said
        assert len(list((root / "theirs").glob("*.nii.gz"))) == len(list(images.iterdir())) - 1


def test_one_core(tiny, call, tmp_path):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("cores cannot be chosen here")
    place = tmp_path / "work"
    shutil.copytree(tiny.preprocessed, place / "preprocessed")
    (place / "raw").symlink_to(tiny.raw)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert available_cores() == 1
        assert call("check", NAME, "--workspace", place)[0] == 0
        planning = ["--planner", "nnunet", "-c", "3d_fullres", "--plans-name", "anew"]
        assert call("plan-and-preprocess", NAME, *planning, "--workspace", place)[0] == 0
        assert call(*train(place, "--set", "steps=2", "--set", "mirror=false"))[0] == 0
        assert call("find-best", NAME, "--workspace", place)[0] == 0
        images = copied_images(tiny, tmp_path / "images")
        assert call("predict", "-i", images, "-o", tmp_path / "out", "-d", NAME, "--workspace", place)[0] == 0
        assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    finally:
        os.sched_setaffinity(0, cores)


def test_two_gib_of_memory_and_little_shared_memory(tiny, tmp_path):
    """The limit is one of the address space; benchmarks/resources.py does the same with a cgroup."""
    if shutil.which("unshare") is None or subprocess.run([*SMALL_SHM, "true"], capture_output=True).returncode:
        pytest.skip("/dev/shm cannot be made small here")
    root = tmp_path / "work"
    shutil.copytree(tiny.preprocessed, root / "preprocessed")
    (root / "raw").symlink_to(tiny.raw)
    images = copied_images(tiny, tmp_path / "images")
    command = [*SMALL_SHM, sys.executable, "-c", UNDER_LIMITS, NAME, root, images, tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


def test_no_gpu(place, call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, said = call(*train(place, "--device", "cuda"))
    assert code == 2
    assert said.startswith(
        "error: device 'cuda' was asked for, but no CUDA GPU can be used here\nTo mend it: use --device"
    )
    assert not (place / "results").exists()


def copied_images(tiny, target):
    target.mkdir()
    for image in sorted((tiny.raw / NAME / "imagesTr").iterdir())[:3]:
        shutil.copy(image, target)
    return target


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
def test_no_place_for_temporary_files(tiny, tmp_path):
    """As `docker run --read-only` with a folder for results."""
    script = tmp_path / "commands.py"
    script.write_text(WITHOUT_TEMPORARY_FILES)
    place = tmp_path / "work"
    shutil.copytree(tiny.raw / NAME, place / "data" / NAME)
    shutil.copy(script, place)
    shell = f'mount --bind "$1" /mnt && mount -o remount,bind,ro / && cd / && exec {sys.executable} /mnt/commands.py'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", str(place)], capture_output=True, text=True, check=False, timeout=300
    )
    if "mount: " in done.stdout + done.stderr or "unshare: " in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stdout}{done.stderr}")
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "codes 0 2, [1, 2]")
