"""nnU-Net's results folder or exported zip file -> autoseg model folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

import autoseg
from autoseg.errors import UserError
from autoseg.interop.checkpoints import read_checkpoint
from autoseg.interop.folders import new_folder
from autoseg.interop.names import checked_name
from autoseg.interop.nnunet_checks import check_tensor
from autoseg.interop.nnunet_plans import REORIENTING_READERS, channel_names, read_plans
from autoseg.interop.sources import Experiment, find_experiments, opened, read_experiment
from autoseg.labels import Labels, labels_from_description
from autoseg.model_folder import MODEL_FILE, Member, Model, PostprocessingStep, checksums
from autoseg.plans import Plans
from autoseg.plugins import build_network
from autoseg.storage import read_json, write_bytes, write_json

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint_final.pth"
WRAPPERS = ("module.", "_orig_mod.")  # of distributed and compiled networks


@dataclass(frozen=True)
class _Chosen:
    """An experiment that becomes a member."""

    experiment: Experiment
    configuration: str
    plans: Plans
    previous: str | None
    in_ensemble: bool


def import_nnunet(
    source: Path | str,
    output: Path | str,
    *,
    folds: Sequence[str | int] | None = None,
    configurations: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    postprocessing: bool = False,
) -> Path:
    """Turn a trained model of nnU-Net v2 into a model folder at `output`, and return that folder.

    `source` is a folder `TRAINER__PLANS__CONFIGURATION`, a folder of several of them, or a zip file of
    `nnUNetv2_export_model_to_zip`. Of several, `configurations` names those to be averaged; the previous stage of a
    cascade is found by itself. `folds`: None takes all numbered ones, and "all" only where there are no others, as
    nnU-Net does. `postprocessing` takes over the one that nnU-Net's find_best_configuration chose; `nnUNetv2_predict`
    leaves it out. Raises UserError for a source that cannot be read safely or would not predict the same; then nothing
    is left at `output`.
    """
    output = Path(output)
    with new_folder(output) as new, opened(Path(source), checkpoint) as folder:
        experiments = _choose(find_experiments(folder, checkpoint), configurations, folder)
        first = experiments[0]
        where = first.folder / "dataset.json"
        labels = labels_from_description(first.description, str(where))
        _check_labels(labels, where)
        members = [_member(new, chosen, labels, folds) for chosen in _with_previous(experiments, labels, checkpoint)]
        steps = _postprocessing(experiments, labels, wanted=postprocessing)
        model = _model(first, labels, members, steps).model_copy(update={"checksums": checksums(new)})
        write_json(new / MODEL_FILE, model.model_dump(mode="json"), sealed=True)
    return output


def _choose(found: list[Experiment], wanted: Sequence[str] | None, where: Path) -> list[Experiment]:
    """Return the experiments of the wanted configurations, or the only one there is."""
    known = ", ".join(experiment.folder.name for experiment in found)
    if not wanted:
        if len(found) == 1:
            return found
        raise UserError(
            f"there are several models: {known}",
            where=where,
            mend="name the configurations to take (-c), or give one of these folders",
        )
    chosen = []
    for name in dict.fromkeys(wanted):
        hits = [experiment for experiment in found if experiment.configuration_hint == name]
        if len(hits) != 1:
            raise UserError(
                f"{len(hits) or 'no'} models of configuration {name!r} among: {known}",
                where=where,
                mend="give the folder of one trainer and plans" if hits else "choose among these configurations",
            )
        chosen += hits
    return chosen


def _with_previous(experiments: list[Experiment], labels: Labels, checkpoint: str) -> list[_Chosen]:
    """Return the experiments as members, every previous stage before the one that needs it."""
    chosen: dict[str, _Chosen] = {}
    for experiment in experiments:
        member = _configured(experiment, labels, in_ensemble=True)
        if member.previous is not None and not _is_chosen(member.previous, chosen, experiments):
            below = _configured(_previous_stage(experiment, member.previous, checkpoint), labels, in_ensemble=False)
            chosen[below.configuration] = below
        chosen[member.configuration] = member
    return list(chosen.values())


def _is_chosen(name: str, chosen: Mapping[str, _Chosen], experiments: list[Experiment]) -> bool:
    return name in chosen or any(experiment.configuration_hint == name for experiment in experiments)


def _previous_stage(experiment: Experiment, name: str, checkpoint: str) -> Experiment:
    folder = experiment.folder.parent / f"{experiment.stem}__{name}"
    if not folder.is_dir():
        others = [path for path in sorted(experiment.folder.parent.glob(f"*__{name}")) if path.is_dir()]
        if len(others) != 1:
            raise UserError(
                f"the cascade needs its previous stage {name!r}, and there is no folder {folder.name} beside it",
                where=experiment.folder,
                mend="put the results folder of the previous stage beside this one",
            )
        folder = others[0]
    return read_experiment(folder, checkpoint)


def _configured(experiment: Experiment, labels: Labels, *, in_ensemble: bool) -> _Chosen:
    if not experiment.checkpoints:
        others = sorted({path.name for path in experiment.folder.glob("fold_*/checkpoint_*.pth")})
        mend = f"choose another checkpoint: {', '.join(others)}" if others else "finish the training"
        raise UserError("no fold has the checkpoint", where=experiment.folder, mend=mend)
    where = experiment.folder / "plans.json"
    first = next(iter(experiment.checkpoints.values()))
    name = read_checkpoint(first)["init_args"].get("configuration")
    if name is None:
        raise UserError("field init_args.configuration is missing", where=first)
    checked_name(name, "init_args.configuration", first)
    _same_description(experiment, labels)
    plans = read_plans(experiment.plans, experiment.description, labels, name, where)
    return _Chosen(experiment, name, plans, plans.configuration(name).previous_stage, in_ensemble)


def _same_description(experiment: Experiment, labels: Labels) -> None:
    where = experiment.folder / "dataset.json"
    if labels_from_description(experiment.description, str(where)) != labels:
        raise UserError("the labels differ from those of the other model", where=where)


def _member(root: Path, chosen: _Chosen, labels: Labels, folds: Sequence[str | int] | None) -> Member:
    """Write plans and weights of one configuration and return its description."""
    relative = f"members/{chosen.configuration}"
    folder = root / relative
    folder.mkdir(parents=True)
    chosen.plans.write(folder / "plans.json")
    configuration = chosen.plans.configuration(chosen.configuration)
    network = build_network(configuration.architecture, configuration.network)
    files, trainer, mirror_axes = {}, "", ()
    for position, (fold, path) in enumerate(_folds(chosen.experiment, folds).items()):
        content = read_checkpoint(path)
        if content["init_args"].get("configuration") != chosen.configuration:
            raise UserError(f"this fold is not of configuration {chosen.configuration!r}", where=path)
        if position == 0:  # as nnU-Net does
            trainer = str(content.get("trainer_name", "nnUNetTrainer"))
            mirror_axes = _mirror_axes(content.get("inference_allowed_mirroring_axes"), configuration.dims, path)
        network.load_state_dict(own_weights(content["network_weights"], network, path))
        files[fold] = f"{relative}/fold_{fold}.safetensors"
        write_bytes(root / files[fold], save(network.state_dict()))
    return Member(
        name=chosen.configuration,
        plans_file=f"{relative}/plans.json",
        configuration=chosen.configuration,
        architecture=configuration.architecture,
        trainer=trainer,
        folds=files,
        mirror_axes=mirror_axes,
        previous_stage=chosen.previous,
        in_ensemble=chosen.in_ensemble,
    )


def _folds(experiment: Experiment, wanted: Sequence[str | int] | None) -> dict[str, Path]:
    found = experiment.checkpoints
    if wanted:
        missing = [str(fold) for fold in wanted if str(fold) not in found]
        if missing:
            raise UserError(
                f"fold(s) {', '.join(missing)} have no such checkpoint",
                where=experiment.folder,
                mend=f"choose among: {', '.join(found)}",
            )
        return {str(fold): found[str(fold)] for fold in wanted}
    return {fold: path for fold, path in found.items() if fold != "all"} or found


def own_weights(weights: Mapping[str, Any], network: nn.Module, where: Path) -> dict[str, torch.Tensor]:
    """Return nnU-Net's weights under the names that autoseg writes; every tensor must have its place and its size.

    nnU-Net names many tensors several times: a further name of a tensor that has its place is left out.
    """
    named = {_unwrapped(name): value for name, value in weights.items()}
    wrong = [name for name, value in named.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise UserError(f"network_weights holds something else than tensors: {wrong[0]}", where=where)
    for name, value in named.items():
        check_tensor(name, value, where)
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in named]
    placed = {_place(named[name]) for name in wanted if name in named}
    aliases = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    spare = [name for name, value in named.items() if name not in aliases and _place(value) not in placed]
    shapes = [name for name in wanted if name in named and named[name].shape != wanted[name].shape]
    for names, what in ((missing, "lacks"), (spare, "has besides"), (shapes, "has in another size")):
        if names:
            raise UserError(
                f"the checkpoint {what} {len(names)} tensor(s), such as {names[0]!r}: its trainer built another "
                "network than the plans say",
                where=where,
                mend="predict with nnunetv2, or train anew with autoseg",
            )
    return {name: named[name].to(value.dtype).clone() for name, value in wanted.items()}


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), tuple(value.shape), value.stride()


def _unwrapped(name: str) -> str:
    for prefix in WRAPPERS:
        name = str(name).removeprefix(prefix)
    return name


def _mirror_axes(value: Any, dims: int, where: Path) -> tuple[int, ...]:
    axes = () if value is None else tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if any(isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < dims for axis in axes):
        raise UserError(f"field inference_allowed_mirroring_axes is {value!r}", where=where)
    return tuple(sorted(set(axes)))


def _check_labels(labels: Labels, where: Path) -> None:
    """nnU-Net writes the position of the output; that is the label's value only if they are 0, 1, 2, ..."""
    consecutive = tuple(range(1, len(labels.foreground_values) + 1))
    if labels.background != 0 or (not labels.regions and labels.foreground_values != consecutive):
        raise UserError(
            f"the labels are not consecutive: {labels.background}, {labels.foreground_values}",
            where=where,
            mend="number them 0, 1, 2, ... in dataset.json, as nnU-Net asks for",
        )


