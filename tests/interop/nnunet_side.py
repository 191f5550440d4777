"""What nnunetv2 itself does for these tests, run by its own Python: plan, train shortly, predict.

    python nnunet_side.py JOB.json

A job names a work folder, which holds raw/ and receives preprocessed/, results/ and predictions/.
"""

import json
import os
import shutil
import sys
from functools import lru_cache, partial
from pathlib import Path


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    work = Path(job["work"])
    for part in ("raw", "preprocessed", "results"):  # read once, when nnunetv2 is imported
        (work / part).mkdir(exist_ok=True)
        os.environ[f"nnUNet_{part}"] = str(work / part)
    os.environ.update(nnUNet_n_proc_DA="1", nnUNet_compile="f", nnUNet_def_n_proc="1")
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if "dataset" in job:
        plan_and_train(job, work)
    predict(job, work)


def plan_and_train(job, work):
    import torch
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    name = job["dataset"]
    DatasetFingerprintExtractor(name, 1).run()
    planner = residual_encoder_unet_planners.nnUNetPlannerResEncM if job["residual"] else ExperimentPlanner
    plans = planner(name).plan_experiment()
    plans.update(job["plans"])
    for configuration, changes in job["configurations"].items():
        fields = plans["configurations"].setdefault(configuration, {})
        fields.get("architecture", {}).get("arch_kwargs", {}).update(changes.pop("network", {}))
        fields.update(changes)
    preprocessed = work / "preprocessed" / name
    description = json.loads((work / "raw" / name / "dataset.json").read_text())
    (preprocessed / "dataset.json").write_text(json.dumps(description))
    (preprocessed / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    for configuration in job["configurations"]:
        if "previous_stage" not in plans["configurations"][configuration]:
            DefaultPreprocessor(verbose=False).run(name, configuration, plans["plans_name"], num_processes=1)
    if not job["steps"]:
        return
    shutil.copytree(work / "raw" / name / "labelsTr", preprocessed / "gt_segmentations")

    def optimizers(self):  # SGD needs thousands of steps for the first sensible mask
        optimizer = torch.optim.AdamW(self.network.parameters(), 3e-3)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    nnUNetTrainer.configure_optimizers = optimizers
    os.environ.update(nnUNet_n_proc_DA="0")  # batches are made in this process
    for configuration in job["train"]:
        for fold in job["folds"]:
            trainer = nnUNetTrainer(
                {**plans, "continue_training": False}, configuration, fold, description, torch.device("cpu")
            )
            trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = (
                1, job["steps"], 1
            )  # fmt: skip
            trainer.run_training()
            if "next_stage" in plans["configurations"][configuration]:
                trainer.perform_actual_validation(False)


def predict(job, work):
    import torch
    from nnunetv2.inference import predict_from_raw_data as theirs

    half, gaussian = torch.half, theirs.compute_gaussian
    for task in job["predict"]:
        if task["float32"]:  # nnunetv2 weighs and adds up tiles in half precision
            torch.half, theirs.compute_gaussian = torch.float32, lru_cache(partial(gaussian, dtype=torch.float32))
        else:
            torch.half, theirs.compute_gaussian = half, gaussian
        predictor = theirs.nnUNetPredictor(
            device=torch.device("cpu"), use_mirroring=task["mirroring"], allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(work / task["model"]), task["folds"])
        previous = str(work / task["previous"]) if task.get("previous") else None
        predictor.predict_from_files(
            str(work / task["images"]), str(work / task["output"]), save_probabilities=True,
            num_processes_preprocessing=1, num_processes_segmentation_export=1,
            folder_with_segs_from_prev_stage=previous,
        )  # fmt: skip


if __name__ == "__main__":
    main()
