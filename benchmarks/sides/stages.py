"""The stages that are compared: for each piece of data what both sides do, with the targets of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sides.answers import compare_batches, compare_losses
from sides.figures import Target
from sides.place import Place, Work

DATA = {"hippocampus": "Dataset004_Hippocampus", "cardiac": "Dataset112_CardiacACDC", "ct": "Dataset109_LiverCT",
        "slices": "Dataset104_EMMembrane"}  # fmt: skip
CONFIGURATIONS = {"hippocampus": "3d_fullres", "cardiac": "3d_fullres", "ct": "3d_fullres", "slices": "2d"}


def evaluate(place: Place) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Score a folder: hippocampus, and a CT with many classes; as nnU-Net does, and with surface scores, alone."""
    for data in ("hippocampus", "ct104"):
        yield data, lambda data=data: _evaluate(place, data, _evaluated_at(place, data))
        yield f"{data} surface", lambda data=data: _evaluate(place, data, _evaluated_at(place, data), surface=True)


def _evaluated_at(place: Place, data: str) -> Place:
    return place.at("many" if data == "ct104" else "evaluate_hippocampus")


def _evaluate(place: Place, data: str, at: Place, *, surface: bool = False) -> Work:
    if data == "ct104":
        made = many_classes(at)
    else:
        references = place.shared / "data" / DATA["hippocampus"] / "labelsTr"
        cases = 20 if place.quick else 200
        made = at.once("autoseg", "make_predictions", "made", folder=at.work, references=references, cases=cases)
    folders = at.work / "predictions", at.work / "references"
    ours, theirs = at.work / "ours.json", at.work / "theirs.json"
    n = place.threads
    arguments = (*folders, "--dataset-json", made["description"], "--output", ours, "--workers", n)
    if surface:
        return Work(
            "evaluate", f"{data} surface", at.command("autoseg", "autoseg", "evaluate", *arguments, threads=1), None,
            Target(), differs="nnU-Net has no surface scores: HD95 and surface Dice of every label by autoseg alone",
        )  # fmt: skip
    return Work(
        "evaluate", data,
        at.command("autoseg", "autoseg", "evaluate", *arguments, "--no-surface", threads=1),
        at.command("nnunet", "nnUNetv2_evaluate_folder", *reversed(folders), "-djfile", made["description"],
                   "-pfile", made["plans"], "-o", theirs, "-np", n, threads=1),
        Target(0.33),
        lambda *_: place.check("check_scores", ours=ours, theirs=theirs, description=made["description"]),
        differs="autoseg also writes volumes, bootstrap intervals and a CSV",
    )  # fmt: skip


def start(place: Place) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Help of two commands, and the scores of one small case: the first useful output."""
    pairs = {"--help": ((), "nnUNetv2_train"), "predict --help": (("predict",), "nnUNetv2_predict")}
    for data, (ours, theirs) in pairs.items():
        yield data, lambda data=data, ours=ours, theirs=theirs: Work(
            "start", data, place.command("autoseg", "autoseg", *ours, "--help", threads=1),
            place.command("nnunet", theirs, "--help", threads=1), Target(0.2), lambda *_: {"agree": True},
        )  # fmt: skip
    yield "one case scored", lambda: _first_output(place)


def _first_output(place: Place) -> Work:
    at = place.at("evaluate_one")
    references = place.shared / "data" / DATA["hippocampus"] / "labelsTr"
    at.once("autoseg", "make_predictions", "made", folder=at.work, references=references, cases=1)
    whole = _evaluate(place, "one", at)
    return Work("start", "one case scored", whole.ours, whole.theirs, Target(0.2), whole.check)


def batches(place: Place) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Make augmented batches of three shapes: in one thread of one process; and ahead of need, as training does."""
    for data in ("hippocampus", "ct", "slices"):
        yield data, lambda data=data: _in_training(place, "batches", data, Target(0.4, 0.5))
        yield f"{data} loaders", lambda data=data: _in_training(place, "batches", data, Target(0.4, 0.5), loaders=True)