def _postprocessing(experiments: list[Experiment], labels: Labels, *, wanted: bool) -> tuple[PostprocessingStep, ...]:
    """Return the steps of nnU-Net's postprocessing.json; of several configurations it is that of their ensemble."""
    files = []
    if len(experiments) == 1:
        files = sorted(experiments[0].folder.glob("crossval_results_folds_*/postprocessing.json"))
    if not wanted:
        if files:
            log.info("nnU-Net's post-processing is left out, as nnUNetv2_predict does; see --postprocessing")
        return ()
    if len(files) != 1:
        raise UserError(
            f"{len(files) or 'no'} post-processing files found for this model",
            where=experiments[0].folder,
            mend="leave out --postprocessing",
        )
    content = read_json(files[0])
    try:
        functions, arguments = content["postprocessing_fns"], content["postprocessing_kwargs"]
        if any(name != "remove_all_but_largest_component_from_segmentation" for name in functions):
            raise UserError(f"unknown post-processing: {functions}", where=files[0])
        groups = [entry["labels_or_regions"] for entry in arguments]
        flat = [group if isinstance(group, list) else [group] for group in groups]
        steps = [[v for item in group for v in (item if isinstance(item, list) else [item])] for group in flat]
        position = {value: index + 1 for index, value in enumerate(labels.foreground_values)}
        return tuple(PostprocessingStep(values=tuple(position[value] for value in step)) for step in steps)
    except (KeyError, TypeError) as error:
        raise UserError(f"not as nnU-Net writes it ({error!r})", where=files[0]) from None


def _model(first: Experiment, labels: Labels, members: list[Member], steps: tuple[PostprocessingStep, ...]) -> Model:
    reader = first.plans.get("image_reader_writer")
    flat = reader == "NaturalImage2DIO" or first.plans["original_median_shape_after_transp"][0] == 1
    return Model(
        dataset_name=str(first.plans["dataset_name"]),
        dims_of_data=2 if flat else 3,
        channel_names=channel_names(first.description, first.folder / "dataset.json"),
        labels=labels,
        file_ending=str(first.description.get("file_ending", ".nii.gz")),
        orientation="ras" if reader in REORIENTING_READERS else "as_stored",
        members=tuple(members),
        postprocessing=steps,
        selection={"imported_from": "nnU-Net v2", "trainers": sorted({member.trainer for member in members})},
        versions={"autoseg": autoseg.__version__},
    )
