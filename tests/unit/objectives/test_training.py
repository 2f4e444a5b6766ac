"""The arithmetic of the stack: PyTorch's, for every technique, whatever the company."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from objectives import randomness
from objectives.data import Part
from objectives.hyperparameters import ACTIVATIONS, OPTIMIZERS, Hyperparameters, learning_rates
from objectives.losses import CrossEntropy, classification_metrics, regression_metrics
from objectives.member import Examples, Member, Task
from objectives.model import Perceptron
from objectives.stack import Stack

EPOCHS = 4
CLASSES = Task(n_features=6, classes=("a", "b", "c"))
NUMBERS = Task(n_features=6, unit=2.0)
BASE: dict[str, Any] = {"depth": 2, "width": 10, "batch_size": 16, "lr": 0.05}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    """In double precision a wrong formula cannot be taken for rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@functools.cache
def part(task: Task, n: int = 40) -> Part:
    generator = torch.Generator().manual_seed(5)
    x_NF = torch.randn(n, task.n_features, generator=generator)
    signal_N = x_NF[:, 0] + 0.5 * x_NF[:, 1]
    return Part(stored_NF=x_NF, y_N=torch.bucketize(signal_N, torch.tensor([-0.5, 0.5])) if task.classes else signal_N)


def member(params: dict[str, Any], task: Task = CLASSES, seed: int = 0, epochs: int = EPOCHS, **options: Any) -> Member:
    examples = Examples(part=part(task))
    return Member(Hyperparameters(**params), task, examples, examples, epochs=epochs, seed=seed, **options)


class Reference:
    """The same training with PyTorch's own modules, autograd and optimizers."""

    def __init__(self, of: Member) -> None:
        self.h, self.task = of.hyperparameters, of.task
        self.model = Perceptron(self.task.n_features, self.task.n_outputs, self.h)
        self.model.load_state_dict({**self.model.state_dict(), **{k: t.clone() for k, t in of.tensors().items()}})
        self.optimizer = self._optimizer()
        self.rates = of.rates
        self.step = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        h, parameters = self.h, self.model.parameters()
        common = {"lr": h.lr, "weight_decay": h.weight_decay}
        if h.optimizer == "rmsprop":
            return torch.optim.RMSprop(parameters, alpha=h.beta2, eps=h.eps, **common)
        if h.optimizer in ("sgd", "gd"):
            momentum = h.momentum if h.optimizer == "sgd" else 0
            return torch.optim.SGD(parameters, momentum=momentum, nesterov=h.nesterov and momentum > 0, **common)
        kind = torch.optim.AdamW if h.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, betas=(h.beta1, h.beta2), eps=h.eps, **common)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if not self.task.classes:
            kind = self.h.resolved_loss("regression")
            huber = F.huber_loss(logits[:, 0], y, delta=self.h.huber_delta)
            return huber if kind == "huber" else F.mse_loss(logits[:, 0], y)
        weight = None
        if self.h.class_weights == "balanced":
            counts = part(CLASSES).y_N.bincount()
            weight = counts.sum() / (len(counts) * counts)
        return F.cross_entropy(logits, y, weight=weight, label_smoothing=self.h.label_smoothing)

    def train_on(self, x: Tensor, y: Tensor, masks: list[Tensor]) -> None:
        self.model.train()
        if len(x) == 1:  # of which PyTorch refuses to take a variance
            for module in self.model.modules():
                module.train(not isinstance(module, nn.BatchNorm1d))
        for block, mask in zip(self.model.blocks, masks, strict=False):
            block.dropout = _Masked(mask)
        self.model.input_dropout = nn.Identity()  # the batch's features have gone through theirs
        loss = self.loss(self.model(x), y)
        weights = [p for p in self.model.parameters() if p.dim() == 2]
        loss = loss + sum(self.h.l1 * w.abs().sum() + self.h.l2 / 2 * w.square().sum() for w in weights)
        self.optimizer.zero_grad()
        loss.backward()
        if self.h.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.h.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[self.step]
        self.optimizer.step()
        self.step += 1
        if self.h.max_norm:
            for block in self.model.blocks:
                block.linear.weight.data = torch.renorm(block.linear.weight.data, 2, 0, self.h.max_norm)


class _Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


