"""MedVisionLlama. Source: Marthi Krishna Kumar et al. 2024, arXiv:2410.02458, the code of 2025; written from the
description, no code taken.

Tokens of the image pass through one frozen layer of a large language model, with a residual path around it, between two
linear mappers whose frozen random weights are adapted by LoRA; then through a small vision transformer. A linear head
gives the voxels of every token. It has one output resolution, so deep supervision changes nothing.

Taken from the plan: the token size, 8 voxels per axis, halved for every stage in which the plan leaves that (coarse)
axis alone, doubled while the patch has more than 4096 tokens; the patch must be a multiple of it. The position table is
interpolated for other sizes. Plans with fewer channels than nnU-Net's 32 get less width and fewer blocks in proportion.
2D is the same with one axis less. Several outputs, without sigmoid, where the paper has one.

Options: llm_file, a safetensors file with one layer's weights (Llama 3.1 8B's last one in the paper; names of Meta or
Hugging Face): weights are named by file and hash, not saved with the network, so prediction needs the file too
(`--network-option llm_file=...`). Without it the layer is random, which is the paper's control, and saved. llm: its
width, heads, key heads and hidden width, [256, 8, 2, 896] without a file; use_llm (true; false: the plain vision
transformer); train_mappers (false: frozen, as published); width (64), depth (16), heads (4), dropout (0.2), token_size.

Authors: Adam, learning rate 2e-3, halved where the loss stays, for which the engine's schedule stands, batch 4. Their
loss is 0.5 BCE + 0.5 Dice of thresholded predictions, which has no gradient: 0.5 cross-entropy alone has the same one,
and is what `--set own_recipe=published` takes. The recipe used unless others are given has the engine's loss.
Parameters at 128^3, Llama 3.1 8B: published 219 805 824, of which 1 165 440 are trained; here 1 165 440 parameters, the
others are buffers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from autoseg.architectures.blocks.llama_block import LlamaBlock, LlamaSize, has_values, size_of
from autoseg.architectures.blocks.vit import ViTBlock, fit_positions
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register
from autoseg.storage import file_hash

TOKEN = 8
MOST_TOKENS = 4096
WIDTH, WIDTH_STEP, DEPTH = 64, 16, 16
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published size is meant for
STAND_IN = LlamaSize(256, 8, 2, 896)  # of the random layer
RANK, ALPHA = 4, 1  # of the adapted mappers
WARNING = (
    "medvisionllama: the frozen layer has random weights, which is the authors' control and not their method; give one "
    "of a language model by --network-option llm_file=FILE"
)

log = logging.getLogger(__name__)


@register.architecture("medvisionllama")
class MedVisionLlama(Architecture):
    """MedVisionLlama, 3D and 2D: a vision transformer behind one frozen layer of a language model."""

    defaults = {
        "llm_file": None, "llm_hash": None, "llm": None, "use_llm": True, "train_mappers": False, "width": None,
        "depth": None, "heads": 4, "dropout": 0.2, "token_size": None,
    }  # fmt: skip
    choices = {"use_llm": (True, False), "train_mappers": (False, True)}
    recipe = {"optimizer": "adam", "learning_rate": 2e-3, "weight_decay": 0.0}
    as_published = {"dice_weight": 0.0, "cross_entropy_weight": 0.5}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        options, self.token = self.options, token_size(spec)
        if any(edge % step for edge, step in zip(spec.patch_size, self.token, strict=True)):
            raise UserError(
                f"the patch {spec.patch_size} is no multiple of the token size {self.token}", where="network"
            )
        width, voxels = options["width"] or WIDTH, math.prod(self.token)
        self.grid = tuple(edge // step for edge, step in zip(spec.patch_size, self.token, strict=True))
        self.embedding = nn.Linear(spec.in_channels * voxels, width)
        self.booster = None
        if options["use_llm"]:
            file = verified_file(options)
            self.booster = Booster(width, llm_size(options), file, trains=options["train_mappers"])
        self.position = nn.Parameter(torch.randn(1, math.prod(self.grid), width))
        drop = options["dropout"]
        self.blocks = nn.ModuleList(
            ViTBlock(width, options["heads"], attention_drop=drop, drop=drop, eps=1e-5)
            for _ in range(options["depth"] or DEPTH)
        )
        self.head = nn.Linear(width, spec.num_outputs * voxels)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix the options: token size by the plan's strides, width and depth by its first width, the file's hash."""
        options, share = cls.read_options(spec), min(1.0, spec.features[0] / USUAL_WIDTH)
        options["token_size"] = list(token_size(spec))  # as JSON gives it back
        options["width"] = options["width"] or WIDTH_STEP * max(1, round(WIDTH * share / WIDTH_STEP))
        options["depth"] = options["depth"] or max(2, round(DEPTH * share))
        if options["llm_file"] and not options["llm_hash"]:
            path = existing_file(options["llm_file"])
            options |= {"llm_file": str(path), "llm_hash": file_hash(path)}
        options["llm"] = list(llm_size(options))
        if options["use_llm"] and not options["llm_file"]:
            log.warning(WARNING)
        return spec.model_copy(update={"options": options})

    @classmethod
    def patch_multiple(cls, spec: NetworkSpec) -> tuple[int, ...]:
        """Return the token size."""
        return token_size(spec)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map, the tokens on their grid (B, F, *grid), for x (B, C, *S)."""
        grid = tuple(edge // step for edge, step in zip(x.shape[2:], self.token, strict=True))
        tokens = self.embedding(unfold(x, self.token))
        if self.booster is not None:
            tokens = self.booster(tokens)
        tokens = tokens + fit_positions(self.position, self.grid, grid)
        for block in self.blocks:
            tokens = block(tokens)
        return [tokens.mT.unflatten(2, grid)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        grid = features[-1].shape[2:]
        return fold(self.head(features[-1].flatten(2).mT), grid, self.token)


class Booster(nn.Module):
    """Mapper to the language model's width, its frozen layer plus a residual path, mapper back: (B, N, C) -> same."""

    def __init__(self, width: int, size: LlamaSize, file: Path | None, *, trains: bool):
        super().__init__()
        self.enter = Mapper(width, size.width, trains=trains)
        self.llm = LlamaBlock(size, file)
        self.leave = Mapper(size.width, width, trains=trains)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the boosted tokens."""
        wide = self.enter(tokens)
        return self.leave(self.llm(wide) + wide)


class Mapper(nn.Module):
    """W x + b + B A x alpha / rank with W frozen as it was drawn, unless `trains`: (..., C) -> (..., D).

    Source: Hu et al. 2021, LoRA, arXiv:2106.09685.
    """

    def __init__(self, before: int, after: int, *, trains: bool = False):
        super().__init__()
        drawn = nn.Linear(before, after)
        if trains:
            self.weight = drawn.weight
        else:
            self.register_buffer("weight", drawn.weight.detach())
        self.bias = drawn.bias
        self.lora_a = nn.Parameter(torch.empty(RANK, before))
        self.lora_b = nn.Parameter(torch.zeros(after, RANK))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped x."""
        adapted = nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b)
        return nn.functional.linear(x, self.weight, self.bias) + adapted * (ALPHA / RANK)


