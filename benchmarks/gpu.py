"""What a GPU is used for: training steps, waiting for data, augmentation, a whole CT with 104 classes. One command.

    python benchmarks/gpu.py [--minutes 9] [--json FILE] [--rehearse]

Prints "no GPU" and ends where there is none. Everything runs in this process, bound to 4 cores, in the order of
importance; what does not fit into the time is left out by name. Volumes are made of smoothed noise: speed depends on
their size alone, and no data need to be brought along. The other side is nnU-Net's own: its networks
(dynamic-network-architectures), compiled, in its order of work with fp16 and a gradient scaler, one batch that already
lies on the GPU; its loss and its sliding window where nnunetv2 can be imported, else this is said and autoseg's loss
stands in. `--rehearse` runs all of it at toy size on the CPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

CORES = 4
NAME = "Dataset901_Noise"
NETWORKS = {
    "plain": ("plain_unet", (2,) * 6, (2,) * 5),
    "resenc_l": ("residual_encoder_unet", (1, 3, 4, 6, 6, 6), (1,) * 5),
}


class Bench:
    """Sizes, device and clock; results by part."""

    def __init__(self, minutes: float, rehearse: bool):
        import torch

        self.device = torch.device("cpu" if rehearse else "cuda")
        self.end = time.monotonic() + 60 * minutes
        self.toy = rehearse
        self.patch = (32,) * 3 if rehearse else (128,) * 3
        self.volume = (40, 48, 48) if rehearse else (192, 256, 256)
        self.features = (4, 8, 8, 8, 8, 8) if rehearse else (32, 64, 128, 256, 320, 320)
        self.classes = 6 if rehearse else 104
        self.coarse, self.fine = ((40, 40, 40), (50, 60, 60)) if rehearse else ((267, 273, 273), (400, 512, 512))
        self.warm_up, self.steps = (1, 2) if rehearse else (10, 40)
        self.results: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def part(self, name: str, needs: float, function: Callable[[], dict[str, Any]]) -> None:
        """Run a part if its `needs` (seconds) are left; a failure is told and the next part runs."""
        import torch

        if self.left < needs and not self.toy:
            self.results[name] = {"left_out": f"{self.left:.0f} s were left, it may need {needs:.0f}"}
        else:
            began = time.monotonic()
            try:
                self.results[name] = function() | {"took_seconds": round(time.monotonic() - began, 1)}
            except Exception as error:  # the other parts are worth having
                traceback.print_exc()
                self.results[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(name, json.dumps(self.results[name], default=str), flush=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, function: Callable[[], Any], count: int) -> float:
        """Return the seconds of one call, the device synchronised before and after all."""
        self.synchronise()
        began = time.perf_counter()
        for _ in range(count):
            function()
        self.synchronise()
        return (time.perf_counter() - began) / count

    def synchronise(self) -> None:
        """Wait for the device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def peak_bytes(self) -> int:
        """Return the most memory that tensors took on the GPU since the part began."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0


def card(bench: Bench) -> dict[str, Any]:
    """Measure what the card gives: a large bf16 product, a large copy."""
    import torch

    size, count = (256, 2) if bench.toy else (8192, 30)
    a, b = (torch.randn(size, size, device=bench.device).bfloat16() for _ in range(2))
    bench.seconds(lambda: a @ b, 3)
    product = bench.seconds(lambda: a @ b, count)
    source = torch.zeros(2**20 if bench.toy else 2**30, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.seconds(lambda: target.copy_(source), 3)
    copy = bench.seconds(lambda: target.copy_(source), count)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    return {"card": name, "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
            "bf16_flops": 2 * size**3 / product, "bytes_per_second": 2 * len(source) / copy}  # fmt: skip


def make_workspace(bench: Bench, folder: Path) -> Any:
    """Return a workspace with a few preprocessed volumes and a plan per network, patch and batch as asked for."""
    import nibabel as nib
    import numpy as np
    from scipy import ndimage

    import autoseg

    raw, random = folder / NAME, np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    for case in range(5):
        noise = ndimage.gaussian_filter(random.standard_normal(bench.volume, dtype=np.float32), 3)
        label = np.digitize(noise, np.quantile(noise, [0.8, 0.95])).astype(np.uint8)
        for name, array in ((f"imagesTr/case{case}_0000", 1000 * noise), (f"labelsTr/case{case}", label)):
            nib.save(nib.Nifti1Image(array.T, np.eye(4)), raw / f"{name}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": 5,
                   "file_ending": ".nii.gz"}  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(description))
    workspace = autoseg.Workspace.open(folder / "workspace")
    dataset = autoseg.open_dataset(raw, workspace)
    measured = autoseg.fingerprint(dataset, workspace)
    plans = autoseg.plan(dataset, measured, workspace, planner="nnunet", gpu_memory=8.0, configurations=["3d_fullres"])
    for name in NETWORKS:
        spec = network_spec(bench, name, outputs=3)
        changes = {"architecture": NETWORKS[name][0], "network": spec, "patch_size": bench.patch, "batch_size": 2}
        full = plans.configuration("3d_fullres").model_copy(update=changes)
        mine = plans.model_copy(update={"plans_name": name, "configurations": {"3d_fullres": full}})
        mine.write(workspace.plans_file(dataset.name, name))
        autoseg.preprocess(dataset, mine, workspace)
    return workspace, raw


def network_spec(bench: Bench, name: str, *, outputs: int) -> Any:
    """Return nnU-Net's network for this patch."""
    from autoseg.plans import NetworkSpec

    _, encoder, decoder = NETWORKS[name]
    strides = ((1,) * 3, *[(2,) * 3] * 4, (1,) * 3 if bench.toy else (2,) * 3)
    return NetworkSpec(
        dims=3, in_channels=1, num_outputs=outputs, patch_size=bench.patch, strides=strides,
        kernel_sizes=((3,) * 3,) * 6, features=bench.features, blocks_encoder=encoder, blocks_decoder=decoder,
    )  # fmt: skip