TECHNIQUES: list[dict[str, Any]] = [
    *({"activation": name, "depth": 3} for name in ACTIVATIONS),
    *({"optimizer": name, "weight_decay": decay} for name in OPTIMIZERS for decay in (0.0, 0.1)),
    {"optimizer": "sgd", "nesterov": False},
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "adam", "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
    *({"normalization": name, "activation": "gelu", "dropout": 0.3} for name in ("batch", "layer")),
    {"normalization": "batch", "batch_size": 13, "dropout": 0.3},  # the last batch is one example
    *({"skip": True, "depth": 3, "normalization": name} for name in ("none", "batch")),
    {"dropout": 0.5, "activation": "tanh"},
    {"dropout": 0.4, "skip": True, "depth": 4, "width_2": 7, "width_3": 7},
    {"input_dropout": 0.3, "dropout": 0.2, "input_noise": 0.5},
    {"l1": 0.01, "l2": 0.1, "clip_norm": 0.5, "max_norm": 1.0},
    {"label_smoothing": 0.2},
    {"class_weights": "balanced", "label_smoothing": 0.1},
    {"depth": 0, "l2": 0.1},
    *({"loss": name, "huber_delta": 0.4, "depth": depth} for name in ("mse", "huber") for depth in (0, 2)),
]


@pytest.mark.parametrize("technique", TECHNIQUES, ids=str)
def test_steps_are_those_of_pytorch(technique: dict[str, Any]) -> None:
    task = NUMBERS if "loss" in technique else CLASSES
    of = member({**BASE, **technique}, task)
    reference, stack = Reference(of), Stack([of])
    for steps in stack.plan(0):
        for k, row_B in enumerate(steps.rows):
            stack.train_on(steps, k)
            masks = [b.mask[0].mT for b in steps.batch.buffers if b.mask is not None]
            if not (of.hyperparameters.input_dropout or of.hyperparameters.input_noise):
                assert torch.equal(steps.batch.x_LF, part(task).x_NF[row_B])
            reference.train_on(steps.batch.x_LF, steps.y_KG1B[k, 0, 0], masks)
    expected = reference.model.state_dict()
    for name, tensor in of.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9, msg=f"{technique}: {name}")
    reference.model.eval()
    for block in reference.model.blocks:
        block.dropout = nn.Identity()
    data = part(task)
    loss = stack.evaluate([Examples(part=data)])["loss"].item()
    outputs = reference.model(data.x_NF)
    plain = F.cross_entropy(outputs, data.y_N) if task.classes else F.mse_loss(outputs[:, 0], data.y_N)
    assert loss == pytest.approx(plain.item(), rel=1e-9)


def test_rates_are_those_of_pytorch_s_schedules() -> None:
    steps, per_epoch, lr = 40, 4, 0.3
    schedulers = torch.optim.lr_scheduler
    for params, make in [
        ({"schedule": "constant"}, lambda o: schedulers.ConstantLR(o, factor=1)),
        ({"schedule": "cosine"}, lambda o: schedulers.CosineAnnealingLR(o, steps)),
        ({"schedule": "step", "step_size": 3, "gamma": 0.5}, lambda o: schedulers.StepLR(o, 3 * per_epoch, 0.5)),
        ({"schedule": "onecycle"}, lambda o: schedulers.OneCycleLR(o, lr, total_steps=steps, cycle_momentum=False)),
        (
            {"schedule": "onecycle", "warmup": 0.5},
            lambda o: schedulers.OneCycleLR(o, lr, total_steps=steps, pct_start=0.5, cycle_momentum=False),
        ),
        (
            {"schedule": "cosine", "warmup": 0.25},
            lambda o: schedulers.SequentialLR(
                o,
                [
                    schedulers.LinearLR(o, start_factor=1 / 10, total_iters=9),
                    schedulers.CosineAnnealingLR(o, steps - 10),
                ],
                [10],
            ),
        ),
    ]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
        scheduler = make(optimizer)
        expected = []
        for _ in range(steps):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        rates = learning_rates(Hyperparameters(lr=lr, **params), steps=steps, per_epoch=per_epoch)
        assert len(rates) == steps + 1
        np.testing.assert_allclose(rates[:-1], expected, rtol=1e-9, atol=1e-12, err_msg=str(params))


