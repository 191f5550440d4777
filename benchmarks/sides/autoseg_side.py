"""What autoseg does in `benchmarks/compare.py`, in a process of its own: python autoseg_side.py JOB.json."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from timing import timed


def main() -> None:
    """Carry out one job and print its answer."""
    job = json.loads(Path(sys.argv[1]).read_text())
    functions = {"batches": batches, "step": step, "export": export, "segment": segment, "import": import_model}
    if job["do"] in functions:
        import torch

        torch.set_num_threads(job["threads"])
        torch.manual_seed(job.get("seed", 0))
    else:
        import checking
        import material

        functions = {**checking.JOBS, **material.JOBS, "trained": trained}
    print("ANSWER " + json.dumps(functions[job["do"]](job)))


def import_model(job: dict[str, Any]) -> dict[str, Any]:
    """Take over nnunetv2's plans and weights, and preprocess the data for them."""
    from autoseg.interop import import_nnunet
    from autoseg.interop.nnunet_plans import read_plans
    from autoseg.preprocessing import preprocess
    from autoseg.raw import open_dataset
    from autoseg.workspace import Workspace

    workspace = Workspace.open(Path(job["workspace"]))
    dataset = open_dataset(job["raw"], workspace)
    theirs = Path(job["plans"])
    plans = read_plans(
        json.loads(theirs.read_text()), dataset.description, dataset.labels, job["configuration"], theirs
    )
    plans.write(workspace.plans_file(dataset.name, plans.plans_name))
    preprocess(dataset, plans, workspace, workers=job["threads"])
    model = import_nnunet(Path(job["model"]), Path(job["workspace"]) / "model")
    return {"model": str(model), "plans_name": plans.plans_name, "dataset": dataset.name}


def batches(job: dict[str, Any]) -> dict[str, Any]:
    """Make augmented batches for some seconds: in this thread, or in `loaders` threads ahead of need, as training."""
    import numpy as np

    from autoseg.batches import Prefetcher

    run = _run(job)
    stream = run.trainer.build_streams()["labelled"]
    loaders = job.get("loaders", 0)
    rows: list[list[float]] = []

    def make() -> None:
        batch = feeder.next()
        foreground = (batch.segmentation > 0).float().mean()
        rows.append([float(batch.image.mean()), float(batch.image.std()), float(foreground)])

    with Prefetcher(stream, start=0, device="cpu", threads=loaders, depth=loaders + 2) as feeder:
        for _ in range(1 + job.get("ahead", 0)):
            batch = feeder.next()
        times = timed(make, job)
    shapes = [list(batch.image.shape), list(batch.segmentation[:, None].shape)]
    return {**times, "shapes": shapes, "statistics": np.mean(rows, 0).tolist()}


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Make training steps on one fixed batch, from the weights of the imported checkpoint."""
    import torch
    from safetensors.torch import load_file

    from autoseg.batches import Batch
    from autoseg.training.checkpoint import unwrapped
    from autoseg.training.loop import _optimise

    run = _run(job)
    network = unwrapped(run.trainer.modules["network"])
    (weights,) = Path(job["model"]).rglob("*.safetensors")
    network.load_state_dict(load_file(weights))
    network.train()
    saved = torch.load(job["batch"])
    batch = Batch(saved["data"], saved["target"][0][:, 0].to(torch.int16), ())
    losses: list[float] = []

    def train() -> None:
        losses.extend(float(loss) for loss in _optimise(run, run.trainer.training_step({"labelled": batch}, 0.0)))

    train()  # warm-up
    return {**timed(train, job), "losses": losses[:3]}


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Resample logits to the grid of the image, decide, write; the logits are in memory before."""
    import numpy as np
    import torch

    from autoseg.inference import logits_to_label_map

    plans, labels, properties, write = _many_classes(job)
    logits = torch.empty(np.load(job["logits"], mmap_mode="r").shape)
    for index in range(len(logits)):  # opened for each class: what is mapped counts as memory
        logits[index] = torch.from_numpy(np.load(job["logits"], mmap_mode="r")[index].astype(np.float32))
    configuration = plans.configuration("3d_fullres")
    return timed(
        lambda: write(logits_to_label_map(logits, properties, plans, configuration, labels)), {"least": 1, "seconds": 0}
    )


def segment(job: dict[str, Any]) -> dict[str, Any]:
    """Predict noise by one convolution with an output per class, tile by tile; decide on the grid of the image, write.

    So small a network leaves the memory to what the sliding window and the export take.
    """
    import torch

    from autoseg.inference import Request, predict_label_map

    plans, labels, properties, write = _many_classes(job)
    network = torch.nn.Conv3d(1, labels.num_outputs, 3, padding=1)
    image = torch.randn(1, *properties.shape_resampled)
    request = Request([network], image, plans.configuration("3d_fullres"), precision="fp32")
    return timed(lambda: write(predict_label_map(request, plans, properties, labels)), {"least": 1, "seconds": 0})


def _many_classes(job: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Return plans, labels and properties of the case with many classes, and what writes its label map."""
    from autoseg.interop.nnunet_plans import read_plans
    from autoseg.labels import labels_from_description
    from autoseg.raw import read_label, write_label
    from autoseg.store.records import CaseProperties

    description = json.loads(Path(job["description"]).read_text())
    labels = labels_from_description(description, where=job["description"])
    theirs = Path(job["plans"])
    plans = read_plans(json.loads(theirs.read_text()), description, labels, "3d_fullres", theirs)
    _, geometry = read_label(Path(job["grid"]))
    shape = tuple(job["shape"])
    properties = CaseProperties(
        spacing=tuple(geometry.spacing),
        shape_before_crop=shape,
        crop_box=tuple((0, size) for size in shape),
        shape_after_crop=shape,
        shape_resampled=tuple(job["coarse"]),
    )
    output = Path(job["output"] + ".nii.gz")
    return plans, labels, properties, lambda found: write_label(output, labels.to_raw(found), geometry)


def trained(job: dict[str, Any]) -> dict[str, Any]:
    """Copy the label maps of the validation of a run; returns how many steps it made."""
    (run,) = (path.parent for path in Path(job["workspace"]).glob(f"results/*/{job['run']}/fold_*/run.json"))
    shutil.copytree(run / "validation", job["predicted"])
    return {"steps": json.loads((run / "run.json").read_text())["steps_done"]}


def _run(job: dict[str, Any]) -> Any:
    """Return the training loop of a run that has not begun."""
    from autoseg.training.costs import _prepared
    from autoseg.training.starting import _Training

    training = _Training(
        dataset=job["raw"], configuration=job["configuration"], folds="all", trainer="supervised",
        plans_name=job["plans_name"], architecture=None, pretrained=None,
        settings={"precision": job.get("precision", "fp32")}, recipe=None, labelled=None, time_budget=None,
        device="cpu", processes=1, seed=job.get("seed", 0), deterministic=False, restart=False,
        workers=job["threads"], workspace=job["workspace"], name=None,
    )  # fmt: skip
    (context,) = training.contexts()
    return _prepared(training.trainer_class, context, training.settings, job["threads"])


if __name__ == "__main__":
    main()