def unfold(x: Tensor, token: Sequence[int]) -> Tensor:
    """Return tokens (B, N, C p) for x (B, C, *S), p voxels each: tokens row-major, their values channel by channel."""
    dims, shape = len(token), [x.shape[0], x.shape[1]]
    for size, edge in zip(x.shape[2:], token, strict=True):
        shape += [size // edge, edge]
    x = x.reshape(shape).permute(0, *range(2, 2 * dims + 2, 2), 1, *range(3, 2 * dims + 2, 2))
    return x.flatten(dims + 1).flatten(1, dims)


def fold(tokens: Tensor, grid: Sequence[int], token: Sequence[int]) -> Tensor:
    """Undo `unfold` for a grid of tokens: (B, N, K p) -> (B, K, *S)."""
    dims = len(token)
    x = tokens.unflatten(2, (-1, *token)).unflatten(1, tuple(grid))  # (B, *grid, K, *token)
    pairs = [axis for i in range(dims) for axis in (1 + i, 2 + dims + i)]
    sizes = [count * edge for count, edge in zip(grid, token, strict=True)]
    return x.permute(0, 1 + dims, *pairs).reshape(x.shape[0], -1, *sizes)


def token_size(spec: NetworkSpec) -> tuple[int, ...]:
    """Return the voxels of a token per axis."""
    given = spec.options.get("token_size")
    if given is not None:
        token = tuple(int(edge) for edge in given)
        if len(token) != spec.dims or min(token) < 1:
            raise UserError(f"token_size must be {spec.dims} whole numbers, got {token}", where="network.options")
        return token
    token = tuple(max(1, TOKEN >> left_alone(spec, axis)) for axis in range(spec.dims))
    while math.prod(math.ceil(edge / step) for edge, step in zip(spec.patch_size, token, strict=True)) > MOST_TOKENS:
        token = tuple(2 * edge for edge in token)
    return token


def left_alone(spec: NetworkSpec, axis: int) -> int:
    """Return in how many stages at the start the plan strides other axes but not this one."""
    poolings = [stride for stride in spec.strides[1:] if max(stride) > 1]
    strided = [stride[axis] > 1 for stride in poolings]
    return strided.index(True) if True in strided else len(strided)


def llm_size(options: dict) -> LlamaSize:
    """Return the size of the language model's layer: the given one, the file's, or that of the random layer."""
    if options["llm"]:
        if len(options["llm"]) != len(STAND_IN):
            raise UserError(f"llm takes four numbers, got {options['llm']}", where="network.options")
        return LlamaSize(*map(int, options["llm"]))
    return size_of(existing_file(options["llm_file"])) if options["llm_file"] else STAND_IN


def existing_file(path: str) -> Path:
    """Return the absolute path of the language model's file, which has to be there."""
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise UserError(
            "the language model's layer is not there",
            where=found,
            mend="give the file that the network was planned with: --network-option llm_file=...",
        )
    return found


def verified_file(options: dict) -> Path | None:
    """Return the file, which must be the one that the plan was made with; None where the layer is random."""
    if not options["llm_file"] or not has_values():
        return Path(options["llm_file"]) if options["llm_file"] else None
    path = existing_file(options["llm_file"])
    if options["llm_hash"] and file_hash(path) != options["llm_hash"]:
        raise UserError("the language model's layer is another one than the network was trained with", where=path)
    return path