def test_a_warm_up_that_takes_every_step_ends_at_the_highest_learning_rate() -> None:
    rates = learning_rates(Hyperparameters(lr=0.1, warmup=0.96), steps=10, per_epoch=1)
    np.testing.assert_allclose(rates, [*np.arange(1, 11) / 100, 0.1])


COMPANY: list[dict[str, Any]] = [
    {},
    {"dropout": 0.3, "input_dropout": 0.2, "input_noise": 0.1, "normalization": "layer", "activation": "sigmoid"},
    {"normalization": "batch", "optimizer": "rmsprop", "label_smoothing": 0.1, "l1": 1e-3, "l2": 1e-3},
    {"optimizer": "sgd", "skip": True, "depth": 3, "max_norm": 1.0, "clip_norm": 1.0, "activation": "sigmoid"},
    {"optimizer": "gd", "class_weights": "balanced"},
]


@pytest.mark.parametrize("technique", COMPANY, ids=str)
def test_a_member_trains_the_same_in_any_company(technique: dict[str, Any]) -> None:
    """Padded to one width, beside one that diverges, and from another step on."""

    def make(i: int) -> Member:
        params = {**BASE, **technique, "width": 10 + i, "lr": 0.02 * (i + 1), "weight_decay": 0.01 * i}
        if i == 2:
            params["lr"] = 1e300
        return member(params, seed=i, epochs=8, pad=lambda _: 16 if together else _)

    together = False
    alone = [make(i) for i in range(4)]
    for each in alone:
        stack = Stack([each])
        while not each.is_over and (each is not alone[2] or each.epoch < 3):
            stack.run_epoch()
            each.end_epoch(stack.measure()[0])
    together = True
    first, *rest = [make(i) for i in range(4)]
    stack = Stack([first])
    for _ in range(2):
        stack.run_epoch()
    stack = Stack([*rest, first])  # a later step beside earlier ones
    while not first.is_over:
        stack.run_epoch()
        for each, metrics in zip(stack.members, stack.measure(), strict=True):
            each.end_epoch(metrics)
    last = Stack([rest[0], rest[2]])  # what diverged leaves
    while not rest[0].is_over:
        last.run_epoch()
        for each, metrics in zip(last.members, last.measure(), strict=True):
            each.end_epoch(metrics)
    for each, expected in zip([first, rest[0], rest[2]], [alone[0], alone[1], alone[3]], strict=True):
        assert each.metrics == pytest.approx(expected.metrics, rel=1e-7)
        for name, tensor in each.tensors().items():
            torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-7, atol=1e-9)


