"""Plans: every choice derived from data and hardware, typed, validated, readable as JSON.

Axes of spacings, shapes and patches are those of the transposed volume: (z, y, x) after `transpose_forward`, spacing
in mm. A 2D configuration has two entries (y, x); a 2D image is a volume with one slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autoseg.errors import UserError
from autoseg.plan_bounds import (
    MOST_STAGES,
    MOST_WEIGHTS,
    BatchSize,
    Blocks,
    Channels,
    Deviation,
    Edge,
    Intensity,
    KernelEdge,
    MedianEdge,
    Spacing,
    StoredSpacing,
    Stride,
    check_batch,
    weights_of_convolutions,
)
from autoseg.storage import read_json, write_json

Scheme = Literal["zscore", "ct", "none", "rescale_to_0_1", "rgb_to_0_1"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Frozen(BaseModel):
    """Base of the typed artefacts: unknown fields are errors, values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


COMPUTED_CHANNEL = "attention_map"  # name of channels that were computed from the image; their values stay as they are


class NetworkSpec(Frozen):
    """All that an architecture is built from.

    Lists run over encoder stages from high to low resolution; `strides[0]` is all ones. `blocks_decoder` has one entry
    fewer than the encoder and runs from the deepest decoder stage to the highest resolution.
    """

    dims: Literal[2, 3]
    in_channels: Channels
    num_outputs: Channels
    patch_size: tuple[Edge, ...]
    strides: tuple[tuple[Stride, ...], ...]
    kernel_sizes: tuple[tuple[KernelEdge, ...], ...]
    features: tuple[Channels, ...] = Field(min_length=1, max_length=MOST_STAGES)
    blocks_encoder: tuple[Blocks, ...]
    blocks_decoder: tuple[Blocks, ...]
    deep_supervision: bool = True
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSpec:
        stages = len(self.features)
        lengths = {len(self.strides), len(self.kernel_sizes), len(self.blocks_encoder), len(self.blocks_decoder) + 1}
        if lengths != {stages}:
            raise ValueError(f"strides, kernel_sizes, blocks must fit the {stages} stages of features")
        for entry in (self.patch_size, *self.strides, *self.kernel_sizes):
            if len(entry) != self.dims:
                raise ValueError(f"{entry} must have dims={self.dims} entries")
        check_batch(self.patch_size)
        if self.weights > MOST_WEIGHTS:
            raise ValueError(
                f"kernel_sizes {self.kernel_sizes}, features {self.features} and blocks {self.blocks_encoder} ask for "
                f"{self.weights} weights, more than {MOST_WEIGHTS}"
            )
        return self

    @property
    def weights(self) -> int:
        """Return the weights of a U-Net of these blocks: about how large the network is."""
        coder = weights_of_convolutions(self.kernel_sizes, self.features, self.blocks_encoder)
        decoder = (self.kernel_sizes[:-1], self.features[:-1], self.blocks_decoder[::-1])
        return coder + weights_of_convolutions(*decoder)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Return the product of all strides per axis: patch sizes must be multiples of it."""
        total = [1] * self.dims
        for stride in self.strides:
            total = [a * b for a, b in zip(total, stride, strict=True)]
        return tuple(total)


class TrainingPlan(Frozen):
    """The training recipe that the planner proposes; a trainer's `--set` wins over it."""

    steps: int = 250_000
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    weight_decay: float = 3e-5
    warmup_steps: int = 0
    precision: Precision = "auto"
    augmentation: Literal["full", "light", "none"] = "full"
    mirror: bool = True  # False: no mirroring, in training and in prediction; short runs learn faster so
    time_budget: float | None = None  # seconds for one fold, None: as long as the steps take


class Configuration(Frozen):
    """One way of seeing the data: resolution, patch, network, batch, recipe."""

    name: str
    dims: Literal[2, 3]
    spacing: tuple[Spacing, ...]  # mm
    median_shape: tuple[MedianEdge, ...]
    patch_size: tuple[Edge, ...]
    batch_size: BatchSize
    batch_dice: bool
    normalization: tuple[Scheme, ...]
    use_mask: tuple[bool, ...]
    data_identifier: str  # folder name of the preprocessed store; configurations may share one
    architecture: str
    network: NetworkSpec
    previous_stage: str | None = None
    next_stage: str | None = None
    training: TrainingPlan = TrainingPlan()

    @model_validator(mode="after")
    def _consistent(self) -> Configuration:
        for field in ("spacing", "median_shape", "patch_size"):
            if len(getattr(self, field)) != self.dims:
                raise ValueError(f"{field} must have dims={self.dims} entries")
        if self.network.patch_size != self.patch_size:
            raise ValueError("network.patch_size differs from patch_size")
        check_batch(self.patch_size, self.batch_size)
        if len(self.normalization) != len(self.use_mask):
            raise ValueError("normalization and use_mask must both have one entry per channel")
        if self.data_identifier.startswith(".") or {"/", "\\", "\0"} & set(self.data_identifier):
            raise ValueError(f"data_identifier {self.data_identifier!r} must be the name of a folder, not a path")
        return self


