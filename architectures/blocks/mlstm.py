"""The matrix LSTM (mLSTM): attention whose weights fade by gates, at linear cost.

Per head, for tokens t: F_t = sum of logsigmoid(forget_j), j <= t; w_tj = exp(F_t - F_j + input_j - M_t) for j <= t with
M_t the largest exponent; C_tj = q_t . k_j / sqrt(head width) w_tj; h_t = sum_j C_tj v_j / (max(|sum_j C_tj|,
exp(-M_t)) + 1e-6).

Because M_t - F_t is the running maximum m_t of g_j = input_j - F_j, w_tj = exp(g_j - m_t): the sums over earlier
chunks of tokens fit in one matrix, sum_j exp(g_j - m) v_j k_j^T, that is carried on. So cost and memory grow with the
length and not with its square; results are those of the parallel form.

Source: Beck et al. 2024, xLSTM, arXiv:2405.04517.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 256  # tokens that are compared all with all
_LARGEST_EXPONENT = 80.0  # exp of more overflows float32


def mlstm(q: Tensor, k: Tensor, v: Tensor, input_gate: Tensor, forget_gate: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Return h (B, H, S, D) for q, k, v (B, H, S, D) and the gates before activation (B, H, S)."""
    fade = torch.nn.functional.logsigmoid(forget_gate).cumsum(-1)
    strength = input_gate - fade
    largest = strength.cummax(-1).values
    floor = torch.exp((-fade - largest).clamp(max=_LARGEST_EXPONENT))
    k = k / math.sqrt(q.shape[-1])
    memory, reference = None, None  # of the tokens so far: sum_j exp(g_j - reference) [v_j, 1] k_j^T
    outputs = []
    pieces = [tensor.split(chunk, 2) for tensor in (q, k, v, strength, largest, floor)]
    for queries, keys, values, g, m, least in zip(*pieces, strict=True):
        h, total = _within(queries, keys, values, g, m)
        if memory is not None:
            earlier = torch.exp(reference - m)[..., None] * (queries @ memory.mT)
            h, total = h + earlier[..., :-1], total + earlier[..., -1]
        outputs.append(h / (torch.maximum(total.abs(), least) + 1e-6)[..., None])
        if len(outputs) < len(pieces[0]):
            memory, reference = _carry(memory, reference, keys, values, g, m[..., -1:]), m[..., -1:]
    return torch.cat(outputs, 2)


def _within(q: Tensor, k: Tensor, v: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over the tokens of one chunk: of C_tj v_j (B, H, T, D) and of C_tj (B, H, T)."""
    length = q.shape[2]
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    weights = torch.exp((g[..., None, :] - m[..., None]).masked_fill(~causal, -math.inf))
    scores = (q @ k.mT) * weights
    return scores @ v, scores.sum(-1)


def _carry(memory: Tensor | None, reference: Tensor | None, k: Tensor, v: Tensor, g: Tensor, m: Tensor) -> Tensor:
    """Return the memory (B, H, D + 1, D) after a chunk, relative to the strength m (B, H, 1)."""
    weighted = k * torch.exp(g - m)[..., None]
    added = torch.cat([v.mT @ weighted, weighted.sum(2, keepdim=True)], 2)
    return added if memory is None else added + memory * torch.exp(reference - m)[..., None]