def autoseg_steps(bench: Bench, workspace: Any, raw: Path, name: str) -> dict[str, Any]:
    """Time training steps as `autoseg train` makes them: fed by threads, and from one batch; the augmentation alone."""
    from autoseg.batches import Prefetcher
    from autoseg.training.costs import _counted, _prepared
    from autoseg.training.loop import _optimise
    from autoseg.training.settings import Setting
    from autoseg.training.starting import _Training

    training = _Training(
        dataset=raw, configuration="3d_fullres", folds="all", trainer="supervised", plans_name=name,
        architecture=None, pretrained=None, settings=None, recipe=None, labelled=None, time_budget=None,
        device=bench.device.type, processes=1, seed=0, deterministic=False, restart=False, workers=CORES,
        workspace=workspace, name=None,
    )  # fmt: skip
    (context,) = training.contexts()
    run = _prepared(training.trainer_class, context, training.settings, CORES)
    run.trainer.modules["network"].train()
    (stream,) = run.trainer.build_streams().values()
    losses: list[Any] = []

    def step(batch: Any) -> None:
        losses.extend(_optimise(run, run.trainer.training_step({"labelled": batch}, 0.0)))

    feeder = Prefetcher(stream, start=0, device=bench.device, threads=CORES, depth=CORES + 2)
    try:
        for _ in range(bench.warm_up):
            step(feeder.next())
        waited = feeder.waited
        fed = bench.seconds(lambda: step(feeder.next()), bench.steps)
        waiting = (feeder.waited - waited) / bench.steps / fed
        batch = feeder.next()
    finally:
        feeder.close()
    alone = bench.seconds(lambda: step(batch), bench.steps)
    cuts = iter([stream.cut(step) for step in range(bench.steps)])
    augmentation = bench.seconds(lambda: stream.augment(next(cuts), 0, bench.device), bench.steps)
    peak, compiled = bench.peak_bytes, "OptimizedModule" in repr(type(run.trainer.modules["network"].module))
    plain = _prepared(training.trainer_class, context, {**training.settings, "compile": Setting("off", "count")}, 0)
    flops, _ = _counted(plain)
    return {
        "samples_per_second": 2 / fed, "step_seconds": fed, "step_seconds_one_batch": alone, "waiting_share": waiting,
        "augmentation_share": augmentation / fed, "peak_bytes": peak, "step_flops": flops, "compiled": compiled,
        "precision": run.precision, "loss": float(losses[-1]),
    }  # fmt: skip


def nnunet_steps(bench: Bench, name: str) -> dict[str, Any]:
    """Time nnU-Net's training step on one batch that lies on the GPU: it never waits for data here."""
    import torch

    network = nnunet_network(bench, name, outputs=3).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, weight_decay=3e-5, nesterov=True)
    compiled = network if bench.toy else torch.compile(network)
    scaler = torch.amp.GradScaler(bench.device.type, enabled=not bench.toy)
    image = torch.randn(2, 1, *bench.patch, device=bench.device)
    label = torch.randint(0, 3, (2, 1, *bench.patch), device=bench.device).float()
    loss, whose = nnunet_loss(len(bench.features) - 1)
    targets = [label[(..., *[slice(None, None, 2**level)] * 3)] for level in range(len(bench.features) - 1)]

    def step() -> None:
        """The order of `nnUNetTrainer.train_step`."""
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, torch.float16, enabled=not bench.toy):
            value = loss(compiled(image), targets)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        value.detach().cpu().numpy()

    bench.seconds(step, bench.warm_up)
    seconds = bench.seconds(step, bench.steps)
    return {"samples_per_second": 2 / seconds, "step_seconds": seconds, "loss": whose, "peak_bytes": bench.peak_bytes}