class ChannelIntensities(Frozen):
    """Pooled foreground intensities of one channel."""

    mean: Intensity
    median: Intensity
    std: Deviation  # 0 of a channel that has one value everywhere
    min: Intensity
    max: Intensity
    percentile_00_5: Intensity
    percentile_99_5: Intensity

    @model_validator(mode="after")
    def _consistent(self) -> ChannelIntensities:
        low, high = self.percentile_00_5, self.percentile_99_5
        if low > high:
            raise ValueError(f"percentile_00_5 {low} is above percentile_99_5 {high}")
        if self.std == 0 and high - low > 1e-3 * max(abs(low), abs(high)):
            raise ValueError(f"std is 0, though the values differ: percentiles {low} to {high}")
        return self


class Plans(Frozen):
    """Everything that planning decided for one data set; the contract between planning and all later stages."""

    format: Literal[1] = 1
    dataset_name: str
    plans_name: str
    planner: str
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    original_median_spacing: tuple[StoredSpacing, StoredSpacing, StoredSpacing]
    original_median_shape: tuple[MedianEdge, MedianEdge, MedianEdge]
    intensities: tuple[ChannelIntensities, ...]
    channel_names: tuple[str, ...]
    configurations: dict[str, Configuration]
    resources: dict[str, Any] = {}  # what the plan was made for: device, memory, time budget
    notes: tuple[str, ...] = ()  # the plan in words, for the report

    @model_validator(mode="after")
    def _consistent(self) -> Plans:
        there, back = self.transpose_forward, self.transpose_backward
        if sorted(there) != [0, 1, 2] or tuple(there[axis] for axis in back) != (0, 1, 2):
            raise ValueError(f"transpose_backward {back} does not undo transpose_forward {there}")
        channels = len(self.channel_names)
        if len(self.intensities) != channels:
            raise ValueError(f"intensities has {len(self.intensities)} entries for {channels} channel(s)")
        return self

    def configuration(self, name: str) -> Configuration:
        """Return a configuration by name; an unknown name is a UserError that lists the known ones."""
        if name not in self.configurations:
            known = ", ".join(self.configurations)
            raise UserError(f"plans {self.plans_name!r} have no configuration {name!r}", mend=f"choose one of: {known}")
        return self.configurations[name]

    def write(self, path: Path) -> None:
        """Write the plans as JSON."""
        write_json(path, self.model_dump(mode="json"), sealed=True)

    @classmethod
    def read(cls, path: Path, *, editable: bool = True) -> Plans:
        """Read plans from JSON; what does not fit is told by field and value.

        People change plans: a checksum that does not match is a warning, but where they are not `editable`.
        """
        return parse(cls, read_json(path, editable=editable), path)


def parse(model: type[BaseModel], content: Any, where: str | Path, *, within: str = "") -> Any:
    """Validate `content` against a pydantic model; a UserError tells field, value and reason of every fault.

    `within` names the field of the file that `content` is, where it is not all of it.
    """
    with faults_told(where, within=within):
        return model.model_validate(content)


@contextmanager
def faults_told(
    where: str | Path, *, within: str = "", mend: str = "correct these fields or make the file anew"
) -> Iterator[None]:
    """Turn what pydantic raises inside into the UserError of `parse`."""
    try:
        yield
    except ValidationError as error:
        faults = "; ".join(_fault_text(fault, within) for fault in error.errors()[:5])
        raise UserError(faults, where=where, mend=mend) from None


def _fault_text(fault: Mapping[str, Any], within: str) -> str:
    place = ".".join(map(str, (*filter(None, [within]), *fault["loc"]))) or "(whole file)"
    value = "" if isinstance(fault["input"], dict) else f", got {str(fault['input'])[:80]!r}"
    return f"field {place}: {fault['msg'].removeprefix('Value error, ')}{value}"
