"""What child processes do: plan for a network, measure a step, train and score a run.

`python -m autoseg.benchmarking.child REQUEST ANSWER`: two JSON files.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoseg.errors import AutosegError, Interrupted
from autoseg.storage import content_hash, read_json, write_json
from autoseg.workspace import Workspace

ORPHAN_SECONDS = 2.0


def plan(request: Mapping[str, Any]) -> dict[str, Any]:
    """Plan for one network and give its data the name of their content, so that equal ones are stored once."""
    from autoseg.planning import plan as make
    from autoseg.preprocessing.dataset import store_key

    name, place = request["configuration"], _workspace(request)
    plans = make(
        request["dataset"],
        None,
        place,
        planner=request["planner"],
        architecture=request["architecture"],
        network_options=request["network_options"],
        gpu_memory=request["gpu_memory"],
        time_budget=request["time_budget"],
        configurations=[name],
        plans_name=request["plans_name"],
        device=request["device"],
    )
    configuration = plans.configuration(name)
    shared = f"benchmark_{name}_{store_key(configuration, plans)[:8]}"
    configuration = configuration.model_copy(update={"data_identifier": shared})
    plans = plans.model_copy(update={"configurations": {name: configuration}})
    plans.write(place.plans_file(plans.dataset_name, plans.plans_name))
    return describe(plans, name)


def describe(plans: Any, configuration: str) -> dict[str, Any]:
    """Return what the record keeps of a plan."""
    planned = plans.configuration(configuration)
    return {
        "plans_name": plans.plans_name,
        "digest": content_hash(planned, plans.transpose_forward, plans.intensities),
        "store": planned.data_identifier,
        "patch_size": list(planned.patch_size),
        "batch_size": planned.batch_size,
        "spacing": list(planned.spacing),
        "median_shape": list(planned.median_shape),
        "steps": planned.training.steps,
        "seconds": planned.training.time_budget,
    }


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a training step of one entry."""
    from autoseg.training.costs import measure_step

    costs = measure_step(
        request["dataset"],
        request["configuration"],
        trainer=request["trainer"],
        plans_name=request["plans_name"],
        architecture=request["architecture"],
        fold=request["fold"],
        settings=request["settings"],
        recipe=Path(request["recipe"]),
        device=request["device"],
        threads=request["threads"],
        workspace=_workspace(request),
    )
    return costs.as_dict()


def train(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score one run; its weights go unless they are to be kept."""
    import torch

    from autoseg.training import train as train_fold
    from autoseg.training.costs import peak_bytes

    (folder,) = train_fold(
        request["dataset"],
        request["configuration"],
        request["fold"],
        trainer=request["trainer"],
        plans_name=request["plans_name"],
        architecture=request["architecture"],
        settings=request["settings"],
        recipe=Path(request["recipe"]),
        device=request["device"],
        seed=request["seed"],
        workers=request["threads"],
        restart=request["restart"],
        deterministic=request["deterministic"],
        workspace=_workspace(request),
        name=request["name"],
        training_seconds=request["training_seconds"],
    )
    record = read_json(folder / "run.json")
    scored = read_json(folder / record["validation_summary"]) if record.get("validation_summary") else {"cases": {}}
    if not request["keep_weights"]:
        for file in (*folder.glob("*.safetensors"), *folder.glob("state.pt*")):
            file.unlink()
    cases = max(1, len(scored["cases"]))
    return {
        "folder": str(folder),
        "steps": record["steps_done"],
        "parameters": record["parameters"],
        "train_seconds": record["seconds"],
        "train_cpu_seconds": record.get("cpu_seconds"),
        "inference_seconds": record.get("validation_seconds", 0.0) / cases,
        "inference_cpu_seconds": record.get("validation_cpu_seconds", 0.0) / cases,
        "peak_bytes": peak_bytes(torch.device(record["device"])),
        "cases": len(scored["cases"]),
        "unscored": scored.get("failed", {}),
        "means": scored.get("foreground_mean", {}),
        "precision": record["precision"],
        "settings": {name: record["settings"][name]["value"] for name in ("optimizer", "learning_rate")},
        "versions": record["versions"],
    }


class Warnings(logging.Handler):
    """Keeps what is warned of, each sentence once, for the campaign to tell: the output of a success goes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message; one that cannot be made, or written, is no reason for a run to fail."""
        try:
            self.texts.setdefault(record.getMessage().encode("utf-8", "backslashreplace").decode())
        except Exception:
            self.handleError(record)


def _workspace(request: Mapping[str, Any]) -> Workspace:
    return Workspace(**{name: Path(path) for name, path in request["workspace"].items()})


def _follow_parent() -> None:
    """End with a checkpoint when the parent is gone: a second campaign could start the same run."""
    parent = os.getppid()

    def watch() -> None:
        """End this process, by its checkpoint if it can, once its parent is gone."""
        while os.getppid() == parent:
            time.sleep(ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


KINDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"plan": plan, "measure": measure, "train": train}


def main(request_file: str, answer_file: str) -> int:
    """Answer one request; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    _follow_parent()
    request = read_json(Path(request_file))
    try:
        answer = {"result": KINDS[request["kind"]](request)}
    except Interrupted as error:
        answer = {"error": f"interrupted: {error}"}
    except AutosegError as error:
        answer = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    write_json(Path(answer_file), {**answer, "warnings": list(warnings.texts)})
    return int("error" in answer)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