def step(place: Place) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Make training steps of three shapes: forward, loss, backward, clipping, SGD."""
    for data in ("hippocampus", "ct", "slices"):
        yield data, lambda data=data: _in_training(place, "step", data, Target(0.4, 0.8))
        if has_bf16():
            yield f"{data} bf16", lambda data=data: _in_training(place, "step", data, Target(0.4, 0.8), "bf16")


def _in_training(
    place: Place, stage: str, data: str, target: Target, precision: str = "fp32", *, loaders: bool = False
) -> Work:
    at, made, taken = trained(place, data)
    count = 1 if stage == "batches" else place.threads
    limits: dict[str, Any] = {"least": 2, "seconds": 2} if place.quick else {"least": 3, "seconds": 20}
    if loaders:  # what nnU-Net keeps ready, and what is under way, is taken before
        limits |= {"loaders": place.threads, "ahead": max(6, place.threads // 2) + 2 * place.threads}
    common = {"dataset": DATA[data], "configuration": CONFIGURATIONS[data], "threads": count, "seed": 1, **limits}
    ours = {"raw": at.work / "raw" / DATA[data], "workspace": at.work / "ours", "plans_name": taken["plans_name"],
            "model": taken["model"], "batch": at.work / "batch.pt", "precision": precision}  # fmt: skip
    theirs = {"plans": made["plans"], "checkpoint": made["checkpoint"]}
    kind = "loaders" if loaders else "" if precision == "fp32" else precision
    return Work(
        stage, f"{data} {kind}".rstrip(), at.side("autoseg", stage, name=f"ours_{stage}{kind}", **common, **ours),
        at.side("nnunet", stage, name=f"theirs_{stage}{kind}", **common, **theirs), target,
        compare_batches if stage == "batches" else compare_losses, unit={"batches": "batch", "step": "step"}[stage],
        differs=_differences(precision, loaders),
    )  # fmt: skip


def _differences(precision: str, loaders: bool) -> str:
    told = (
        "nnU-Net makes the targets of deep supervision with the batch, autoseg in the loss; so the two stages together "
        "are the fair sum"
    )
    if loaders:
        told += "; as in training nnU-Net's loaders are processes, with one more for validation, autoseg's are threads"
    return told if precision == "fp32" else f"{told}; nnU-Net has no bf16 on a CPU and runs fp32"


def trained(place: Place, data: str) -> tuple[Place, dict[str, Any], dict[str, Any]]:
    """Return a place where both have preprocessed the data for one plan, with weights and a batch."""
    at = place.at(f"train_{data}")
    few = {"hippocampus": 10, "slices": 4}.get(data) if place.quick else None
    raw = at.raw(DATA[data], cases=few)
    wide = 8 if place.quick else 32
    changes: dict[str, dict[str, Any]] = {
        "hippocampus": {"changes": {"batch_size": 4}, "features_divided_by": 32 // wide},
        "ct": {"changes": {"patch_size": [96, 160, 160], "batch_size": 2, "spacing": [1.5, 1.2, 1.2]},
               "network": network((96, 160, 160), 8)},
        "slices": {"changes": {"patch_size": [512, 512], "batch_size": 12}, "network": network((512, 512), 8)},
    }  # fmt: skip
    common = {"dataset": DATA[data], "configuration": CONFIGURATIONS[data]}
    made = at.once("nnunet", "prepare", "theirs_prepared", **common, **changes[data])
    taken = at.once(
        "autoseg", "import", "ours_prepared", **common, raw=raw, workspace=at.work / "ours",
        plans=made["plans"], model=made["model"],
    )  # fmt: skip
    return at, made, taken


def predict(place: Place) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Predict a folder with mirroring: ten cases of hippocampus by two folds, cardiac, one whole CT."""
    for data in ("hippocampus", "cardiac", "ct"):
        yield data, lambda data=data: _predict(place, data)
        if has_bf16():
            yield f"{data} bf16", lambda data=data: _predict(place, data, "bf16")


