"""Distillation: a small network learns from labels and from what larger, trained networks say.

Source: Hinton et al. 2015, arXiv:1503.02531 (soft labels, weight T^2); the optional feature term is attention transfer,
Zagoruyko & Komodakis 2017, arXiv:1612.03928. Deviations: the hard loss keeps its full weight, as Dice and
cross-entropy are on another scale than in classification; several folds are averaged as logits, as in prediction; the
attention of all encoder maps of equal size is compared, with the mean instead of the sum over voxels.

Run: `autoseg train DATA 3d_fullres cv`, then `autoseg train DATA 3d_fullres 0 --trainer distillation --set width=0.5`,
with `--architecture NAME` for another network. Teachers of other plans, such as those for a larger GPU, serve where
they see and give the same (spacing, axes, channels, normalisation, labels) and take the student's patch: `--set
teacher=FOLDER`, that of a run, an experiment or a model. With all folds as teachers, some of them have seen the cases
that this run is validated on: score such a student on other cases, or `--set teacher_folds=same`.

Expected: a step costs one of the student plus a forward pass of every teacher; prediction costs the student alone.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from autoseg.trainers.student_width import Student, student_of
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from autoseg import NetworkSpec, Trainer, UserError, register
from autoseg.batches import Batch
from autoseg.losses import full_resolution, soft_label_loss
from autoseg.plugins import load
from autoseg.training.teachers import find_teachers, load_teachers

logger = logging.getLogger("autoseg.training")


def settled(teacher: str) -> str:
    """Return a folder as an absolute path, which means the same wherever the command is repeated; a name as it is."""
    is_folder = {"/", os.sep} & set(teacher) or Path(teacher).is_dir()
    return str(Path(teacher).resolve()) if is_folder else teacher


Teacher = Annotated[str, AfterValidator(settled)]
Width = Annotated[float, Field(gt=0, le=16)]


@register.trainer("distillation")
class Distillation(Trainer):
    """A student of any architecture and width learns from labels and from the averaged folds of trained networks."""

    builds_on: ClassVar[tuple[str, ...]] = ("supervised",)

    teacher: Teacher = "supervised"  # a run, experiment or model folder, or a trainer's runs of these plans
    teacher_folds: Literal["all", "same"] = "all"  # of a trainer's runs
    width: Width = 1.0  # channels of the student as a share of the plan's, or the nearest that can be built
    temperature: PositiveFloat = 2.0
    soft_weight: NonNegativeFloat = 1.0  # of the soft labels; labels have weight 1
    feature_weight: NonNegativeFloat = 0.0  # of the attention of encoder maps, such as 1.0

    def network_spec(self) -> NetworkSpec:
        """Return the plan's network, narrower; UserError where the architecture has no such width."""
        return self._student.spec

    @cached_property
    def _student(self) -> Student:
        planned, name = super().network_spec(), self.context.configuration.architecture
        if self.width == 1:
            return Student(planned, 1.0)
        return student_of(load("architecture", name, self.context.workspace_root), planned, self.width, name)

    def build_modules(self) -> dict[str, nn.Module]:
        """Return the student; the teachers are not trained and not kept in checkpoints."""
        student, context = self._student, self.context
        if student.reason is not None and context.rank == 0:
            logger.info(
                "%s cannot be built with width=%g (%s): the student has the nearest width that it can be built with, "
                "%g, which makes its features %s",
                context.configuration.architecture, self.width, student.reason, student.width, student.spec.features,
            )  # fmt: skip
        self._teachers = load_teachers(self.teacher_folder(), context)
        return super().build_modules()

    def inputs(self) -> list[Path]:
        """Return the weights of the teachers; UserError where there are none, or where no student can be built."""
        self.network_spec()  # a width that cannot be is told before a run folder is made
        return [teacher.weights for teacher in find_teachers(self.teacher_folder(), self.context)]

    def teacher_folder(self) -> Path:
        """Return the folder that the setting `teacher` means; UserError where there is none."""
        given = Path(self.teacher)
        if given.is_absolute():
            if not given.is_dir():
                raise UserError(
                    "the teacher is a file, no folder" if given.exists() else "the teacher's folder does not exist",
                    where=given,
                    mend="correct --set teacher=FOLDER, which is that of a run, of an experiment or of a model, or "
                    "name the trainer whose runs teach, such as --set teacher=supervised",
                )
            return given
        plans, configuration = self.context.plans.plans_name, self.context.configuration.name
        results = self.context.folder.parent.parent
        experiment = results / f"{self.teacher}__{plans}__{configuration}"
        others = sorted(results.glob(f"{glob.escape(self.teacher)}__*__{configuration}"))
        if others and not experiment.is_dir():
            raise UserError(
                "there is no finished network to learn from",
                where=experiment,
                mend=f"train the teacher first, or take that of other plans: --set teacher={others[0]}",
            )
        return experiment / self.context.folder.name if self.teacher_folds == "same" else experiment

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, Tensor]]:
        """Yield the supervised loss plus those of soft labels and features."""
        batch, student = batches["labelled"], self.modules["network"]
        images = self.network_input(batch)
        if self.feature_weight:
            features = student.encode(images)
            logits = student.decode(features)
        else:
            logits = student(images)
        loss = self.supervised_loss(logits, batch)
        with torch.no_grad():
            taught = [network.encode(images) for network in self._teachers]
            teacher = torch.stack([n.decode(f) for n, f in zip(self._teachers, taught, strict=True)]).mean(0)
        loss = loss + self.soft_weight * soft_label_loss(
            full_resolution(logits), teacher, self.temperature, regions=self.labels.regions
        )
        if self.feature_weight:
            loss = loss + self.feature_weight * attention_loss(features, taught)
        yield "network", loss


def attention_loss(student: list[Tensor], teachers: list[list[Tensor]]) -> Tensor:
    """Return the mean squared difference of the attention of the student's and the teachers' maps of equal size.

    Attention is the mean of squares over channels, over voxels normalised to a mean square of 1; (B, C, *S) maps.
    """
    terms = []
    for each in student:
        others = [attention(map_) for maps in teachers for map_ in maps if map_.shape[2:] == each.shape[2:]]
        if others:
            terms.append((attention(each) - torch.stack(others).mean(0)).square().mean())
    return torch.stack(terms).mean() if terms else torch.zeros((), device=student[0].device)


def attention(features: Tensor) -> Tensor:
    """Return the attention (B, voxels) of maps (B, C, *S)."""
    energy = features.float().square().mean(1).flatten(1)
    return energy / energy.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
