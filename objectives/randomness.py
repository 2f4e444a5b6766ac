"""Random numbers by counting: each is a hash of (key, position), so that none depends on those before it.

A trial's masks and orders come from (trial seed, step or epoch, layer, position) alone: the same alone or in any
company, on a CPU or a GPU, from the start or resumed anywhere, and no generator's state is to be saved.

- The hash is SplitMix64's (Steele, Lea and Flood, OOPSLA 2014) with arithmetic shifts, which PyTorch has: they lose
  one bit of 64, which no lane of 16 bits shows. A test looks at means, variances and neighbours.
- Four lanes of 16 bits come from each number: the 128 × 256 masks of a layer take 30 µs on one core, PyTorch's
  Bernoulli numbers 300 µs (2026-11-27).

Axes: G slots, S steps, N examples, L numbers of 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: What a key is for: an order and a mask of the same number share nothing.
STEP, ORDER, MEMBER, INITIAL = 1, 2, 3, 4
#: Lanes of 16 bits in a number of 64.
LANES = 4
LEVELS = 2**16
_POSITION_BITS = 24


def _signed(number: int) -> int:
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((32, _signed(0xBF58476D1CE4E5B9)), (29, _signed(0x94D049BB133111EB)))


def mix_(x: Tensor, scratch: Tensor) -> Tensor:
    """Hash the int64 numbers of ``x`` in place; ``scratch`` is of its shape."""
    for shift, factor in _ROUNDS:
        torch.bitwise_right_shift(x, shift, out=scratch)
        x.bitwise_xor_(scratch).mul_(factor)
    return x


def _mixed(x: Tensor) -> Tensor:
    return mix_(x, torch.empty_like(x))


def keys(seeds: Sequence[int], numbers: Tensor, purpose: int) -> Tensor:
    """A key for each seed and number, G × S, int64.

    Args:
        seeds: of the G slots.
        numbers: S numbers, int64: of steps or epochs; or G × S, where each slot has its own.
        purpose: one of this module's.
    """
    # Eight purposes to a seed; hashed first, or neighbouring seeds would give shifted sequences.
    seed_G1 = torch.tensor([[_signed(seed * 8 + purpose)] for seed in seeds], device=numbers.device)
    return _mixed(_mixed(seed_G1 * _GOLDEN) + numbers * _GOLDEN)


def seed_of(seed: int, number: int, purpose: int) -> int:
    """Another seed of 32 bits, for a part of what has ``seed``."""
    return int(keys([seed], torch.tensor([number]), purpose).item()) % 2**32


def orders(keys_G1: Tensor, n: int) -> Tensor:
    """A permutation of n for each key, G × N, int64; n is at most 2**24."""
    position_N = torch.arange(n, device=keys_G1.device)
    # Random numbers of 40 bits with their positions in the low bits: sorting values is cheaper than arguments.
    packed_GN = (_mixed(keys_G1 + position_N * _GOLDEN) << _POSITION_BITS) | position_N
    if packed_GN.device.type == "cpu":  # of one dimension integers are sorted by their digits: 0.8 ms, not 2.7
        in_order_GN = torch.stack([packed_N.sort()[0] for packed_N in packed_GN])
    else:
        in_order_GN = packed_GN.sort(1)[0]
    return in_order_GN.bitwise_and_(2**_POSITION_BITS - 1)


def positions(layer: int, rows: int, columns: int, *, lanes: int, device: torch.device) -> Tensor:
    """What to add to a key for the numbers of one layer: rows × ⌈columns / lanes⌉, flat; both at most 2**24.

    A lane's position is (layer, row, column), whatever the width is padded to and however small the last batch is.
    """
    row = torch.arange(rows, device=device)[:, None]
    group = torch.arange(math.ceil(columns / lanes), device=device)
    return (((layer << 2 * _POSITION_BITS) + (row << _POSITION_BITS) + group) * _GOLDEN).flatten()


def normal(random_GL: Tensor) -> Tensor:
    """Two standard normal numbers from each number of 64 bits, G × 2L, by Box and Muller's transform."""
    # Half a step off zero, whose logarithm is infinite. In double until then: float32 has 24 of the 32 bits.
    uniform_GL2 = (
        random_GL.view(torch.int32)
        .view(*random_GL.shape, 2)
        .double()
        .add_(2**31 + 0.5)
        .div_(2**32)
        .to(torch.get_default_dtype())
    )
    radius_GL = uniform_GL2[..., 0].log().mul_(-2).clamp_min_(0).sqrt_()
    angle_GL = uniform_GL2[..., 1] * (2 * math.pi)
    return torch.stack([radius_GL * angle_GL.cos(), radius_GL * angle_GL.sin()], dim=-1).flatten(1)
