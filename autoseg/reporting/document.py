"""The whole report: headline figures, sections in order, one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import autoseg
from autoseg.evaluation import summarize
from autoseg.raw import place_of
from autoseg.reporting.data_sections import data_section, plans_section
from autoseg.reporting.markup import bullets, duration, figure, pairs, section, text
from autoseg.reporting.material import Material, gather
from autoseg.reporting.picture_section import picture_section
from autoseg.reporting.result_sections import selection_section, test_section, validation_section
from autoseg.reporting.shell import shell
from autoseg.reporting.training_section import training_section
from autoseg.storage import write_text
from autoseg.workspace import Workspace

REPORT_FILE = "report.html"
_NAVIGATION = (
    ("selection", "Selection"), ("validation", "Cross-validation"), ("pictures", "Pictures"), ("test", "Test set"),
    ("training", "Training"), ("plans", "Plan"), ("data", "Data"), ("versions", "Versions"),
)  # fmt: skip


def report(
    dataset_reference: str | Path,
    workspace: str | Path | Workspace | None = None,
    *,
    output: Path | None = None,
    evaluations: Sequence[Path] = (),
) -> Path:
    """Write one self-contained HTML file on everything known of a data set; return its path.

    Default place: report.html in the results of the data set. `evaluations`: summary.json files of `evaluate` to show
    besides those found in sub-folders of the results. Parts that do not exist yet are named as missing.

    Raises: UserError if nothing is known of the data set.
    """
    workspace = place_of(workspace)
    material = gather(dataset_reference, workspace, evaluations)
    target = output if output is not None else workspace.results / material.name / REPORT_FILE
    write_text(target, page(material))
    return target


def page(material: Material) -> str:
    """Return the report as one HTML document."""
    sections = [
        selection_section(material),
        validation_section(material),
        picture_section(material),
        test_section(material),
        training_section(material),
        plans_section(material),
        data_section(material),
        _versions_section(material),
    ]
    return shell(
        material.name,
        kind="report",
        subtitle=_subtitle(material),
        figures=_headline(material),
        navigation=_NAVIGATION,
        sections=sections,
    )


def _subtitle(material: Material) -> str:
    description = material.dataset.description.get("description") if material.dataset is not None else None
    return f"<p>{text(description)}</p>" if isinstance(description, str) and description else ""


def _headline(material: Material) -> str:
    figures = []
    if material.model is not None:
        selection = material.model.selection
        figures.append(figure("selected", str(selection.get("best", "a model"))))
        before, after = selection.get("foreground_dice"), selection.get("foreground_dice_postprocessed")
        best = next((c for c in selection.get("candidates", []) if c["name"] == selection.get("best")), {})
        if before is not None:
            interval = best.get("interval")
            figures.append(figure("foreground Dice", f"{before:.3f}", _span(interval)))
        if after is not None and material.model.postprocessing:
            figures.append(figure("after post-processing", f"{after:.3f}"))
    elif material.best_experiment is not None:
        summary = summarize(material.best_experiment.scores)
        dice = summary["foreground_mean"]["dice"]
        if dice is not None:
            name = f"foreground Dice, {material.best_experiment.configuration}"
            figures.append(figure(name, f"{dice:.3f}", _span(summary["bootstrap"]["dice"])))
    cases = (
        len(material.dataset.cases) if material.dataset is not None else (material.fingerprint or {}).get("num_cases")
    )
    if cases is not None:
        figures.append(figure("training cases", f"{cases:,}"))
    runs = [run for experiment in material.experiments for run in experiment.runs]
    finished = sum(run.record.get("status") == "finished" for run in runs)
    if runs:
        figures.append(figure("finished runs", f"{finished} of {len(runs)}"))
        figures.append(figure("training time", duration(sum(run.record.get("seconds") or 0 for run in runs))))
    return "".join(figures)


def _versions_section(material: Material) -> str:
    versions: dict[str, str] = {}
    for experiment in material.experiments:
        for run in experiment.runs:
            for name, version in (run.record.get("versions") or {}).items():
                versions.setdefault(name, str(version))
    devices = {str(run.record["device"]) for e in material.experiments for run in e.runs if run.record.get("device")}
    rows = [("this report", f"autoseg {autoseg.__version__}"), *sorted(versions.items())]
    if devices:
        rows.append(("trained on", ", ".join(sorted(devices))))
    problems = f"<h3>Left out</h3>{bullets(material.problems)}" if material.problems else ""
    return section("versions", "Versions", pairs(rows) + problems)


def _span(interval: Sequence[float] | None) -> str:
    return f"95 %: {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