def nnunet_network(bench: Bench, name: str, *, outputs: int) -> Any:
    """Return the network as nnU-Net builds it, with deep supervision."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    spec = network_spec(bench, name, outputs=outputs)
    residual = name == "resenc_l"
    kind, blocks = (ResidualEncoderUNet, "n_blocks_per_stage") if residual else (PlainConvUNet, "n_conv_per_stage")
    return kind(
        input_channels=1, n_stages=6, features_per_stage=list(spec.features), conv_op=torch.nn.Conv3d,
        kernel_sizes=[list(size) for size in spec.kernel_sizes], strides=[list(stride) for stride in spec.strides],
        num_classes=outputs, n_conv_per_stage_decoder=list(spec.blocks_decoder), conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=True, **{blocks: list(spec.blocks_encoder)},
    ).to(bench.device)  # fmt: skip


def nnunet_loss(outputs: int) -> tuple[Callable[..., Any], str]:
    """Return nnU-Net's loss over all outputs, else autoseg's in its place, and whose it is."""
    weights = [0.5**level for level in range(outputs - 1)] + [0.0]
    weights = [weight / sum(weights) for weight in weights]
    try:
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
        from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    except ImportError:
        from autoseg.labels import labels_from_description
        from autoseg.losses import SegmentationLoss

        labels = labels_from_description({"labels": {"background": 0, "a": 1, "b": 2}})
        one = SegmentationLoss(labels, batch_dice=False)

        def loss(logits: Any, targets: Any) -> Any:
            pairs = zip(weights, logits, targets, strict=True)
            return sum(weight * one(output, target[:, 0].long()) for weight, output, target in pairs if weight)

        return loss, "autoseg's: nnunetv2 is not installed here"
    theirs = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, weight_ce=1, weight_dice=1,
        ignore_label=None, dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    return DeepSupervisionWrapper(theirs, weights), "nnunetv2's"


def prediction(bench: Bench) -> dict[str, Any]:
    """Predict a CT of 400x512x512 voxels at 1.5 mm with mirroring, and bring 104 classes back to its grid."""
    import numpy as np
    import torch

    from autoseg.inference.export import label_map
    from autoseg.inference.window import sliding_window
    from autoseg.labels import labels_from_description
    from autoseg.plugins import build_network

    spec = network_spec(bench, "plain", outputs=bench.classes).model_copy(update={"deep_supervision": False})
    network = build_network("plain_unet", spec).to(bench.device).eval()
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *bench.coarse), dtype=np.float32))
    fields = {"num_outputs": bench.classes, "mirror_axes": (0, 1, 2), "device": bench.device}

    def predict() -> Any:
        with torch.inference_mode():
            return sliding_window([network], image, bench.patch, **fields).logits

    if not bench.toy:
        sliding_window([network], image[:, :128, :160, :160], bench.patch, **fields)  # kernels are chosen
    bench.synchronise()
    began = time.perf_counter()
    logits = predict()
    bench.synchronise()
    windows = time.perf_counter() - began
    names = {"background": 0} | {str(value): value for value in range(1, bench.classes)}
    labels = labels_from_description({"labels": names})
    began = time.perf_counter()
    found = label_map([resampled(bench, logits)], labels)
    bench.synchronise()
    export = time.perf_counter() - began
    return {
        "window_seconds": windows, "export_seconds": export, "seconds": windows + export, "shape": found.shape,
        "logits_on": str(logits.device), "export_bytes_per_second": logits.nbytes / export,
        "peak_bytes": bench.peak_bytes,
    }  # fmt: skip


def resampled(bench: Bench, logits: Any) -> Any:
    """Return logits of the 1.5 mm grid seen on the grid of the image."""
    from sides.material import plain_plans

    from autoseg.inference.resampling import Resampled
    from autoseg.interop.nnunet_plans import read_plans
    from autoseg.labels import labels_from_description
    from autoseg.store.records import CaseProperties

    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    plans = read_plans(
        plain_plans((1.5,) * 3), description, labels_from_description(description), "3d_fullres", Path("plans.json")
    )
    properties = CaseProperties(
        spacing=(1.0, 0.8, 0.8), shape_before_crop=bench.fine, crop_box=tuple((0, size) for size in bench.fine),
        shape_after_crop=bench.fine, shape_resampled=bench.coarse,
    )  # fmt: skip
    return Resampled(logits, properties, plans, plans.configuration("3d_fullres"))


def nnunet_prediction(bench: Bench) -> dict[str, Any]:
    """Predict the same with nnunetv2's sliding window; its export is timed on 2 classes and extrapolated."""
    import numpy as np
    import torch

    try:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    except ImportError:
        return {"left_out": "nnunetv2 is not installed here"}
    from types import SimpleNamespace

    network = nnunet_network(bench, "plain", outputs=bench.classes).eval()
    network.decoder.deep_supervision = False
    predictor = nnUNetPredictor(device=bench.device, allow_tqdm=False, perform_everything_on_device=True)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=bench.patch)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=bench.classes)
    predictor.allowed_mirroring_axes = (0, 1, 2)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *bench.coarse), dtype=np.float32))
    if not bench.toy:
        predictor.predict_sliding_window_return_logits(image[:, :128, :160, :160])
    bench.synchronise()
    began = time.perf_counter()
    logits = predictor.predict_sliding_window_return_logits(image)
    bench.synchronise()
    windows = time.perf_counter() - began
    part = logits[:2].cpu().numpy()
    began = time.perf_counter()
    resample_data_or_seg_to_shape(part, bench.fine, (1.5,) * 3, (1.0, 0.8, 0.8), order=1, force_separate_z=None)
    export = (time.perf_counter() - began) * bench.classes / 2
    return {"window_seconds": windows, "export_seconds_extrapolated": export, "seconds": windows + export,
            "peak_bytes": bench.peak_bytes}  # fmt: skip


