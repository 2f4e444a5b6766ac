"""What the batches of a stack are written into: examples, masks and outputs, of several steps at once.

What no weights decide is made for K steps at once: of a narrow net these operators take about as long for one step as
for eight (bench_training.py).

Axes: K steps that are prepared together, G slots, B examples of a batch, F features, H hidden units, C outputs, L
numbers of 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from objectives import randomness
from objectives.member import Member
from objectives.network import Network

#: The numbers of a slot that are prepared together stay below so many: 512 kB of 64 bits, which a cache holds.
PREPARED = 2**16


def steps_together(numbers: int, available: int) -> int:
    """K: how many of the ``available`` steps to prepare together, when each slot needs so many numbers for one."""
    return max(1, min(available, PREPARED // numbers))


class Batch:
    """What batches of n examples are written into, and the masks of as many steps as are prepared together.

    Args:
        network: of the members.
        members: of the stack.
        n: how many examples.
        training: or evaluation.
        gathers: whether the examples are gathered, and not consecutive rows of the part.
    """

    def __init__(self, network: Network, members: Sequence[Member], n: int, *, training: bool, gathers: bool) -> None:
        part, task = members[0].train.part, members[0].task
        settings = [member.hyperparameters for member in members]
        device, slots, n_features = part.device, len(members), task.n_features
        are_bytes = part.stored_NF.dtype == torch.uint8
        # Consecutive rows are the same for all slots, and where they are no bytes need no copy.
        self.x_LF = torch.empty(slots * n if gathers else n * are_bytes, n_features, device=device)
        self.x_GBF = self.x_LF.view(slots if gathers else 1, -1, n_features)
        self.stored_LF = torch.empty_like(self.x_LF, dtype=torch.uint8) if are_bytes else self.x_LF
        has_dropout = training and any(h.dropout for h in settings)
        self.buffers = network.buffers(n, training=training, dropout=has_dropout)
        # Layer 0 is the input, 1 the first hidden one; -1 the noise. Shaped as what they are for.
        layers = [(0, (n, n_features))] * (training and any(h.input_dropout for h in settings))
        layers += [(i + 1, (width, n)) for i, width in enumerate(network.widths) if has_dropout]
        regions = [randomness.positions(i, *shape, lanes=randomness.LANES, device=device) for i, shape in layers]
        self._has_noise = training and any(h.input_noise for h in settings)
        if self._has_noise:
            regions.append(randomness.positions(-1, n, n_features, lanes=2, device=device))
        self._position_L = torch.cat(regions) if regions else torch.empty(0, dtype=torch.int64, device=device)
        n_random = len(self._position_L)
        #: K, at most; the last batch of an epoch may be smaller, and is one.
        available = len(members[0].train) // n if training and n == members[0].batch_size else 1
        self.n_steps = steps_together(n_random + task.n_outputs * n, available)
        self.outputs_KGCB = torch.empty(self.n_steps, slots, task.n_outputs, n, device=device)
        self.outputs = self.outputs_KGCB.unbind()
        self.d_outputs = torch.empty_like(self.outputs[0])
        self._random_KGL = torch.empty(self.n_steps, slots, n_random, dtype=torch.int64, device=device)
        self._scratch_KGL = torch.empty_like(self._random_KGL)
        splits = torch.split(self._random_KGL, [len(region) for region in regions], dim=2) if regions else ()
        self._noise_KGL = splits[-1] if self._has_noise else None
        self._noise_G11 = torch.tensor([h.input_noise for h in settings], device=device)[:, None, None]
        self._masks = {
            i: _Mask(random_KGL, [h.dropout if i else h.input_dropout for h in settings], shape)
            for (i, shape), random_KGL in zip(layers, splits, strict=False)
        }

    def draw(self, key_KG1: Tensor) -> None:
        """Draw the random numbers and the masks of the steps with these keys."""
        if not len(self._position_L):
            return
        count = len(key_KG1)
        random_KGL = torch.add(self._position_L, key_KG1, out=self._random_KGL[:count])
        randomness.mix_(random_KGL, self._scratch_KGL[:count])
        for mask in self._masks.values():
            mask.draw(count)

    def disturb(self, k: int) -> None:
        """Give the hidden layers the masks of step ``k``; add noise to the input, and drop some of it."""
        if self._noise_KGL is not None:
            slots, n, n_features = self.x_GBF.shape
            normal_GL = randomness.normal(self._noise_KGL[k])
            self.x_GBF.addcmul_(normal_GL.view(slots, n, -1)[:, :, :n_features], self._noise_G11)
        for i, mask in self._masks.items():
            if i:
                self.buffers[i - 1].mask = mask.of_steps[k]
            else:
                self.x_GBF.mul_(mask.of_steps[k])


class _Mask:
    """Of dropout (Srivastava et al., JMLR 2014): 1 / (1 − p) where a unit is kept, else 0; p in steps of 2⁻¹⁶."""

    def __init__(self, random_KGL: Tensor, shares: Sequence[float], shape: tuple[int, int]) -> None:
        # At most one below all levels: the bound is a signed number of 16 bits.
        kept = [min(round((1 - share) * randomness.LEVELS), randomness.LEVELS - 1) for share in shares]
        device = random_KGL.device
        below = [max(count, 1) - randomness.LEVELS // 2 for count in kept]  # lanes begin at −2¹⁵
        self._below_G11 = torch.tensor(below, dtype=torch.int16, device=device)[:, None, None]
        self._scale_G11 = torch.tensor([randomness.LEVELS / max(count, 1) for count in kept], device=device)[
            :, None, None
        ]
        rows, columns = shape
        self._lanes = random_KGL.view(torch.int16).view(*random_KGL.shape[:2], rows, -1)[..., :columns]
        self._out = torch.empty(self._lanes.shape, device=device)
        #: Of each step: G × B × F of the input, G × H × B of a hidden layer.
        self.of_steps = self._out.unbind()

    def draw(self, count: int) -> None:
        """Of the first ``count`` steps, from the random numbers as they are now."""
        torch.lt(self._lanes[:count], self._below_G11, out=self._out[:count]).mul_(self._scale_G11)
