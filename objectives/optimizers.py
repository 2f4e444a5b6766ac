"""Optimizers of G slots, each with its own settings and step count, as ``torch.optim`` computes them.

A single slot on a CPU uses PyTorch's fused kernels. µs a step for the 203,530 parameters of a width of 256, as eager
operators over the same vector and fused (2026-11-28): adamw 400 and 87, rmsprop 229 and 87, sgd 144 and 32.

Axes: G slots, P parameters, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from objectives.hyperparameters import Hyperparameters

#: The number of moment vectors of each optimizer, each of the parameters' shape.
MOMENTS = {"adamw": 2, "adam": 2, "rmsprop": 1, "sgd": 1, "gd": 0}


class Optimizer:
    """Updates the parameters of a stack.

    Args:
        settings: of each slot, all with the same ``optimizer``.
        theta_GP: the parameters, changed in place.
        gradient_GP: their gradient, overwritten by each step.
        moments: as many as :data:`MOMENTS` says, each G × P, changed in place.
    """

    def __init__(
        self, settings: Sequence[Hyperparameters], theta_GP: Tensor, gradient_GP: Tensor, moments: Sequence[Tensor]
    ) -> None:
        self._kind = settings[0].optimizer
        self._settings = settings
        self._theta, self._gradient, self._moments = theta_GP, gradient_GP, list(moments)
        # A kernel takes one learning rate for all of its tensors; slots of a stack have their own.
        self._is_fused = len(settings) == 1 and theta_GP.device.type == "cpu"
        self._decay = self._column([h.weight_decay for h in settings])
        self._has_decay = any(h.weight_decay for h in settings)
        self._momentum = self._column([h.momentum if self._kind == "sgd" else 0.0 for h in settings])
        self._nesterov = self._column([float(h.nesterov) for h in settings])
        self._beta2 = self._column([h.beta2 for h in settings])
        # In double precision: 1 − 0.999 of float32 is wrong in the fifth digit.
        self._rest1, self._rest2 = (
            self._column([1 - getattr(h, name) for h in settings]) for name in ("beta1", "beta2")
        )
        self._eps = self._column([h.eps for h in settings])
        self._scratch = torch.zeros_like(theta_GP if not self._is_fused or self._kind == "rmsprop" else theta_GP[:, :0])

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=self._theta.dtype, device=self._theta.device)[:, None]

    def plan(self, rates_GS: np.ndarray, first_steps: Sequence[int]) -> None:
        """Prepare the next S steps: none of them copies numbers from the host.

        Args:
            rates_GS: the learning rates.
            first_steps: the number of steps that each slot has taken.
        """
        step_GS = np.asarray(first_steps)[:, None] + np.arange(1, rates_GS.shape[1] + 1)
        if self._is_fused:
            self._rates = rates_GS[0].tolist()
            # RMSprop is Adam without a mean, long after the start: nothing is corrected for moments that begin at zero.
            steps = step_GS[0] if self._kind != "rmsprop" else np.full_like(step_GS[0], math.inf, dtype=float)
            self._steps = torch.tensor(steps, dtype=torch.float32).unbind()
            return
        beta1, beta2 = (np.array([[getattr(h, name)] for h in self._settings]) for name in ("beta1", "beta2"))
        decay = np.array([[h.weight_decay] for h in self._settings])
        # What depends on the step alone is computed here once: copies from the host would stall a GPU at each step. In
        # double precision: 1 − β₂ᵗ of an early step loses three digits in float32.
        columns = {
            "rate": -rates_GS,
            "kept": 1 - rates_GS * decay,
            "adam_rate": -rates_GS / (1 - beta1**step_GS),
            "inverse_root": 1 / np.sqrt(1 - beta2**step_GS),
        }
        self._planned = {
            name: torch.tensor(values.T.copy(), dtype=self._theta.dtype, device=self._theta.device)
            .unsqueeze(2)
            .unbind()
            for name, values in columns.items()
        }

    def step(self, i: int) -> None:
        """Take the planned step number ``i``, from 0."""
        if self._is_fused:
            self._fused_step(i)
        elif self._kind in ("adam", "adamw"):
            self._adam_step(i)
        elif self._kind == "rmsprop":
            self._rmsprop_step(i)
        else:
            self._sgd_step(i)

    def _fused_step(self, i: int) -> None:
        h, theta, gradient = self._settings[0], [self._theta], [self._gradient]
        if self._kind in ("sgd", "gd"):
            momentum = h.momentum if self._kind == "sgd" else 0.0
            torch._fused_sgd_(
                theta, gradient, self._moments[:1] if momentum else [], lr=self._rates[i], momentum=momentum,
                weight_decay=h.weight_decay, nesterov=h.nesterov, dampening=0.0, maximize=False, is_first_step=False,
            )  # fmt: skip
            return
        has_mean = self._kind != "rmsprop"
        mean, square = self._moments if has_mean else (self._scratch, *self._moments)
        kernel = torch._fused_adamw_ if self._kind == "adamw" else torch._fused_adam_
        kernel(
            theta, gradient, [mean], [square], [], [self._steps[i]],
            lr=self._rates[i], beta1=h.beta1 if has_mean else 0.0, beta2=h.beta2, weight_decay=h.weight_decay,
            eps=h.eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    def _adam_step(self, i: int) -> None:
        """Kingma and Ba, arXiv 1412.6980; Loshchilov and Hutter, arXiv 1711.05101."""
        if self._kind == "adamw":
            self._theta.mul_(self._planned["kept"][i])
        else:
            self._decay_into_gradient()
        mean, square = self._moments
        mean.lerp_(self._gradient, self._rest1)
        torch.mul(self._gradient, self._rest2, out=self._scratch)
        square.mul_(self._beta2).addcmul_(self._gradient, self._scratch)
        torch.sqrt(square, out=self._scratch)
        self._scratch.mul_(self._planned["inverse_root"][i]).add_(self._eps)
        torch.div(mean, self._scratch, out=self._scratch)
        self._theta.addcmul_(self._scratch, self._planned["adam_rate"][i])

    def _rmsprop_step(self, i: int) -> None:
        """Tieleman and Hinton, Coursera lecture 6e, 2012."""
        self._decay_into_gradient()
        square = self._moments[0]
        torch.mul(self._gradient, self._rest2, out=self._scratch)
        square.mul_(self._beta2).addcmul_(self._gradient, self._scratch)
        torch.sqrt(square, out=self._scratch)
        self._gradient.div_(self._scratch.add_(self._eps))
        self._theta.addcmul_(self._gradient, self._planned["rate"][i])

    def _sgd_step(self, i: int) -> None:
        """Polyak 1964; Nesterov as in Sutskever et al. 2013, in PyTorch's form."""
        self._decay_into_gradient()
        if self._moments:
            velocity = self._moments[0]
            velocity.mul_(self._momentum).add_(self._gradient)
            # Nesterov: gradient + momentum · velocity; else the velocity.
            torch.mul(velocity, self._momentum, out=self._scratch)
            torch.lerp(velocity, self._scratch.add_(self._gradient), self._nesterov, out=self._gradient)
        self._theta.addcmul_(self._gradient, self._planned["rate"][i])

    def _decay_into_gradient(self) -> None:
        if self._has_decay:
            self._gradient.addcmul_(self._theta, self._decay)
