"""The arithmetic of G perceptrons of one shape, forward and backward, by hand.

- Every tensor has the slots in front: one slot is G = 1. On a CPU a slot is a stack of its own, whose ``bmm`` costs
  what ``mm`` does; on a GPU a stack of many slots makes as many launches as one.
- No slot's numbers touch another's: a slot that diverges is alone with that.
- Every operator writes into buffers that are made once. Without autograd and allocations a step of a narrow net takes
  two fifths of the time (bench_training.py).
- A hidden layer is linear → normalization → activation → dropout, plus its input with ``skip``.
- Units come before examples, in a layer's numbers as in the logits. MKL multiplies into rows of 128 examples as fast
  for 103 units as for 104; into rows of 103 units at three quarters of that (2026-11-28).
- A width may be padded to that of its stack. A padded unit has weights of zero in and out; what it gives is set to
  zero, so its gradients and moments stay zero.

Axes: G slots, B examples of a batch, F features, H units of a layer, C outputs (classes, or 1), P parameters,
Q running statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Of batch and layer normalization, PyTorch's.
EPS = 1e-5
#: How far a batch moves the running statistics of batch normalization, PyTorch's.
STATISTICS_MOMENTUM = 0.1
SLOPE = 0.01
#: Tensors of a slot begin at multiples of so many numbers: 64 bytes.
ALIGNED = 16

_aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A function of each number and its derivative, into buffers."""

    forward: Callable[[Tensor, Tensor], object]
    """(x, out)."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], object]
    """(gradient of the output, x, output, out); out may be the gradient, and the output may be overwritten."""


ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation(
        forward=lambda x, out: torch.clamp_min(x, 0, out=out),
        # 1 where the unit was on: half the time of threshold_backward.
        backward=lambda d, _x, y, out: torch.mul(d, y.sign_(), out=out),
    ),
    "leaky_relu": Activation(
        forward=lambda x, out: _aten.leaky_relu.out(x, SLOPE, out=out),
        backward=lambda d, x, _y, out: _aten.leaky_relu_backward.grad_input(d, x, SLOPE, False, grad_input=out),
    ),
    "sigmoid": Activation(
        forward=lambda x, out: torch.sigmoid(x, out=out),
        backward=lambda d, _x, y, out: _aten.sigmoid_backward.grad_input(d, y, grad_input=out),
    ),
    "tanh": Activation(
        forward=lambda x, out: torch.tanh(x, out=out),
        backward=lambda d, _x, y, out: _aten.tanh_backward.grad_input(d, y, grad_input=out),
    ),
    "gelu": Activation(
        forward=lambda x, out: _aten.gelu.out(x, out=out),
        backward=lambda d, x, _y, out: _aten.gelu_backward.grad_input(d, x, grad_input=out),
    ),
    "silu": Activation(
        forward=lambda x, out: _aten.silu.out(x, out=out),
        backward=lambda d, x, _y, out: _aten.silu_backward.grad_input(d, x, grad_input=out),
    ),
}


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a perceptron lies in the one vector of all its parameters.

    Weights come first, so that penalties have one slice. Names are those of
    :class:`objectives.model.Perceptron`.
    """

    n_features: int
    widths: tuple[int, ...]
    n_outputs: int
    normalization: str
    padded_widths: tuple[int, ...] = ()
    """At least ``widths``; empty where nothing is padded."""

    @property
    def is_padded(self) -> bool:
        """Whether a width is not its own."""
        return bool(self.padded_widths) and self.padded_widths != self.widths

    @property
    def shape(self) -> tuple[object, ...]:
        """Slots with equal ones can be in one stack."""
        return self.n_features, self.padded_widths or self.widths, self.n_outputs, self.normalization

    def _shapes(self, widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        inputs = (self.n_features, *widths)
        shapes: dict[str, tuple[int, ...]] = {}
        for i, width in enumerate(widths):
            shapes[f"blocks.{i}.linear.weight"] = (width, inputs[i])
        shapes["output.weight"] = (self.n_outputs, inputs[-1])
        for i, width in enumerate(widths):
            if self.normalization != "batch":  # which takes the mean away: rounding would move a bias about
                shapes[f"blocks.{i}.linear.bias"] = (width,)
            if self.normalization != "none":
                shapes[f"blocks.{i}.norm.weight"] = (width,)
                shapes[f"blocks.{i}.norm.bias"] = (width,)
        shapes["output.bias"] = (self.n_outputs,)
        return shapes

    @property
    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, without padding."""
        return self._shapes(self.widths)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """(where it begins, its padded shape) of each."""
        return _placed(self._shapes(self.padded_widths or self.widths))

    @cached_property
    def statistics(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Likewise, of what batch normalization keeps."""
        if self.normalization != "batch":
            return {}
        names = ("running_mean", "running_var")
        widths = self.padded_widths or self.widths
        return _placed({f"blocks.{i}.norm.{name}": (width,) for i, width in enumerate(widths) for name in names})

    @property
    def n_parameters(self) -> int:
        """P, with padding."""
        return _end(self.parameters)

    @property
    def n_weights(self) -> int:
        """How many of them are weights, from the first on."""
        return min(start for start, shape in self.parameters.values() if len(shape) == 1)

    def pack(self, tensors: Mapping[str, Tensor], kind: str = "parameters") -> Tensor:
        """One vector of ``tensors`` in their own shapes, padded with zeros."""
        places = getattr(self, kind)
        flat = torch.zeros(_end(places))
        for name, (start, shape) in places.items():
            view = flat[start : start + math.prod(shape)].view(shape)
            view[tuple(map(slice, tensors[name].shape))] = tensors[name]
        return flat

    def unpack(self, flat: Tensor, kind: str = "parameters") -> dict[str, Tensor]:
        """The tensors of a vector, in their own shapes: views."""
        own = self.own_shapes
        found = {}
        for name, (start, shape) in getattr(self, kind).items():
            view = flat[start : start + math.prod(shape)].view(shape)
            # Running statistics are none of the parameters: they have the width of their block.
            real = own.get(name) or (self.widths[int(name.split(".")[1])],)
            found[name] = view[tuple(map(slice, real))]
        return found


def _placed(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, tuple[int, ...]]]:
    places, end = {}, 0
    for name, shape in shapes.items():
        places[name] = (end, shape)
        end += math.ceil(math.prod(shape) / ALIGNED) * ALIGNED
    return places


