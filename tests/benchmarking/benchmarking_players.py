"""The play of a campaign's child processes: plans, costs and scores at once, without training."""

import json
import tomllib
from pathlib import Path

import numpy as np

from autoseg.benchmarking.child import describe
from autoseg.benchmarking.children import Outcome
from autoseg.plans import Plans
from autoseg.storage import write_json

DATASET = "Dataset004_Hippocampus"
STEP_SECONDS = {"plain_unet": 0.1, "unet": 0.2, "swin_unet": 0.4, "focal_unet": 0.4, "hiformer": 0.4}
DICE = {"plain_unet": 0.8, "unet": 0.7, "swin_unet": 0.6, "focal_unet": 0.5, "hiformer": 0.4}


class Players:
    """Answers tasks as the children would; `told` keeps what was asked, `fails` names what shall fail and how.

    `unscored` names runs that predict all cases but some, and why; `warns` parts of tasks and what they warn of.
    """

    def __init__(self, workspace):
        self.workspace, self.told, self.fails, self.dies, self.unscored = workspace, [], {}, {}, {}
        self.warns = {}

    def carry_out(self, tasks, done, **means):
        for task in tasks:
            self.told.append((task.kind, task.key))
            reason = next((reason for part, reason in self.fails.items() if part in f"{task.kind} {task.key}"), None)
            deaths = next((part for part, times in self.dies.items() if part in task.key and times), None)
            if deaths is not None and task.kind == "train":
                self.dies[deaths] -= 1
                done(task, Outcome(None, "the process was killed by SIGKILL", 1.0, died=True))
            elif reason is not None:
                done(task, Outcome(None, reason, 1.0))
            else:
                request = json.loads(json.dumps(dict(task.request)))
                warnings = tuple(said for part, said in self.warns.items() if part in f"{task.kind} {task.key}")
                done(task, Outcome(getattr(self, task.kind)(request, task.key), None, 2.0, warnings=warnings))

    def asked(self, kind):
        return [key for found, key in self.told if found == kind]

    def plan(self, request, key):
        plans = Plans.read(self.workspace.plans_file(DATASET, "tiny"))
        name = request["configuration"]
        configuration = plans.configuration(name).model_copy(update={"architecture": request["architecture"]})
        update = {"configurations": {name: configuration}, "plans_name": request["plans_name"]}
        plans = plans.model_copy(update=update)
        plans.write(self.workspace.plans_file(DATASET, request["plans_name"]))
        return describe(plans, name)

    def measure(self, request, key):
        seconds = next(value for name, value in STEP_SECONDS.items() if f"/{name}-" in key)
        return {"seconds": seconds, "all_seconds": [seconds], "clock": "cpu", "threads": 1, "samples": 2,
                "parameters": 1000, "step_flops": int(1e9 * seconds), "forward_flops": 10**8, "peak_bytes": 2**30,
                "device": "cpu"}  # fmt: skip

    def train(self, request, key):
        folder = Path(request["workspace"]["results"]) / key
        rng = np.random.default_rng(sum(map(ord, key)))
        dice = next(value for name, value in DICE.items() if f"/{name}-" in key)
        difficulty = np.random.default_rng(5).normal(0, 0.03, (20, 2))
        cases = {
            f"case_{case}": {name: {"dice": float(dice + difficulty[case, index] + rng.normal(0, 0.002)), "iou": 0.5}
                             for index, name in enumerate(("Anterior", "Posterior"))}
            for case in range(20)
        }  # fmt: skip
        missed = next((missed for part, missed in self.unscored.items() if part in key), {})
        cases = {case: named for case, named in cases.items() if case not in missed}
        write_json(folder / "validation" / "summary.json", {"cases": cases})
        recipe = tomllib.loads(Path(request["recipe"]).read_text(encoding="utf-8"))
        found = [scores["dice"] for named in cases.values() for scores in named.values()]
        mean = float(np.mean(found)) if found else None
        return {"folder": str(folder), "steps": request["settings"]["steps"], "parameters": 1000, "train_seconds": 1.0,
                "train_cpu_seconds": 0.9, "inference_seconds": 0.1, "inference_cpu_seconds": 0.1, "peak_bytes": 2**30,
                "cases": len(cases), "unscored": missed, "means": {"dice": mean}, "precision": "fp32", "versions": {},
                "settings": {name: recipe.get(name) for name in ("optimizer", "learning_rate")}}  # fmt: skip
