"""Prediction of a folder: reading, network and writing overlap; a failing case leaves the others alone."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from autoseg.architecture import Architecture
from autoseg.deadlines import file_bytes
from autoseg.devices import prepare_to_compute
from autoseg.errors import AutosegError, UserError
from autoseg.inference.alone import alone_in
from autoseg.inference.jobs import Job, make_job, require_own_files
from autoseg.inference.records import Inputs, Record
from autoseg.raw import (
    Case,
    Geometry,
    Image,
    describe_images,
    list_prediction_cases,
    read_image,
    write_label,
    write_probabilities,
)
from autoseg.raw.orientation import Orientation
from autoseg.storage import content_hash, remove_leftovers
from autoseg.waiting import AtWork
from autoseg.watching import watched
from autoseg.workers import run_cases

if TYPE_CHECKING:
    from autoseg.inference.predictor import Prediction, Predictor, Prepared

log = logging.getLogger(__name__)

WAITING_WRITES = 2  # predictions that may wait for the disk
SPARE_BYTES = 2**24  # free space that is left on the disk


@dataclass(frozen=True)
class CaseResult:
    """What became of one case: its label map, or the error; `skipped` if it was finished before."""

    case: str
    output: Path | None
    error: str | None = None
    skipped: bool = False


def predict_folder(
    predictor: Predictor,
    inputs: Path,
    output: Path,
    *,
    save_probabilities: bool = False,
    uncertainty: bool = False,
    workers: int = 1,
    restart: bool = False,
) -> list[CaseResult]:
    """Segment every case of `inputs` (a folder of images, or one DICOM series) into `output`, in the order of names.

    Returned are their results, and behind them those of cases that cannot be used, such as one that lacks a channel.

    Writes `<case><ending>` on exactly the grid of the image, with `save_probabilities` `<case>_probabilities`, with
    `uncertainty` `<case>_uncertainty.nii.gz` (float32, 0..1). `workers` threads read and preprocess ahead.
    Cases that this model finished before, from the same files and with the same settings, are skipped unless `restart`.
    A case that fails, or whose image changes meanwhile, is reported in its result. UserError if another prediction is
    at work in `output`.
    """
    if output.resolve() == inputs.resolve():
        raise UserError("input and output are the same folder", where=output, mend="choose another output folder")
    prepare_to_compute(predictor.device)
    model = predictor.model
    bad: dict[str, UserError] = {}
    cases = list_prediction_cases(
        inputs, channels=len(model.channel_names), file_ending=model.file_ending, failures=bad
    )
    _check_images(predictor, inputs)
    jobs = [make_job(case, output, save_probabilities, uncertainty) for case in cases]
    require_own_files(jobs, inputs)
    output.mkdir(parents=True, exist_ok=True)
    with alone_in(output):
        remove_leftovers(output)
        record = Record(output, content_hash(predictor.identity, save_probabilities, uncertainty))
        return _predict_jobs(predictor, jobs, bad, record, workers=workers, restart=restart)


def _predict_jobs(
    predictor: Predictor,
    jobs: Sequence[Job],
    bad: Mapping[str, UserError],
    record: Record,
    *,
    workers: int,
    restart: bool,
) -> list[CaseResult]:
    """Predict the jobs that are not finished; behind their results stand the cases that cannot be used."""
    finished = set() if restart else {job.case.id for job in jobs if record.is_finished(job.case.id, job.case.images)}
    results = {name: CaseResult(name, _label_of(jobs, name), skipped=True) for name in finished}
    results |= {name: CaseResult(name, None, str(error)) for name, error in bad.items()}
    todo = [job for job in jobs if job.case.id not in finished]
    if finished:
        log.info("%d case(s) are finished already", len(finished))
    for name in bad:
        _tell_failure(results[name])
    with (
        closing(_stream(predictor, todo, record, workers=workers)) as stream,  # its threads end before the lock does
        tqdm(total=len(jobs), initial=len(finished), desc="predict", unit="case", disable=None) as progress,
    ):
        for result in stream:
            results[result.case] = result
            progress.update()
            _tell_failure(result)
    return [results[name] for name in (*(job.case.id for job in jobs), *bad)]


def _check_images(predictor: Predictor, inputs: Path) -> None:
    """Let the architectures look at what is known of the images; one network of each kind and options is enough."""
    description = describe_images(inputs)
    networks = (loaded.networks[0] for loaded in predictor.members)
    asked = {str((type(one), one.options)): one for one in networks if isinstance(one, Architecture)}
    for network in asked.values():
        network.check_images(description)


def _tell_failure(result: CaseResult) -> None:
    if result.error:
        log.error("case %s failed: %s", result.case, result.error)


def _stream(
    predictor: Predictor, jobs: Sequence[Job], record: Record, *, workers: int
) -> Generator[CaseResult, None, None]:
    """Yield a result per job; at most `workers` + 1 cases are read ahead and `WAITING_WRITES` wait to be written."""
    readers = ThreadPoolExecutor(max(1, workers), thread_name_prefix="read")
    writer = ThreadPoolExecutor(1, thread_name_prefix="write")
    reading, writing = AtWork("prediction, reading"), AtWork("prediction, writing")
    ahead = iter(jobs)
    reads: deque[tuple[Job, Future]] = deque()
    writes: deque[tuple[Job, Future]] = deque()
    try:
        while True:
            for job in _take(ahead, max(1, workers) + 1 - len(reads)):
                reads.append((job, readers.submit(_read, predictor, job, reading)))
            if not reads:
                break
            job, future = reads.popleft()
            try:
                prepared, geometry, seen = reading.result(future)
                del future
                prediction = _predict(predictor, job, prepared)
                del prepared
            except Exception as error:
                yield _failed(job, error)
                continue
            while len(writes) >= WAITING_WRITES:
                yield _written(*writes.popleft(), writing)
            if predictor.model.orientation == "ras":
                prediction = _as_stored(prediction, geometry)
            writes.append((job, writer.submit(_write, job, seen, prediction, geometry, record, writing)))
            del prediction
        while writes:
            yield _written(*writes.popleft(), writing)
    finally:
        readers.shutdown(cancel_futures=True)
        writer.shutdown()


def _read(predictor: Predictor, job: Job, reading: AtWork) -> tuple[Prepared, Geometry, Inputs]:
    with reading.on(job.case.id):
        seen = Inputs.seen(job.case.images)  # before they are read: what comes later is not what is segmented
        return *_prepare(predictor, job), seen


def _prepare(predictor: Predictor, job: Job) -> tuple[Prepared, Geometry]:
    image = _image(job.case, len(predictor.model.channel_names))
    data, spacing = image.data, image.geometry.spacing
    _require_finite(data, job.case.images)
    if predictor.model.orientation == "ras":
        turn = Orientation.to_ras(image.geometry)
        data, spacing = np.ascontiguousarray(turn.apply(data)), turn.spacing(spacing)
    return predictor.prepare(data, spacing), image.geometry


def _image(case: Case, channels: int) -> Image:
    """Read the files of a case; in a child if an earlier command died of them."""
    (result,) = run_cases(
        partial(read_image, channels=channels), [case.images], stage="prediction, reading", workers=1, kind="thread",
        name_of=lambda _: case.id, size_of=file_bytes,
    )  # fmt: skip
    if result.error is not None:
        raise AutosegError(result.error.reason) from result.error
    return result.value


def _predict(predictor: Predictor, job: Job, prepared: Prepared) -> Prediction:
    with watched(f"prediction, case {job.case.id}"):
        return predictor.predict_prepared(
            prepared, save_probabilities=job.probabilities is not None, uncertainty=job.uncertainty is not None
        )


def _require_finite(data: np.ndarray, files: Sequence[Path]) -> None:
    """Refuse NaN and infinite voxels here, where the file of each channel is known."""
    for channel, volume in enumerate(data):
        with np.errstate(invalid="ignore"):  # the sum of both infinities is NaN, which is the answer
            finite = np.isfinite(volume.sum(dtype=np.float64))
        if finite:
            continue
        nan, infinite = int(np.isnan(volume).sum()), int(np.isinf(volume).sum())
        raise UserError(
            f"channel {channel} has {nan} NaN and {infinite} infinite voxel(s)",
            where=files[channel] if len(files) == len(data) else files[0],
            mend="replace them, for example by the value of the background",
        )


def _as_stored(prediction: Prediction, geometry: Geometry) -> Prediction:
    """Return a prediction in RAS with the axes of its image."""
    turn = Orientation.to_ras(geometry)
    arrays = {name: value for name, value in vars(prediction).items() if value is not None}
    return replace(prediction, **{name: np.ascontiguousarray(turn.undo(value)) for name, value in arrays.items()})


def _write(job: Job, seen: Inputs, prediction: Prediction, geometry: Geometry, record: Record, writing: AtWork) -> None:
    with writing.on(job.case.id):
        _write_outputs(job, prediction, geometry)
        try:
            seen.require_unchanged()
        except UserError:
            for output in job.outputs:  # of an image that is there no more, maybe on another grid
                output.unlink(missing_ok=True)
            raise
        record.finish(job.case.id, seen, job.outputs)


def _write_outputs(job: Job, prediction: Prediction, geometry: Geometry) -> None:
    arrays = [prediction.label, prediction.probabilities, prediction.uncertainty]
    needed = sum(array.nbytes for array in arrays if array is not None) + SPARE_BYTES
    free = shutil.disk_usage(job.label.parent).free
    if free < needed:
        raise UserError(
            f"the disk has {free / 2**20:.0f} MiB left, {needed / 2**20:.0f} MiB may be needed",
            where=job.label.parent,
            mend="free some space, then predict again: finished cases are kept",
        )
    write_label(job.label, prediction.label, geometry)
    if job.probabilities is not None:
        write_probabilities(job.probabilities, prediction.probabilities, geometry)
    if job.uncertainty is not None:
        write_label(job.uncertainty, prediction.uncertainty, geometry)


def _written(job: Job, future: Future, writing: AtWork) -> CaseResult:
    try:
        writing.result(future)
    except Exception as error:
        return _failed(job, error)
    return CaseResult(job.case.id, job.label)


def _failed(job: Job, error: BaseException) -> CaseResult:
    if not isinstance(error, AutosegError):
        log.debug("case %s", job.case.id, exc_info=error)
    text = str(error) if isinstance(error, AutosegError) else f"{type(error).__name__}: {error}"
    return CaseResult(job.case.id, None, text)


def _label_of(jobs: Sequence[Job], name: str) -> Path:
    return next(job.label for job in jobs if job.case.id == name)


def _take(jobs: Iterator[Job], count: int) -> Iterator[Job]:
    return (job for _, job in zip(range(count), jobs, strict=False))