def _end(places: Mapping[str, tuple[int, tuple[int, ...]]]) -> int:
    return max((start + math.ceil(math.prod(shape) / ALIGNED) * ALIGNED for start, shape in places.values()), default=0)


def views(flat_GP: Tensor, places: Mapping[str, tuple[int, tuple[int, ...]]]) -> dict[str, Tensor]:
    """The tensors of stacked vectors, each G × its shape."""
    return {
        name: flat_GP[:, start : start + math.prod(shape)].view(-1, *shape) for name, (start, shape) in places.items()
    }


class Normalization:
    """(x − mean) / std · gain + shift, over the examples or over the units.

    Ioffe and Szegedy, arXiv 1502.03167; Ba, Kiros and Hinton, arXiv 1607.06450.
    """

    def __init__(
        self,
        kind: str,
        *,
        tensors: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        units_GH1: Tensor | None,
    ) -> None:
        self._axis = 2 if kind == "batch" else 1
        self._gain, self._shift = (tensors[name].unsqueeze(2) for name in ("weight", "bias"))
        self._d_gain, self._d_shift = (gradients[name].unsqueeze(2) for name in ("weight", "bias"))
        self._running = (
            [statistics[name].unsqueeze(2) for name in ("running_mean", "running_var")] if statistics else []
        )
        # A batch's mean is that of each unit alone: padding disturbs the mean over units.
        self._units = units_GH1 if kind == "layer" else None

    def _takes_running(self, x: Tensor, *, training: bool) -> bool:
        """Whether the running statistics are to be taken: in training, too, for a last batch of one example."""
        return bool(self._running) and not (training and x.shape[2] > 1)

    def _mean(self, x: Tensor) -> Tensor:
        if self._units is None:
            return x.mean(self._axis, keepdim=True)
        return x.sum(1, keepdim=True).div_(self._units.sum(1, keepdim=True))

    def forward(self, x: Tensor, b: Buffers, *, training: bool) -> Tensor:
        """Normalize ``x`` in place; returns the output, in another buffer."""
        if self._takes_running(x, training=training):
            mean, var = self._running
            x.sub_(mean)
        else:
            mean = self._mean(x)
            x.sub_(mean)
            # A padded unit is now −mean, and would count in the variance.
            if self._units is not None:
                x.mul_(self._units)
            var = self._mean(x.square())
            if self._running:  # of at least two examples
                # PyTorch keeps the unbiased variance, and normalizes with the biased one.
                n = x.shape[2]
                self._running[0].lerp_(mean, STATISTICS_MOMENTUM)
                self._running[1].lerp_(var * (n / (n - 1)), STATISTICS_MOMENTUM)
        b.inverse_std = var.add(EPS).rsqrt_()
        x.mul_(b.inverse_std)
        return torch.addcmul(self._shift, x, self._gain, out=b.normalized)

    def backward(self, d: Tensor, x: Tensor, b: Buffers) -> None:
        """Turn the gradient of the output into that of the input; ``x`` is the normalized one."""
        torch.sum(d * x, 2, keepdim=True, out=self._d_gain)
        torch.sum(d, 2, keepdim=True, out=self._d_shift)
        d.mul_(self._gain)
        if self._takes_running(x, training=True):
            d.mul_(b.inverse_std)
            return
        along = self._mean(d * x)
        d.sub_(self._mean(d)).addcmul_(x, along, value=-1).mul_(b.inverse_std)
        if self._units is not None:
            d.mul_(self._units)