def _predict(place: Place, data: str, precision: str = "fp32") -> Work:
    at = place.at(f"predict_{data}")
    source = place.shared / "data" / DATA[data]
    images = source / ("imagesTr" if data == "ct" else "imagesTs")
    references: Any = source / ("labelsTr" if data == "ct" else "labelsTs")
    if place.quick and data != "ct":
        images = few_files(at, images, 2)
    if data == "hippocampus":
        theirs_model, folds = place.shared / "models" / "nnunet_hippocampus" / "model", ("0", "1")
        ours_model = at.work / "model"
        if not ours_model.exists():
            at.work.mkdir(parents=True, exist_ok=True)
            at.command("autoseg", "autoseg", "import-nnunet", theirs_model, "-o", ours_model, threads=1).run()
    else:
        at, made, taken = weighted(place, data)
        theirs_model, ours_model, folds = made["model"], taken["model"], ("all",)
    out = at.work / "out_ours", at.work / "out_theirs"
    n = place.threads
    networks = "fp32 networks on both sides"
    if precision == "bf16":
        networks = "bf16 networks, as autoseg chooses here; nnU-Net has no bf16 on a CPU and runs fp32"
    return Work(
        "predict", data if precision == "fp32" else f"{data} {precision}",
        at.command("autoseg", "autoseg", "predict", "-i", images, "-o", out[0], "-m", ours_model, "--device", "cpu",
                   "--precision", precision, "--workers", 1, threads=n, fresh=(out[0],)),
        at.command("nnunet", "nnUNetv2_predict_from_modelfolder", "-i", images, "-o", out[1], "-m", theirs_model,
                   "-f", *folds, "-device", "cpu", "-npp", 1, "-nps", 1, threads=n, fresh=(out[1],)),
        Target(0.35, 0.5),
        lambda *_: place.check(
            "check_labels", ours=out[0], theirs=out[1], references=references, precision=precision
        ),
        differs=f"{networks}; nnU-Net sums tiles in half precision, autoseg in single",
    )  # fmt: skip


def weighted(place: Place, data: str) -> tuple[Place, dict[str, Any], dict[str, Any]]:
    """Return a place with nnU-Net's own plan of the data, a quarter as wide, trained for some steps."""
    at = place.at(f"predict_{data}")
    raw = at.raw(DATA[data], cases=4 if place.quick and data == "cardiac" else None)
    common = {"dataset": DATA[data], "configuration": CONFIGURATIONS[data]}
    made = at.once(
        "nnunet", "prepare", "theirs_prepared", **common, features_divided_by=16 if place.quick else 4,
        steps=10 if place.quick else 60,
    )  # fmt: skip
    taken = at.once(
        "autoseg", "import", "ours_prepared", **common, raw=raw, workspace=at.work / "ours",
        plans=made["plans"], model=made["model"],
    )  # fmt: skip
    return at, made, taken


