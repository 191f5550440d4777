"""Where a comparison happens: folders, interpreters, threads; and what one side is asked to do there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoseg.allocator import SMALL_BLOCKS_UNCACHED, TUNABLES
from sides.figures import Target
from sides.measuring import Usage, parse_answer, run_measured

HERE = Path(__file__).parent
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")  # of the environment; nothing else steers a side
TIMEOUT = 3600.0


@dataclass(frozen=True)
class Job:
    """One run of one side: a command; what must not be there before; whether it times its work itself."""

    command: tuple[str, ...]
    environment: dict[str, str]
    fresh: tuple[Path, ...] = ()
    answers: bool = False  # it prints an answer, whose times count instead of the command's

    def run(self) -> tuple[Usage, dict[str, Any]]:
        """Run it; returns what the command took and its answer, {} if it gives none."""
        for path in self.fresh:
            shutil.rmtree(path, ignore_errors=True)
        usage, text = run_measured(self.command, self.environment, timeout=TIMEOUT)
        return usage, parse_answer(text) if self.answers else {}


@dataclass(frozen=True)
class Work:
    """One line of the table: what both sides do, the targets, and how it is told that they did the same."""

    stage: str
    data: str
    ours: Job
    theirs: Job | None  # None: nnU-Net has nothing like it
    target: Target
    # the answers of both -> {"agree": bool, ...}; None where there is no other side
    check: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    unit: str = "command"
    differs: str = ""  # where the two do not do the same work
    warm: tuple[Job, Job] | None = None  # instead of one run of each, where that is long
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Folders and interpreters of a comparison."""

    work: Path
    shared: Path  # holds data/ and models/
    autoseg: str  # a Python that has autoseg
    nnunet: str | None  # a Python that has nnunetv2
    threads: int
    quick: bool = False

    def environment(self, threads: int) -> dict[str, str]:
        """Return the variables of a child whose processes have so many threads."""
        own = {name: os.environ[name] for name in KEPT if name in os.environ}
        folders = {f"nnUNet_{part}": str(self.work / part) for part in ("raw", "preprocessed", "results")}
        return own | folders | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONHASHSEED": "0"}

    def side(self, which: str, do: str, *, threads: int | None = None, name: str | None = None, **fields: Any) -> Job:
        """Return a job of autoseg_side.py or nnunet_side.py."""
        count = self.threads if threads is None else threads
        self.work.mkdir(parents=True, exist_ok=True)
        file = self.work / f"{name or f'{which}_{do}'}.json"
        file.write_text(json.dumps({"do": do, "threads": count, "work": str(self.work), **fields}, default=str))
        python, environment = self._nnunet() if which == "nnunet" else self.autoseg, self.environment(count)
        if which == "autoseg":  # as its commands start themselves
            environment[TUNABLES] = SMALL_BLOCKS_UNCACHED
        return Job((python, str(HERE / f"{which}_side.py"), str(file)), environment, answers=True)

    def once(self, which: str, do: str, key: str, **fields: Any) -> dict[str, Any]:
        """Do something that is not measured; what it answered is kept, so that it is done once per work folder."""
        file = self.work / f"{key}.done.json"
        if file.is_file():
            return json.loads(file.read_text())
        print(f"  preparing: {key}", flush=True)
        _, answer = self.side(which, do, name=key, **fields).run()
        file.write_text(json.dumps(answer))
        return answer

    def check(self, do: str, **fields: Any) -> dict[str, Any]:
        """Let autoseg's Python compare files."""
        return self.side("autoseg", do, **fields).run()[1]

    def command(self, which: str, name: str, *arguments: Any, threads: int, fresh: tuple[Path, ...] = ()) -> Job:
        """Return a job that is a command as a user calls it."""
        folder = Path(self.autoseg if which == "autoseg" else self._nnunet()).parent
        text = tuple(str(argument) for argument in arguments)
        return Job((str(folder / name), *text), self.environment(threads), fresh)

    def at(self, name: str) -> Place:
        """Return the same with a folder of its own."""
        return Place(self.work / name, self.shared, self.autoseg, self.nnunet, self.threads, self.quick)

    def raw(self, dataset: str, *, cases: int | None = None) -> Path:
        """Return a data set below this place: all of it linked, or its first cases copied."""
        source, target = self.shared / "data" / dataset, self.work / "raw" / dataset
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        if cases is None:
            target.symlink_to(source.resolve(), target_is_directory=True)
            return target
        description = json.loads((source / "dataset.json").read_text())
        ending = description["file_ending"]
        labels = sorted((source / "labelsTr").glob(f"*{ending}"))[:cases]
        for folder in ("imagesTr", "labelsTr"):
            (target / folder).mkdir(parents=True)
        for label in labels:
            shutil.copy(label, target / "labelsTr")
            for image in (source / "imagesTr").glob(f"{label.name.removesuffix(ending)}_[0-9]*{ending}"):
                shutil.copy(image, target / "imagesTr")
        (target / "dataset.json").write_text(json.dumps(description | {"numTraining": len(labels)}))
        return target

    def _nnunet(self) -> str:
        if self.nnunet is None:
            raise SystemExit("name a Python that has nnunetv2 2.8.1: --nnunet-python or AUTOSEG_TEST_NNUNET_PYTHON")
        return self.nnunet
