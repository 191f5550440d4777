"""What nnunetv2 2.8.1 does in `benchmarks/compare.py`, run by its own Python: python nnunet_side.py JOB.json.

Everything is nnunetv2's own code, called as its commands call it; nothing is replaced but the optimiser of the few
steps that give a network sensible weights (`train_shortly`), and the loop over steps of a training that ends by the
clock (`train`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from timing import timed

STARTED = time.monotonic()


def main() -> None:
    """Carry out one job and print its answer."""
    job = json.loads(Path(sys.argv[1]).read_text())
    work = Path(job["work"])
    for part in ("raw", "preprocessed", "results"):  # read once, when nnunetv2 is imported
        (work / part).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{part}"] = str(work / part)
    workers = job["threads"] if job["do"] == "train" else 1  # planning asks for at least one
    os.environ.update(nnUNet_n_proc_DA=str(workers))
    os.environ.update(nnUNet_def_n_proc=str(job["threads"]))
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job.get("seed", 0))
    functions = {"prepare": prepare, "batches": batches, "step": step, "export": export, "segment": segment,
                 "train": train}  # fmt: skip
    print("ANSWER " + json.dumps(functions[job["do"]](job, work)))


def prepare(job: dict, work: Path) -> dict:
    """Plan, change the plan as the job says, preprocess, and write a checkpoint and a batch."""
    import torch
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    name, configuration = job["dataset"], job["configuration"]
    DatasetFingerprintExtractor(name, job["threads"]).run()
    plans = ExperimentPlanner(name).plan_experiment()
    fields = plans["configurations"][configuration]
    arguments = fields["architecture"]["arch_kwargs"]
    if job.get("network"):
        arguments.update(job["network"])
    divisor = job.get("features_divided_by", 1)
    arguments["features_per_stage"] = [max(1, count // divisor) for count in arguments["features_per_stage"]]
    fields.update(job.get("changes", {}))
    plans["configurations"] = {configuration: fields}
    folder = work / "preprocessed" / name
    (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text((work / "raw" / name / "dataset.json").read_text())
    DefaultPreprocessor(verbose=False).run(name, configuration, plans["plans_name"], num_processes=job["threads"])
    trainer = train_shortly(job, plans, work)
    torch.save(_batch(job, plans, work), work / "batch.pt")
    return {"plans": str(folder / f"{plans['plans_name']}.json"), "model": trainer.output_folder_base,
            "checkpoint": str(Path(trainer.output_folder) / "checkpoint_final.pth")}  # fmt: skip


def train_shortly(job: dict, plans: dict, work: Path):
    """Return a trainer whose checkpoint is written, after some steps of AdamW on small patches."""
    import copy

    import torch
    from batchgenerators.utilities.file_and_folder_operations import save_json

    small = copy.deepcopy(plans)
    fields = small["configurations"][job["configuration"]]
    if job.get("steps"):
        strides = fields["architecture"]["arch_kwargs"]["strides"]
        least = [2 * _product(stage[axis] for stage in strides) for axis in range(len(strides[0]))]
        fields["patch_size"] = [min(size, edge) for size, edge in zip(fields["patch_size"], least)]  # noqa: B905
        fields["batch_size"] = 2
    trainer = _trainer(job, small, work)
    trainer.optimizer = torch.optim.AdamW(trainer.network.parameters(), 3e-3)
    if job.get("steps"):
        loader = _loader(trainer)
        trainer.network.train()
        for _ in range(job["steps"]):
            print(float(trainer.train_step(next(loader))["loss"]))
    trainer.my_init_kwargs["plans"] = plans
    trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    save_json(plans, os.path.join(trainer.output_folder_base, "plans.json"))
    save_json(trainer.dataset_json, os.path.join(trainer.output_folder_base, "dataset.json"))
    return trainer


def batches(job: dict, work: Path) -> dict:
    """Make augmented batches for some seconds: in this process, or in `loaders` processes, as training does."""
    import numpy as np

    np.random.seed(job["seed"])  # noqa: NPY002 - nnunetv2 draws from it
    trainer = _trainer(job, json.loads(Path(job["plans"]).read_text()), work)
    os.environ.update(nnUNet_n_proc_DA=str(job.get("loaders", 0)))
    loader, validation = trainer.get_dataloaders()  # a training has both, validation with processes of its own
    rows = []

    def make() -> None:
        batch = next(loader)
        foreground = (batch["target"][0] > 0).float().mean()
        rows.append([float(batch["data"].mean()), float(batch["data"].std()), float(foreground)])

    for _ in range(1 + job.get("ahead", 0)):
        batch = next(loader)
    times = timed(make, job)
    if job.get("loaders"):  # as `on_train_end` does
        loader._finish()
        validation._finish()
    shapes = [list(batch["data"].shape), list(batch["target"][0].shape)]
    return {**times, "shapes": shapes, "statistics": np.mean(rows, 0).tolist()}


def step(job: dict, work: Path) -> dict:
    """Make training steps on one fixed batch, from the weights of the checkpoint."""
    import torch

    trainer = _trainer(job, json.loads(Path(job["plans"]).read_text()), work)
    content = torch.load(job["checkpoint"], weights_only=False)
    trainer.network.load_state_dict(content["network_weights"])
    trainer.network.train()
    saved = torch.load(work / "batch.pt")
    batch = {"data": saved["data"], "target": saved["target"]}
    losses = [float(trainer.train_step(batch)["loss"])]  # warm-up
    return {**timed(lambda: losses.append(float(trainer.train_step(batch)["loss"])), job), "losses": losses[:3]}


def export(job: dict, work: Path) -> dict:
    """Resample logits to the grid of the image, decide, write; the logits are in memory before."""
    import numpy as np

    write = _writer(job)
    logits = np.load(job["logits"])  # half precision, as nnunetv2 predicts
    return timed(lambda: write(logits), {"least": 1, "seconds": 0})


def segment(job: dict, work: Path) -> dict:
    """Predict noise by one convolution with an output per class, tile by tile; decide on the image's grid, write."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, write = PlansManager(job["plans"]), _writer(job)
    description = json.loads(Path(job["description"]).read_text())
    network, configuration = torch.nn.Conv3d(1, job["classes"], 3, padding=1), plans.get_configuration("3d_fullres")
    image = torch.randn(1, *job["coarse"])
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], description, "nnUNetTrainer", None
    )  # fmt: skip
    return timed(lambda: write(predictor.predict_logits_from_preprocessed_data(image)), {"least": 1, "seconds": 0})


