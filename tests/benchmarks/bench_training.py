"""What a step costs: the pool, a loop with autograd over one net at a time, and the matrix products alone.

One thread, batches of 128, bytes of MNIST's shape (54,000 × 784, ten classes), dropout 0.3, AdamW. The arms take
turns within one process; the figures are medians over the rounds, and of the ratios the medians of each round's.

On one core of an AMD EPYC with two, PyTorch 2.14.1, 2026-11-27, n = 5, idle. Times faster than the loop, at depth 1 and
2: 2.9 and 3.0 at width 32, 2.4 and 2.4 at 64; at depth 1 2.0 at 128, 1.8 at 256, 1.5 at 512. Times the products: 1.8
and 1.9 at width 32, 1.5 and 1.6 at 64, 1.4 from 128 on. Before several steps were prepared together it was 2.4 and 2.5
times faster at 32, 2.1 and 2.2 at 64. Bytes that are scaled and shifted in two passes would save 9 µs a step, but
differ in the last bit from what a kept model does to raw pixels: not used.

On 2026-11-28, same machine, one core that was slower with everything but products: 2.8 and 2.9 at width 32, 2.2 and 2.3
at 64, 1.9 at 128, 1.6 at 256, 1.5 and 1.3 at 512. That activations lie as units by examples changes none of these, but
at 1 x 103 1.88 became 2.07, at 2 x 50 2.38 2.53, and at 3 x 90 2.04 2.11 (three runs of five rounds each, in turns).

Tried and no faster on a CPU: several slots in one stack; other layouts of the products, all of which reach 90 to 98
GFLOP/s at these widths, and oneDNN's; huge pages (of gathering 128 rows 5 µs are the copy, the rest waits for the
memory). FBGEMM's lookup, which scales bytes as it gathers them, takes some 5 µs less, and knows but one scale for all
features. Without the 67 pixels that are the same in all training images of MNIST, 1 x 64 and 2 x 64 would be 2.37 and
2.39 times faster in place of 2.29 and 2.34 (2026-11-28): too little for other parts, and checkpoints, of every stored
study.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.data import Part
from objectives.hyperparameters import Hyperparameters
from objectives.member import Examples, Member, Task
from objectives.stack import Stack

EXAMPLES, FEATURES, CLASSES, BATCH, DROPOUT = 54_000, 784, 10, 128, 0.3


def one_at_a_time(part: Part, depth: int, width: int) -> Callable[[int], object]:
    """The loop that Studyhall had before it had pools (2026-11): modules, autograd, the fused AdamW, the data float."""
    x_NF = part.x_NF
    layers: list[nn.Module] = []
    size = FEATURES
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(DROPOUT)]
        size = width
    model = nn.Sequential(*layers, nn.Linear(size, CLASSES)).to(part.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)
    loss_sum, correct = torch.zeros((), device=part.device), torch.zeros((), device=part.device)

    def train(steps: int) -> None:
        nonlocal loss_sum, correct
        for index_B in torch.split(torch.randperm(len(part), device=part.device), BATCH)[:steps]:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            logits_BC = model(x_NF[index_B])
            y_B = part.y_N[index_B]
            loss = F.cross_entropy(logits_BC, y_B)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(index_B)
            correct += (logits_BC.detach().argmax(1) == y_B).sum()

    return train


def pool(part: Part, depth: int, width: int, *, slots: int = 1) -> Callable[[int], object]:
    """So many slots in one stack."""
    task = Task(n_features=FEATURES, classes=tuple(map(str, range(CLASSES))))
    hyperparameters = Hyperparameters(depth=depth, width=width, dropout=DROPOUT, batch_size=BATCH)
    members = [
        Member(hyperparameters, task, Examples(part=part), None, epochs=1000, seed=seed) for seed in range(slots)
    ]
    stack = Stack(members)

    def train(steps: int) -> None:
        left = iter(range(steps))
        for member in members:
            member.step -= member.step % member.steps_per_epoch
        stack.run_epoch(lambda: next(left, None) is None)

    return train


def products(depth: int, width: int) -> Callable[[int], object]:
    """The matrix products of a step: forward, and backward by the weights and the inputs."""
    sizes = [FEATURES, *[width] * depth, CLASSES]
    weights = [torch.randn(outputs, inputs) for inputs, outputs in pairwise(sizes)]
    values = [torch.randn(BATCH, size) for size in sizes]

    def multiply(steps: int) -> Tensor | None:
        for _ in range(steps):
            for i, weight in enumerate(weights):
                torch.mm(values[i], weight.T)
                torch.mm(values[i + 1].T, values[i])
                if i:
                    torch.mm(values[i + 1], weight)
        return None

    return multiply


def measured(train: Callable[[int], object], steps: int) -> float:
    """Milliseconds a step."""
    start = time.perf_counter()
    train(steps)
    return (time.perf_counter() - start) * 1000 / steps


def shapes(text: str) -> Iterator[tuple[int, int]]:
    """(depth, width) of ``1x32,2x64``."""
    for shape in text.split(","):
        depth, _, width = shape.partition("x")
        yield int(depth), int(width)


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each arm, in turns (default: %(default)s)")
    parser.add_argument("--shapes", default=",".join(f"{d}x{w}" for d in (1, 2) for w in (32, 64, 128, 256, 512)))
    parser.add_argument("--steps", type=int, default=422, help="of each arm and round (default: %(default)s)")
    parser.add_argument("--stacked", type=int, default=0, help="also measure so many slots in one stack")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    part = Part(
        stored_NF=torch.randint(0, 256, (EXAMPLES, FEATURES), dtype=torch.uint8),
        y_N=torch.randint(0, CLASSES, (EXAMPLES,)),
        mean_F=torch.tensor([127.5]),
        std_F=torch.tensor([73.9]),
    )
    found = {}
    for depth, width in shapes(settings.shapes):
        arms = {
            "one at a time": one_at_a_time(part, depth, width),
            "pool": pool(part, depth, width),
            "products": products(depth, width),
        }
        if settings.stacked:
            arms["stacked"] = pool(part, depth, width, slots=settings.stacked)
        for train in arms.values():
            train(10)
        rounds = [
            {name: measured(train, settings.steps) for name, train in arms.items()} for _ in range(settings.rounds)
        ]
        figures = {name: statistics.median(each[name] for each in rounds) for name in arms}
        figures["times faster"] = statistics.median(each["one at a time"] / each["pool"] for each in rounds)
        figures["times the products"] = statistics.median(each["pool"] / each["products"] for each in rounds)
        if settings.stacked:
            figures["stacked"] /= settings.stacked
        found[f"{depth} x {width}"] = {name: float(f"{value:.3g}") for name, value in figures.items()}
        print(
            f"{depth} x {width}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()),
            file=sys.stderr,
        )
    print(json.dumps({"benchmark": "training", "threads": 1, "rounds": settings.rounds, "ms_per_step": found}))


if __name__ == "__main__":
    main()