def preprocess(place: Place) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Fingerprint, plan and preprocess all configurations."""
    for data in ("hippocampus", "cardiac", "ct"):
        yield data, lambda data=data: preprocess_work(place, data)


def preprocess_work(place: Place, data: str, *, cases: int | None = None) -> Work:
    """Return the work on a data set, or on its first cases."""
    if cases is None and place.quick and data != "ct":
        cases = {"hippocampus": 10, "cardiac": 3}[data]
    at = place.at(f"preprocess_{data}_{cases or 'all'}")
    raw, number = at.raw(DATA[data], cases=cases), int(DATA[data][7:10])
    ours, theirs = at.work / "ours", at.work / "preprocessed"
    n = place.threads
    return Work(
        "preprocess", data if cases is None else f"{data} {cases}",
        at.command("autoseg", "autoseg", "plan-and-preprocess", raw, "--planner", "nnunet", "--gpu-memory", 8,
                   "--device", "cpu", "--workers", n, "--workspace", ours, threads=1, fresh=(ours,)),
        at.command("nnunet", "nnUNetv2_plan_and_preprocess", "-d", number, "-npfp", n, "-np", n, "--no_pbar",
                   threads=1, fresh=(theirs,)),
        Target(0.33, 0.5),
        lambda *_: place.check("check_preprocessed", ours=ours, theirs=theirs, dataset=DATA[data]),
        differs="autoseg stores half precision, nnU-Net single",
    )  # fmt: skip


def export(place: Place) -> Iterator[tuple[str, Callable[[], Work]]]:
    """Bring logits of 104 classes from 3 mm to 300 x 300 x 300 voxels of 1.5 mm, decide and write."""
    yield "ct104", lambda: _export(place)


def _export(place: Place) -> Work:
    at = place.at("many")
    jobs, made = export_jobs(at)
    folders = at.work / "export_ours", at.work / "export_theirs"
    return Work(
        "export", f"{made['classes']} classes {made['shape'][0]}^3", *jobs, Target(0.2, 0.2),
        lambda *_: place.check("check_labels", ours=folders[0], theirs=folders[1]), unit="export",
        differs="each has its own predictor's logits in memory before the clock starts: single precision in autoseg, "
        "half in nnU-Net",
        warm=export_jobs(place.at("many_small"), size=60, classes=12)[0],
    )  # fmt: skip


def export_jobs(
    at: Place, *, size: int | None = None, classes: int | None = None, do: str = "export"
) -> tuple[Any, dict[str, Any]]:
    """Return the jobs of both sides, and the material; `do` "segment": the sliding window as well."""
    made = many_classes(at, size=size, classes=classes)
    jobs = []
    for side, name in (("autoseg", "ours"), ("nnunet", "theirs")):
        folder = at.work / f"{do}_{name}"
        folder.mkdir(exist_ok=True)
        jobs.append(at.side(side, do, name=f"{do}_{name}", output=folder / "ct_0", **made))
    return tuple(jobs), made


def many_classes(at: Place, *, size: int | None = None, classes: int | None = None) -> dict[str, Any]:
    """Return the material of many classes, made once."""
    size, classes = size or (100 if at.quick else 300), classes or (24 if at.quick else 104)
    labels = next((at.shared / "data" / "Dataset108_TotalSegCT" / "labelsTr").glob("*.nii.gz"))
    fields = {"labels": labels, "folder": at.work, "size": size, "classes": classes, "cases": 3}
    return at.once("autoseg", "make_export", "made", **fields) | {"classes": classes}


def network(patch: tuple[int, ...], width: int) -> dict[str, Any]:
    """Return the arguments of a plain U-Net for a patch: every axis is halved while half of it is at least 4."""
    dims, sizes, strides = len(patch), list(patch), [[1] * len(patch)]
    while True:
        stride = [2 if size % 2 == 0 and size // 2 >= 4 else 1 for size in sizes]
        if max(stride) == 1:
            break
        strides.append(stride)
        sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
    stages = len(strides)
    most = 10 * width if dims == 3 else 16 * width
    return {
        "n_stages": stages, "features_per_stage": [min(most, width * 2**stage) for stage in range(stages)],
        "kernel_sizes": [[3] * dims] * stages, "strides": strides, "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }  # fmt: skip


def few_files(at: Place, folder: Any, count: int) -> Any:
    """Return a folder with links to the first files of another."""
    target = at.work / "images"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir())[:count]:
        if not (target / path.name).exists():
            (target / path.name).symlink_to(path.resolve())
    return target


def has_bf16() -> bool:
    """Tell whether the processor computes in bf16."""
    file = Path("/proc/cpuinfo")
    flags = file.read_text(encoding="ascii", errors="replace") if file.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


STAGES = {
    "evaluate": evaluate,
    "start": start,
    "batches": batches,
    "step": step,
    "predict": predict,
    "preprocess": preprocess,
    "export": export,
}