def _writer(job: dict):
    """Return what resamples logits to the grid of the image, decides and writes."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(job["plans"])
    description = json.loads(Path(job["description"]).read_text())
    _, properties = plans.image_reader_writer_class().read_seg(job["grid"])
    shape = [int(size) for size in job["shape"]]
    properties |= {
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, size] for size in shape],
    }
    configuration = plans.get_configuration("3d_fullres")
    return lambda logits: export_prediction_from_logits(
        logits, properties, configuration, plans, description, job["output"], num_threads_torch=job["threads"]
    )


def train(job: dict, work: Path) -> dict:
    """Train nnU-Net's own plan until the minutes since the start of this process are over; then validate."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    np.random.seed(job["seed"])  # noqa: NPY002 - nnunetv2 draws from it
    folder = work / "preprocessed" / job["dataset"]
    plans, description = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, job["configuration"], job["fold"], description, torch.device("cpu"))
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    steps, budget = 0, 60 * job["minutes"]
    while (progress := (time.monotonic() - STARTED) / budget) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - progress) ** 0.9
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
    seconds = time.monotonic() - STARTED
    trainer.on_train_end()
    trainer.perform_actual_validation()
    shutil.copytree(Path(trainer.output_folder) / "validation", job["predicted"])
    return {"seconds": seconds, "steps": steps}


def _trainer(job: dict, plans: dict, work: Path):
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    description = json.loads((work / "preprocessed" / job["dataset"] / "dataset.json").read_text())
    device = torch.device(job.get("device", "cpu"))
    trainer = nnUNetTrainer({**plans, "continue_training": False}, job["configuration"], "all", description, device)
    trainer.initialize()
    os.environ.update(nnUNet_n_proc_DA="0")  # batches are made in this process
    return trainer


def _loader(trainer):
    train, _ = trainer.get_dataloaders()
    return train


def _batch(job: dict, plans: dict, work: Path) -> dict:
    import numpy as np

    np.random.seed(0)  # noqa: NPY002
    batch = next(_loader(_trainer(job, plans, work)))
    return {"data": batch["data"], "target": batch["target"]}


def _product(values) -> int:
    result = 1
    for value in values:
        result *= value
    return result


if __name__ == "__main__":
    main()
