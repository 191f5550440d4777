"""The Trainer contract: what is trained and how. The base class is nnU-Net's supervised recipe."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from autoseg.architecture import Architecture
from autoseg.batches import Batch, HiddenLabels, PatchStream, StreamSettings
from autoseg.batches.augmentation.parameters import Level
from autoseg.errors import UserError
from autoseg.losses import DeepSupervisionLoss, SegmentationLoss
from autoseg.losses.dice import SMOOTH
from autoseg.plans import COMPUTED_CHANNEL, NetworkSpec, Precision
from autoseg.plugins import build_network
from autoseg.training.annealing import Annealing, annealed
from autoseg.training.averaging import WeightAverage
from autoseg.training.context import RunContext
from autoseg.training.settings import Setting

Share = Annotated[float, Field(ge=0, le=1)]


class Trainer:
    """nnU-Net's supervised recipe; methods override two or three of its parts.

    Every annotated attribute below is a setting (`--set name=value`). `context` tells the data, plan and fold;
    `self.modules` holds what `build_modules` returned, set up for device and precision.

    Source: Isensee et al. 2021 (nnU-Net v2 rules). Deviation: every schedule is a function of progress in [0, 1], so
    any number of steps or any time budget ends fully annealed.
    """

    needs_labels: ClassVar[bool] = True  # False: a pretraining method, run by `autoseg pretrain`
    only_for: ClassVar[tuple[str, ...]] = ()  # architectures; others are trained as by its base. (): it concerns all
    builds_on: ClassVar[tuple[str, ...]] = ()  # trainers whose finished runs this one takes by default

    steps: PositiveInt = 250_000  # optimiser steps; a time budget wins over it
    optimizer: Literal["sgd", "adam", "adamw", "nadam"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: Share = 0.99  # SGD only
    nesterov: bool = True  # SGD only: look ahead by the momentum
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # but SGD: decay of the mean of gradients
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999  # but SGD: decay of the mean of squared gradients
    epsilon: PositiveFloat = 1e-8  # but SGD: least divisor
    own_recipe: Literal["suited", "published"] = "suited"  # that of a network's authors, raised in short runs or not
    own_rates: bool = False  # parts of a network learn at the multiples of the learning rate that its authors chose
    own_decay: bool = False  # what a network's authors leave out of weight decay is left out of it
    weight_decay: NonNegativeFloat = 3e-5
    warmup_steps: NonNegativeInt = 0  # the learning rate rises linearly over so many steps, then follows its schedule
    warmup_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # or over this share of the run, where those are 0
    annealing: Annealing = "polynomial"  # how the learning rate falls after that
    annealing_power: PositiveFloat = 0.9  # of the polynomial; 1 is a straight line
    final_rate: Share = 0.0  # share of the learning rate that it falls to
    gradient_clip: NonNegativeFloat = 12.0  # largest gradient norm; 0 switches clipping off
    batch_size: PositiveInt | None = None  # None: the plan's
    accumulate: PositiveInt = 1  # micro-batches per optimiser step; each has `batch_size` samples
    foreground_fraction: Share = 0.33  # of patches that are centred on foreground
    augmentation: Level = "full"  # light: no warp, blur, low resolution; spatial: warp and mirror; none
    mirror: bool = True  # mirror all axes, in training and in prediction
    deep_supervision: bool = True
    dice_weight: NonNegativeFloat = 1.0
    dice_squared: bool = False  # probabilities are squared below the fraction of Dice
    dice_background: bool = False  # the Dice of the background counts, too; regions have none
    dice_smooth: NonNegativeFloat = SMOOTH  # added above and below the fraction of Dice
    cross_entropy_weight: NonNegativeFloat = 1.0
    weight_average: Share = 0.0  # decay of an exponential moving average of the weights that predicts; 0: none
    precision: Precision = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on CUDA; dropped with one log line where it fails
    observed_cases: NonNegativeInt = 4  # validation cases predicted whole during training
    checkpoint_minutes: NonNegativeFloat = 10.0
    stop_on_collapse: bool = True  # stop with a diagnosis when only background is predicted

    def __init__(self, context: RunContext, settings: Mapping[str, Setting]):
        self.context = context
        self.settings = dict(settings)
        for name, setting in settings.items():
            setattr(self, name, setting.value)
        self.labels = context.dataset.labels
        self.modules: dict[str, nn.Module] = {}
        self.step = 0  # the optimiser step under way, kept by the loop
        self._average: WeightAverage | None = None

    # What is trained

    def inputs(self) -> Sequence[Path]:
        """Return the files beside the data that the method learns from, such as the weights of its teachers.

        A run that began with others is another run. Called before anything is built or replaced, so that a UserError
        from here leaves all as it was.
        """
        return ()

    def network_spec(self) -> NetworkSpec:
        """Return the plan's network with this trainer's deep supervision."""
        return self.context.configuration.network.model_copy(update={"deep_supervision": self.deep_supervision})

    def build_modules(self) -> dict[str, nn.Module]:
        """Return every module that is trained or checkpointed; "network" is what predicts."""
        configuration = self.context.configuration
        network = build_network(configuration.architecture, self.network_spec(), self.context.workspace_root)
        if self.labels.regions and not getattr(network, "takes_regions", lambda: True)():
            raise UserError(
                f"{configuration.architecture} gives probabilities of classes that exclude each other, and the labels "
                "of this data set are regions that may overlap",
                mend="choose another architecture or another of its options: `autoseg list architectures`",
            )
        return {"network": network}

    def build_optimizers(self, modules: Mapping[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        """Return named optimisers; the learning rate of each group is multiplied by `schedule`."""
        return {"network": self.make_optimizer(self.parameter_groups(modules["network"]))}

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Return the network's parameters with their learning rates, in one group, or in those of its authors.

        `own_rates` makes a group per factor of the rate, `own_decay` parts what does not decay from what does. Groups
        come in the order of their first parameters, as checkpoints know them by their place.
        """
        factors: Mapping[str, float] = {}
        undecayed: Collection[str] = ()
        if self.own_rates and isinstance(network, Architecture):
            factors = network.rate_factors(pretrained=self.context.pretrained)
        if self.own_decay and isinstance(network, Architecture):
            undecayed = network.undecayed()
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            factor = next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)
            groups.setdefault((factor, name not in undecayed), []).append(parameter)
        return [
            {"params": part, "lr": factor * self.learning_rate, **({} if decays else {"weight_decay": 0.0})}
            for (factor, decays), part in groups.items()
        ]

    def make_optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """Return the chosen optimiser over `parameters`."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.learning_rate, self.momentum, weight_decay=self.weight_decay,
                nesterov=self.nesterov and self.momentum > 0,
            )  # fmt: skip
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam}[self.optimizer]
        return kind(parameters, self.learning_rate, (self.beta1, self.beta2), self.epsilon, self.weight_decay)

    def schedule(self, progress: float) -> float:
        """Return the factor of the learning rate at `progress` in [0, 1] after warm-up; nnU-Net's polynomial."""
        return annealed(self.annealing, progress, power=self.annealing_power, final=self.final_rate)

    # What it is trained on

    def stream_settings(self) -> StreamSettings:
        """Return how patches are drawn and augmented."""
        configuration, names = self.context.configuration, self.context.plans.channel_names
        return StreamSettings(
            patch_size=configuration.patch_size,
            batch_size=self.batch_size or configuration.batch_size,
            foreground_fraction=self.foreground_fraction,
            augmentation=self.augmentation,
            mirror_axes=self.mirror_axes(),
            computed_channels=tuple(i for i, name in enumerate(names) if name.casefold() == COMPUTED_CHANNEL),
        )

    def mirror_axes(self) -> tuple[int, ...]:
        """Return the axes of the patch that may be mirrored, in training and in prediction."""
        return tuple(range(self.context.configuration.dims)) if self.mirror else ()

    def make_stream(
        self, cases: tuple[str, ...], name: str, settings: StreamSettings | None = None, *, labels: bool = True
    ) -> PatchStream:
        """Return an endless, seeded stream of patches from `cases`; each of several processes draws its share.

        Without `labels` no label map is seen, whatever the cases have: the segmentation is 0, patches lie anywhere.
        """
        settings = settings or self.stream_settings()
        if not labels:
            settings = replace(settings, foreground_fraction=0.0)
        if self.context.processes > 1:
            settings = replace(settings, batch_size=self._share(settings.batch_size))
            name = f"{name}/{self.context.rank}"
        return PatchStream(
            self.context.store if labels else HiddenLabels(self.context.store),
            cases,
            self.labels,
            settings,
            seed=self.context.seed,
            name=name,
            use_mask=self.context.configuration.use_mask,
            previous_stage=self.context.previous_stage,
        )

    def unlabelled_stream(self, settings: StreamSettings | None = None) -> PatchStream:
        """Return the stream of the cases without labels, for `build_streams` of semi-supervised methods."""
        if not self.context.unlabelled_cases:
            raise UserError(
                "this trainer needs unlabelled cases and there are none",
                mend="put images into imagesUn and preprocess again, or hide the labels of some cases: --labelled N",
            )
        return self.make_stream(self.context.unlabelled_cases, "unlabelled", settings, labels=False)

    def _share(self, batch_size: int) -> int:
        share, rest = divmod(batch_size, self.context.processes)
        if share == 0:
            raise UserError(
                f"a batch of {batch_size} cannot be split over {self.context.processes} processes",
                mend="use fewer processes or --set batch_size=...",
            )
        return share + (self.context.rank < rest)

    def build_streams(self) -> dict[str, PatchStream]:
        """Return the named streams; `training_step` receives one batch of each."""
        return {"labelled": self.make_stream(self.context.training_cases, "labelled")}

    # How it is trained

    def loss(self, logits: torch.Tensor, target: torch.Tensor, *annotated: torch.Tensor) -> torch.Tensor:
        """Return the loss of one output: logits (B, K, *S), target (B, *S) internal values -> scalar.

        A third argument, which values are annotated (B, values) bool, comes only where some cases lack classes.
        """
        return self._segmentation_loss(logits, target, *annotated)

    def supervised_loss(self, logits: torch.Tensor | list[torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return `loss` over all deep-supervision outputs, nnU-Net's weights."""
        return self._deep_supervision(logits, batch.segmentation, batch.annotated)

    def network_input(self, batch: Batch) -> torch.Tensor:
        """Return image channels, with the one-hot label map of the previous stage appended in a cascade."""
        if batch.previous is None:
            return batch.image
        values = torch.arange(1, len(self.labels.foreground_values) + 1, device=batch.previous.device)
        shape = (1, -1) + (1,) * (batch.previous.ndim - 1)
        one_hot = (batch.previous[:, None] == values.view(shape)).to(batch.image.dtype)
        return torch.cat([batch.image, one_hot], dim=1)

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (optimiser name, loss), one yield per optimiser step."""
        batch = batches["labelled"]
        logits = self.modules["network"](self.network_input(batch))
        yield "network", self.supervised_loss(logits, batch)

    def after_step(self, progress: float) -> None:
        """Run after every optimiser step, without gradients: moving averages and the like."""
        if self._average is not None:
            self._average.update(self.step)

    def inference_module(self) -> nn.Module:
        """Return the module that predicts; its weights go into the model folder."""
        return self.modules["network"] if self._average is None else self._average.module

    def finish(self) -> None:
        """Run once after the last step, on the first process: what the method leaves in `context.folder`."""

    # Called by the loop

    def prepare(self) -> dict[str, nn.Module]:
        """Build modules and losses; returns every module to be set up and checkpointed."""
        batch_dice = self.context.configuration.batch_dice
        self._segmentation_loss = SegmentationLoss(
            self.labels, batch_dice=batch_dice, dice_weight=self.dice_weight, ce_weight=self.cross_entropy_weight,
            squared=self.dice_squared, background=self.dice_background, smooth=self.dice_smooth,
        )  # fmt: skip
        self.modules = self.build_modules()
        if self.weight_average > 0:
            self._average = WeightAverage(self.modules["network"], self.weight_average)
            self.modules["weight_average"] = self._average.module
        outputs = len(self.context.configuration.network.features) - 1 if self.deep_supervision else 1
        weights = getattr(self.modules["network"], "output_weights", lambda: None)()
        self._deep_supervision = DeepSupervisionLoss(self.loss, outputs, weights)
        return self.modules
