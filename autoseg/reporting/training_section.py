"""The section on training: curves of every fold, and what each run cost."""

from __future__ import annotations

import base64
from typing import Any

from autoseg.reporting.charts import legend, line_chart
from autoseg.reporting.markup import Cell, Raw, chip, duration, label, missing, note, number, section, table, text
from autoseg.reporting.material import ExperimentMaterial, Material, RunMaterial

MOST_PICTURES = 4  # of one run
LARGEST_PICTURE = 2_000_000  # bytes; the report is one file
_STATUS = {"finished": "good", "running": "warn", "interrupted": "warn", "failed": "bad"}


def training_section(material: Material) -> str:
    """Return the section on all runs, one block per experiment."""
    if not material.experiments:
        return section("training", "Training", missing("No run has been started yet: autoseg train does that."))
    blocks = "".join(_experiment(experiment) for experiment in material.experiments)
    return section("training", "Training", blocks)


def _experiment(experiment: ExperimentMaterial) -> str:
    title = f"{experiment.configuration}, trainer {experiment.trainer}, plans {experiment.plans_name}"
    names = {run.fold: f"fold {run.fold}" for run in experiment.runs}
    charts = [
        line_chart("Loss", {names[run.fold]: _curve(run, "step", "loss") for run in experiment.runs}),
        line_chart(
            "Dice of observed whole cases",
            {names[run.fold]: _curve(run, "validation", "mean_dice") for run in experiment.runs},
        ),
        line_chart("Learning rate", {names[run.fold]: _rates(run) for run in experiment.runs}),
    ]
    drawn = [chart for chart in charts if chart]
    curves = f'{legend(list(names.values()))}<div class="charts">{"".join(drawn)}</div>' if drawn else ""
    if not drawn:
        curves = missing("These runs have not logged anything yet.")
    rows = [_row(run) for run in experiment.runs]
    head = ["fold", "status", "steps", "time", "samples/s", "waiting for data", "device", "parameters", "seed"]
    remarks = [
        f"fold {run.fold}: {event['text']}"
        for run in experiment.runs
        for event in run.events_of("note")
        if "text" in event
    ]
    left = "".join(_pictures(run) for run in experiment.runs)
    return f"<h3>{text(title)}</h3>{curves}{table(head, rows)}{''.join(note(remark) for remark in remarks[:8])}{left}"


def _pictures(run: RunMaterial) -> str:
    """Return the PNG pictures that the method left in its run folder, such as reconstructions of a pretraining."""
    figures = []
    for file in sorted(run.folder.glob("*.png"))[:MOST_PICTURES]:
        if file.stat().st_size <= LARGEST_PICTURE and not file.is_symlink():
            content = base64.b64encode(file.read_bytes()).decode("ascii")
            title = text(f"fold {run.fold}: {file.stem.replace('_', ' ')}")
            image = f'<img src="data:image/png;base64,{content}" alt="{title}" style="max-width:100%">'
            figures.append(f'<figure class="wide"><figcaption>{title}</figcaption>{image}</figure>')
    return "".join(figures)


def _curve(run: RunMaterial, kind: str, field: str) -> list[tuple[float, float]]:
    return [
        (float(event["progress"]), float(event[field]))
        for event in run.events_of(kind)
        if _is_number(event.get("progress")) and _is_number(event.get(field))
    ]


def _rates(run: RunMaterial) -> list[tuple[float, float]]:
    """Return the learning rate of the first optimiser."""
    curve = []
    for event in run.events_of("step"):
        rates = event.get("learning_rate")
        rate = next(iter(rates.values()), None) if isinstance(rates, dict) else rates
        if _is_number(rate) and _is_number(event.get("progress")):
            curve.append((float(event["progress"]), float(rate)))
    return curve


def _row(run: RunMaterial) -> list[Cell]:
    record = run.record
    steps = run.events_of("step")
    status = str(record.get("status", "unknown"))
    device = " ".join(str(record[key]) for key in ("device", "precision") if record.get(key))
    return [
        label(run.fold),
        Cell(chip(status, _STATUS.get(status, "warn")), status, left=True),
        _steps(record),
        Cell(duration(record.get("seconds")), record.get("seconds")),
        number(_mean(steps, "samples_per_second"), 1),
        _percent(_mean(steps, "waiting_for_data")),
        label(device),
        Cell(_millions(record.get("parameters")), record.get("parameters")),
        Cell(str(record.get("seed", "")), record.get("seed")),
    ]


def _steps(record: dict[str, Any]) -> Cell:
    done, planned = record.get("steps_done"), record.get("steps")
    if not _is_number(done):
        return number(None)
    unfinished = record.get("status") != "finished" and _is_number(planned)
    return Cell(f"{done:,} of {planned:,}" if unfinished else f"{done:,}", done)


def _mean(events: list[dict[str, Any]], field: str) -> float | None:
    values = [event[field] for event in events if _is_number(event.get(field))]
    return sum(values) / len(values) if values else None


def _percent(share: float | None) -> Cell:
    return number(None) if share is None else Cell(f"{100 * share:.0f} %", share)


def _millions(count: Any) -> str | Raw:
    return f"{count / 1e6:.2f} M" if _is_number(count) else Raw("&ndash;")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