def conclude(results: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios that the project asks for, and whether they are reached; None: a part is missing."""

    def of(part: str, key: str) -> float | None:
        return results.get(part, {}).get(key)

    def quotient(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    rows: dict[str, tuple[float | None, str, float]] = {}
    for name in NETWORKS:
        ours = f"autoseg step {name}"
        speed = quotient(of(ours, "samples_per_second"), of(f"nnunet step {name}", "samples_per_second"))
        rate = quotient(of(ours, "step_flops"), of(ours, "step_seconds"))
        rows[f"{name}: samples/s, autoseg / nnU-Net"] = (speed, ">=", 1.5)
        rows[f"{name}: share of a step waiting for data"] = (of(ours, "waiting_share"), "<", 0.02)
        rows[f"{name}: augmentation / step"] = (of(ours, "augmentation_share"), "<", 0.05)
        rows[f"{name}: share of the card's bf16 rate"] = (quotient(rate, of("card", "bf16_flops")), "told", 0)
    whole = quotient(of("nnunet prediction", "seconds"), of("autoseg prediction", "seconds"))
    rows["CT with 104 classes: seconds, nnU-Net / autoseg"] = (whole, ">=", 4)
    band = quotient(of("autoseg prediction", "export_bytes_per_second"), of("card", "bytes_per_second"))
    rows["export: logits read once / bandwidth"] = (band, "told", 0)
    tests = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "told": lambda a, b: None}
    return {
        name: {"value": value, "target": None if sign == "told" else f"{sign} {wanted}",
               "reached": None if value is None else tests[sign](value, wanted)}
        for name, (value, sign, wanted) in rows.items()
    }  # fmt: skip


def main() -> None:
    """Measure everything and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        print("no GPU")
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(min(CORES, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else CORES))
    bench = Bench(options.minutes - 0.25, options.rehearse)
    with tempfile.TemporaryDirectory(prefix="gpu_") as folder:
        bench.part("card", 5, lambda: card(bench))
        workspace, raw = make_workspace(bench, Path(folder))
        print(f"data made, {bench.left:.0f} s left", flush=True)
        for name, needs in (("plain", 60), ("resenc_l", 90)):
            bench.part(f"autoseg step {name}", needs, lambda name=name: autoseg_steps(bench, workspace, raw, name))
            bench.part(f"nnunet step {name}", needs, lambda name=name: nnunet_steps(bench, name))
            if name == "plain":
                bench.part("autoseg prediction", 45, lambda: prediction(bench))
        bench.part("nnunet prediction", 90, lambda: nnunet_prediction(bench))
    verdicts = conclude(bench.results)
    for name, row in verdicts.items():
        value = "not measured" if row["value"] is None else f"{row['value']:.3g}"
        print(f"{name:52}{value:>14}  {row['target'] or ''}  {'' if row['reached'] is None else row['reached']}")
    if options.json:
        options.json.write_text(json.dumps({"parts": bench.results, "verdicts": verdicts}, indent=1, default=str))


if __name__ == "__main__":
    main()