class Operators(TorchDispatchMode):
    """Counts operators, and those for which the host waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        moves = func._schema.name == "aten::_to_copy" and "device" in (kwargs or {})
        self.names.append(f"{func._schema.name}{' to a device' if moves else ''}")
        return func(*args, **(kwargs or {}))


WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::_to_copy to a device"}


def test_a_step_is_as_many_operators_whatever_the_number_of_slots_and_none_waits() -> None:
    params = {**BASE, "dropout": 0.3, "input_noise": 0.1, "normalization": "batch", "optimizer": "rmsprop", "l1": 1e-3}
    counts = []
    for slots in (2, 5):
        stack = Stack([member({**params, "lr": 0.01 * (g + 1)}, seed=g) for g in range(slots)])
        stack.run_epoch()
        planned = stack.plan(0)
        with Operators() as operators:
            for steps in planned:
                for k in range(len(steps)):
                    stack.train_on(steps, k)
                stack.record(steps, len(steps))
        assert not WAITING & set(operators.names)
        counts.append(len(operators.names))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_activation_learns_32_examples_by_heart(optimizer: str) -> None:
    rate = {"sgd": 0.1, "gd": 0.5}.get(optimizer, 0.02)
    generator = torch.Generator().manual_seed(1)
    data = Part(stored_NF=torch.randn(32, 6, generator=generator), y_N=torch.randint(0, 3, (32,), generator=generator))
    for activation in ACTIVATIONS:
        params = {"activation": activation, "optimizer": optimizer, "lr": rate, "width": 64, "depth": 1}
        h = Hyperparameters(**params, weight_decay=0.0, schedule="constant", batch_size=32)
        of = Member(h, CLASSES, Examples(part=data), None, epochs=2000, seed=0)
        stack = Stack([of])
        while stack.evaluate([Examples(part=data)])["accuracy"] < 1:
            stack.run_epoch()


def test_metrics_are_scikit_learn_s() -> None:
    from sklearn import metrics

    generator = torch.Generator().manual_seed(3)
    logits, y = torch.randn(1, 4, 60, generator=generator), torch.randint(0, 3, (1, 60), generator=generator)
    found = {name: of_G.item() for name, of_G in classification_metrics(logits, y).items()}
    predicted = logits[0].argmax(0)
    present = [0, 1, 2]  # class 3 is in no example
    assert found == pytest.approx(
        {
            "loss": metrics.log_loss(y[0], torch.softmax(logits[0], 0).T, labels=[0, 1, 2, 3]),
            "accuracy": metrics.accuracy_score(y[0], predicted),
            "balanced_accuracy": metrics.recall_score(y[0], predicted, labels=present, average="macro"),
            "macro_f1": metrics.f1_score(y[0], predicted, labels=present, average="macro"),
        }
    )
    outputs, numbers = torch.randn(1, 60, generator=generator), torch.randn(1, 60, generator=generator)
    found = {name: of_G.item() for name, of_G in regression_metrics(outputs, numbers, unit=3.0).items()}
    assert found == pytest.approx(
        {
            "loss": metrics.mean_squared_error(numbers[0], outputs[0]),
            "rmse": 3 * math.sqrt(metrics.mean_squared_error(numbers[0], outputs[0])),
            "mae": 3 * metrics.mean_absolute_error(numbers[0], outputs[0]),
            "r2": metrics.r2_score(numbers[0], outputs[0]),
        }
    )


def test_a_tie_counts_for_the_first_of_its_classes_in_training_as_in_validation() -> None:
    logits_KGCB, y_KG1B = torch.zeros(1, 1, 3, 6), torch.tensor([[[[0, 1, 2, 0, 1, 2]]]])
    record = torch.empty(1, 1, 1, 6), torch.empty(1, 1, 1, 6)
    loss = CrossEntropy(3, None, None, torch.device("cpu"))
    loss.record(logits_KGCB.log_softmax(2), y_KG1B, record)
    trained = loss.measure((record[0].view(1, 6), record[1].view(1, 6)))
    assert trained["accuracy"].item() == pytest.approx(1 / 3)
    assert trained["accuracy"] == classification_metrics(logits_KGCB[0], y_KG1B[0, 0])["accuracy"]


def test_no_two_layers_share_a_position_however_large_the_batch_is() -> None:
    cpu = torch.device("cpu")
    of_layers = [randomness.positions(i, 8, 300_000, lanes=4, device=cpu) for i in range(1, 7)]
    of_input = [randomness.positions(i, 300_000, 8, lanes=4, device=cpu) for i in (-1, 0)]
    assert len(torch.cat(of_layers).unique()) == 6 * 8 * 75_000
    assert len(torch.cat([*of_input, of_layers[0]]).unique()) == 2 * 300_000 * 2 + 8 * 75_000


def test_random_numbers_look_random() -> None:
    position_L = randomness.positions(1, 128, 250, lanes=4, device=torch.device("cpu"))
    keys_GS = randomness.keys([3, 4], torch.arange(50), randomness.STEP)
    random = torch.stack([randomness.mix_(x, torch.empty_like(x)) for x in position_L + keys_GS.flatten()[:, None]])
    uniform = random.view(torch.int16).double() / 2**16
    n = uniform.numel()
    assert abs(uniform.mean()) < 5 / math.sqrt(12 * n)
    assert uniform.var() == pytest.approx(1 / 12, rel=0.01)
    for lag in (1, 2, 4, 63 * 4, 128 * 63 * 4):
        flat = uniform.flatten()
        assert abs((flat[lag:] * flat[:-lag]).mean() * 12) < 5 / math.sqrt(n)
    counts = random.view(torch.uint8).flatten().long().bincount(minlength=256)
    assert abs(((counts - counts.double().mean()) ** 2).sum() / counts.double().mean() - 255) < 5 * math.sqrt(2 * 255)
    normal = randomness.normal(random[:1])
    assert (normal.mean().item(), normal.std().item()) == pytest.approx((0, 1), abs=0.05)
    assert randomness.orders(keys_GS[:, :1], 1000).sort(1)[0].equal(torch.arange(1000).expand(2, -1))
    assert not torch.equal(*randomness.orders(keys_GS[:, :1], 1000))
