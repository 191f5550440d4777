"""From finished runs to the model folder: the best configuration or pair, and the post-processing that helps it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import autoseg
from autoseg.errors import UserError
from autoseg.model_folder import MODEL_FILE, Model, read_model
from autoseg.raw import Dataset, open_dataset, place_of
from autoseg.selection.candidates import Candidate, best_of, display_names, fair_field, pairs_to_try
from autoseg.selection.components import ComponentTable
from autoseg.selection.ensembles import score_pairs
from autoseg.selection.postprocessing import Postprocessing, determine_postprocessing
from autoseg.selection.references import Reference, references_of, tables_from_files
from autoseg.selection.runs import Experiment, find_experiments
from autoseg.selection.writing import MemberSource, write_model
from autoseg.storage import content_hash, file_stamp
from autoseg.workspace import Workspace

FEWEST_CASES = 5  # validation cases from which post-processing is chosen: fewer show nothing about new ones
log = logging.getLogger(__name__)


def find_best(
    dataset: str | Path | Dataset,
    workspace: str | Path | Workspace | None = None,
    *,
    configurations: Collection[str] | None = None,
    trainer: str | None = None,
    plans_name: str | None = None,
    device: str = "auto",
    ensembles: bool = True,
    workers: int | None = None,
    restart: bool = False,
) -> Path:
    """Select the best configuration or ensemble of two, with its post-processing; return the model folder.

    Works with whatever folds are finished. The score is the foreground mean Dice over the validation cases common to
    all candidates; ties go to the earlier candidate (singles before ensembles). With nothing changed since the last
    call, this is a no-op unless `restart`; a damaged model folder is written anew.

    Raises: UserError if no run is finished.
    """
    workspace = place_of(workspace)
    data = open_dataset(dataset, workspace)
    experiments, notes = find_experiments(
        data.name, workspace, configurations=configurations, trainer=trainer, plans_name=plans_name
    )
    for note in notes:
        log.warning("%s", note)
    if not experiments:
        raise UserError(
            "; ".join(["there is no finished run to choose from", *notes]),
            where=workspace.results / data.name,
            mend="train at least one fold of one configuration",
        )
    folder = workspace.model_folder(data.name)
    everything, _ = find_experiments(data.name, workspace)
    inputs = _inputs_hash(experiments, everything, data, ensembles)
    if not restart and _is_current(folder, inputs):
        log.info("%s is up to date", folder)
        return folder
    for run in (run for experiment in experiments for run in experiment.chosen_runs.values()):
        run.check_weights()
    references = references_of(data)
    candidates, tables, more = _candidates(
        experiments, references, data, workspace, device=device if ensembles else None
    )
    records = [candidate.record(data.labels.names) for candidate in candidates]
    position = best_of(records)
    winner = candidates[position]
    found, remarks = _postprocessing(winner, tables.get(winner.name), references, data, workers)
    selection = {
        "inputs": inputs,
        "best": winner.name,
        "candidates": records,
        "postprocessing": list(found.trials),
        "foreground_dice": records[position]["foreground_dice"],
        "foreground_dice_postprocessed": found.foreground_dice,
        "notes": [*notes, *more, *remarks],
    }
    sources = _member_sources(winner, everything, workspace)
    write_model(folder, _model(data, sources, found, selection), sources)
    dice = "undefined" if found.foreground_dice is None else f"{found.foreground_dice:.4f}"
    log.info("selected %s: foreground Dice %s; model folder %s", winner.name, dice, folder)
    return folder


def _candidates(
    experiments: Sequence[Experiment],
    references: Mapping[str, Reference],
    data: Dataset,
    workspace: Workspace,
    *,
    device: str | None,
) -> tuple[list[Candidate], dict[str, dict[str, ComponentTable]], list[str]]:
    """Return the candidates in the order of ties, the component tables of the ensembles, and notes."""
    field, common, notes = fair_field(experiments)
    names = display_names(field)
    singles = [
        Candidate(names[e.name], (e,), {case: e.scores[case] for case in common or e.run_of_case}) for e in field
    ]
    if device is None or len(field) < 2 or not common:
        return singles, {}, notes
    pairs = pairs_to_try(field, [single.record(data.labels.names) for single in singles])
    results = score_pairs(
        pairs, field, {case: references[case] for case in common if case in references},
        labels=data.labels, dataset_name=data.name, workspace=workspace, device=device,
    )  # fmt: skip
    ensembles, tables = [], {}
    for (first, second), result in zip(pairs, results, strict=True):
        name = f"{singles[first].name} + {singles[second].name}"
        ensembles.append(Candidate(name, (field[first], field[second]), result.scores))
        tables[name] = result.tables
    return singles + ensembles, tables, notes


def _postprocessing(
    winner: Candidate,
    tables: dict[str, ComponentTable] | None,
    references: Mapping[str, Reference],
    data: Dataset,
    workers: int | None,
) -> tuple[Postprocessing, list[str]]:
    """Return the post-processing, and in words why none was looked for."""
    if tables is None:
        (experiment,) = winner.experiments
        files = {
            case: run.label_map(case, data.file_ending)
            for case, run in experiment.run_of_case.items()
            if case in references
        }
        tables = tables_from_files(files, references, data.labels, workers)
    annotated = {case: references[case].annotated for case in tables}
    held_out = all(experiment.out_of_fold for experiment in winner.experiments)
    convincing = held_out and len(tables) >= FEWEST_CASES
    remarks = []
    if not convincing:
        why = f"there are only {len(tables)} validation case(s)" if held_out else "the cases were trained on"
        remarks = [f"no post-processing is chosen, since {why}"]
        log.info("%s", remarks[0])
    return determine_postprocessing(tables, data.labels, annotated=annotated, convincing=convincing), remarks


def _member_sources(winner: Candidate, everything: Sequence[Experiment], workspace: Workspace) -> list[MemberSource]:
    """Return the members of the winner, and before each cascade member its previous stage, from `everything`."""
    stages = [stage for stage in (_previous_stage(e, everything) for e in winner.experiments) if stage is not None]
    names = display_names(list({e.name: e for e in (*winner.experiments, *stages)}.values()))
    sources: dict[str, MemberSource] = {}
    for experiment in winner.experiments:
        source = MemberSource.of(names[experiment.name], experiment, workspace)
        previous = _previous_stage(experiment, everything)
        if previous is not None:
            below = MemberSource.of(names[previous.name], previous, workspace)
            sources.setdefault(below.name, replace(below, in_ensemble=False))
            source = replace(source, previous_stage=below.name)
        sources[source.name] = source
    return list(sources.values())


def _previous_stage(experiment: Experiment, everything: Sequence[Experiment]) -> Experiment | None:
    name = next(iter(experiment.chosen_runs.values())).previous_stage
    if name is None:
        return None
    for other in everything:
        if other.name == name:
            return other
    raise UserError(
        f"{experiment.name} takes the label maps of {name} as input, of which no run is finished",
        mend=f"train {name.rpartition('__')[2]} again",
    )


def _model(data: Dataset, sources: Sequence[MemberSource], found: Postprocessing, selection: dict[str, Any]) -> Model:
    plans = sources[0].plans
    run = next(iter(sources[0].runs.values()))
    return Model(
        dataset_name=data.name,
        dims_of_data=2 if plans.original_median_shape[0] == 1 else 3,
        channel_names=data.channel_names,
        labels=data.labels,
        file_ending=data.file_ending,
        members=(),
        postprocessing=found.steps,
        selection=selection,
        versions={**run.record.get("versions", {}), "autoseg": autoseg.__version__},
    )


def _inputs_hash(
    experiments: Sequence[Experiment], everything: Sequence[Experiment], data: Dataset, ensembles: bool
) -> str:
    """Return the hash of all that the model depends on: the candidates, and the previous stages of cascades."""
    stages = {run.previous_stage for experiment in experiments for run in experiment.runs.values()}
    runs = [
        [experiment.name, fold, run.record, file_stamp(run.weights), run.scores]
        for experiment in [*experiments, *(other for other in everything if other.name in stages)]
        for fold, run in experiment.runs.items()
    ]
    return content_hash(runs, data.labels.model_dump(mode="json"), data.file_ending, ensembles)


def _is_current(folder: Path, inputs: str) -> bool:
    """Return whether the model was made of these inputs, and every file of it is as it was written; says if not."""
    if not (folder / MODEL_FILE).is_file():
        return False
    try:
        return read_model(folder).selection.get("inputs") == inputs
    except UserError as error:
        log.warning("the model is written anew: %s: %s", error.where, error.what)
        return False