class Buffers:
    """What a hidden layer writes into, for batches of one size; G × H × B each.

    Args:
        shape: (G, H, B).
        like: of the same type and device.
        training: whether there will be gradients.
        normalization: whether the layer has one.
        dropout: whether there will be masks.
        skip: whether the layer adds its input.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        like: Tensor,
        training: bool,
        normalization: bool,
        dropout: bool,
        skip: bool,
    ) -> None:
        def empty() -> Tensor:
            return torch.empty(shape, dtype=like.dtype, device=like.device)

        # A step that does nothing has no buffer of its own: its name is that of the buffer before it.
        self.linear, self.activated = empty(), empty()
        self.normalized = empty() if normalization else self.linear
        self.inverse_std = torch.empty(0)
        #: What dropout multiplies with in this step, 0 or 1 / (1 − p); ``None`` without dropout.
        self.mask: Tensor | None = None
        self.dropped = empty() if dropout else self.activated
        self.output = empty() if skip else self.dropped
        #: Of the loss, by the layer's output and by its linear part.
        self.d_output, self.d_linear = (empty(), empty()) if training else (self.output, self.linear)
        # A view that every step needs: making one takes as long as a small operator.
        self.output_t = self.output.mT


class Block:
    """One hidden layer of G slots."""

    def __init__(
        self,
        name: str,
        activation: Activation,
        tensors: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        normalization: Normalization | None,
        *,
        skip: bool,
        units_GH1: Tensor | None,
    ) -> None:
        self._weight = tensors[f"{name}.linear.weight"]
        self._has_bias = f"{name}.linear.bias" in tensors
        if self._has_bias:
            self._bias = tensors[f"{name}.linear.bias"].unsqueeze(2)
            self._d_bias = gradients[f"{name}.linear.bias"].unsqueeze(2)
        self._weight_t = self._weight.mT
        self._d_weight = gradients[f"{name}.linear.weight"]
        self._activation = activation
        self._normalization = normalization
        self.normalizes = normalization is not None
        #: Whether it adds its input.
        self.skips = skip and self._weight.shape[1] == self._weight.shape[2]
        self._units = units_GH1

    def forward(self, x: Tensor, b: Buffers, *, training: bool) -> None:
        """Fill the buffers from an input of G × F × B."""
        y = b.linear
        if self._has_bias:
            torch.baddbmm(self._bias, self._weight, x, out=y)
        else:
            torch.bmm(self._weight, x, out=y)
        if self._normalization is not None:
            y = self._normalization.forward(y, b, training=training)
        self._activation.forward(y, b.activated)
        # sigmoid makes one half of a padded unit's zero, and a shift of the normalization moves it as well.
        if self._units is not None:
            b.activated.mul_(self._units)
        if b.mask is not None:
            torch.mul(b.activated, b.mask, out=b.dropped)
        if self.skips:
            torch.add(x, b.dropped, out=b.output)

    def backward(self, x_t: Tensor, b: Buffers, d_x: Tensor | None) -> None:
        """The gradients of this layer's parameters and, into ``d_x``, of its input, from that of its output.

        Args:
            x_t: the input, G × B × F.
            b: the layer's buffers.
            d_x: G × F × B; ``None`` where nobody asks for it.
        """
        d = b.d_output
        # Into d_linear: a skip still needs the gradient of the output, below.
        for factor in (b.mask, self._units):
            if factor is not None:
                d = torch.mul(d, factor, out=b.d_linear)
        normalization = self._normalization
        before = b.linear if normalization is None else b.normalized
        self._activation.backward(d, before, b.activated, b.d_linear)
        if normalization is not None:
            normalization.backward(b.d_linear, b.linear, b)
        if self._has_bias:
            torch.sum(b.d_linear, 2, keepdim=True, out=self._d_bias)
        torch.bmm(b.d_linear, x_t, out=self._d_weight)
        if d_x is None:
            return
        if self.skips:
            torch.baddbmm(b.d_output, self._weight_t, b.d_linear, out=d_x)
        else:
            torch.bmm(self._weight_t, b.d_linear, out=d_x)


class Network:
    """G perceptrons of one shape, on stacked parameters.

    Args:
        layouts: of each slot; all of one ``shape``.
        theta_GP: the parameters.
        gradient_GP: gets their gradients.
        statistics_GQ: what batch normalization keeps.
    """

    def __init__(
        self,
        layouts: Sequence[Layout],
        theta_GP: Tensor,
        gradient_GP: Tensor,
        statistics_GQ: Tensor,
        *,
        activation: str,
        skip: bool,
    ) -> None:
        layout = layouts[0]
        self._slots = len(layouts)
        self.widths = layout.padded_widths or layout.widths
        tensors, gradients = (views(flat, layout.parameters) for flat in (theta_GP, gradient_GP))
        statistics = views(statistics_GQ, layout.statistics)
        self._theta = theta_GP
        self._blocks = []
        for i, width in enumerate(self.widths):
            units = None
            # No mask where nothing is padded: it costs an operator in each layer.
            if any(each.is_padded for each in layouts):
                own = torch.tensor([each.widths[i] for each in layouts], device=theta_GP.device)
                units = (torch.arange(width, device=theta_GP.device) < own[:, None]).to(theta_GP.dtype).unsqueeze(2)
            name = f"blocks.{i}"
            normalization = None
            if layout.normalization != "none":
                normalization = Normalization(
                    layout.normalization,
                    tensors=_below(f"{name}.norm", tensors),
                    gradients=_below(f"{name}.norm", gradients),
                    statistics=_below(f"{name}.norm", statistics),
                    units_GH1=units,
                )
            self._blocks.append(
                Block(
                    name, ACTIVATIONS[activation], tensors, gradients, normalization, skip=skip, units_GH1=units,
                )
            )  # fmt: skip
        self.weights = [tensors[f"blocks.{i}.linear.weight"] for i in range(len(self.widths))]
        # Of C × B, too: a softmax over the first axis of two takes a tenth of the time of one over ten columns.
        self._out_weight, self._out_bias = tensors["output.weight"], tensors["output.bias"].unsqueeze(2)
        self._out_weight_t = self._out_weight.mT
        self._d_out_weight, self._d_out_bias = gradients["output.weight"], gradients["output.bias"]

    def buffers(self, n: int, *, training: bool, dropout: bool) -> list[Buffers]:
        """For batches of n examples."""
        return [
            Buffers(
                (self._slots, width, n),
                like=self._theta,
                training=training,
                normalization=block.normalizes,
                dropout=dropout,
                skip=block.skips,
            )
            for block, width in zip(self._blocks, self.widths, strict=True)
        ]

    def forward(self, x_GBF: Tensor, buffers: Sequence[Buffers], logits_GCB: Tensor, *, training: bool) -> None:
        """Fill the buffers, and ``logits_GCB``."""
        x = x_GBF.mT
        for block, b in zip(self._blocks, buffers, strict=True):
            block.forward(x, b, training=training)
            x = b.output
        torch.baddbmm(self._out_bias, self._out_weight, x, out=logits_GCB)

    def backward(self, x_GBF: Tensor, d_GCB: Tensor, buffers: Sequence[Buffers]) -> None:
        """The gradients of all parameters from that of the logits, after ``forward`` in training."""
        torch.bmm(d_GCB, buffers[-1].output_t if buffers else x_GBF, out=self._d_out_weight)
        torch.sum(d_GCB, 2, out=self._d_out_bias)
        if buffers:
            torch.bmm(self._out_weight_t, d_GCB, out=buffers[-1].d_output)
        for i in reversed(range(len(buffers))):
            # Nobody asks for the gradient of the data.
            x_t, d_x = (buffers[i - 1].output_t, buffers[i - 1].d_output) if i else (x_GBF, None)
            self._blocks[i].backward(x_t, buffers[i], d_x)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }
