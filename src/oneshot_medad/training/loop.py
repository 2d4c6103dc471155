"""The optimisation loop; the only place that knows accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from oneshot_medad._runtime import process_count
from oneshot_medad.errors import ConfigError
from oneshot_medad.nn.head import TextTower
from oneshot_medad.training.cache import Batch, Views, draw_batch
from oneshot_medad.training.joint import JointModel

LONGEST_GRADIENT = 1.0
"""Longer ones are cut to this norm."""


def train(
    model: JointModel,
    views: Views,
    text: TextTower,
    generator: torch.Generator,
    device: torch.device,
    progress: bool,
    half: bool = False,
) -> list[dict[str, float]]:
    """Train ``model`` in place with one optimiser for all its parts.

    In several processes (``accelerate launch``) all draw the same batches, each takes its share, and the gradients are
    averaged: the detector is that of one process.

    Parameters
    ----------
    model
        The trained parts; its recipe decides steps, batch size and rates.
    views
        The cached views.
    text
        The frozen text tower, on ``device``.
    generator
        Source of all random draws.
    device
        Where to train.
    progress
        Show a progress bar.
    half
        Compute in bfloat16, as frozen networks that do.

    Returns
    -------
    One entry per step with the value of every loss.
    """
    recipe = model.recipe
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    history: list[dict[str, float]] = []
    model.train()
    try:
        with (_alone if process_count() == 1 else _accelerated)(model, optimiser, device, half) as team:
            if recipe.batch_size % team.processes:
                raise ConfigError(
                    f"Got batch_size={recipe.batch_size} in {team.processes} processes; wanted a multiple of them."
                )
            steps = range(recipe.n_steps)
            bar = tqdm(steps, desc="fit") if progress and team.process == 0 else None
            for step in bar or steps:
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * _schedule(step / recipe.n_steps)
                batch = draw_batch(views, recipe, generator, device)
                losses = team.forward(batch.share(team.process, team.processes), text)
                optimiser.zero_grad()
                team.move(losses["loss"])
                averaged = team.average({name: value.detach() for name, value in losses.items()})
                history.append({name: float(value) for name, value in averaged.items()})
                if bar:
                    bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
    finally:
        model.eval()
    return history


class Team(NamedTuple):
    """Processes that train one model together: the number of this one, how many there are, and what they do."""

    process: int
    processes: int
    forward: Callable[[Batch, TextTower], dict[str, torch.Tensor]]
    move: Callable[[torch.Tensor], None]
    "Take a step down the gradient of a loss."
    average: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@contextmanager
def _alone(model: JointModel, optimiser: torch.optim.Optimizer, device: torch.device, half: bool) -> Iterator[Team]:
    """One process: it needs no accelerate, whose state is shared by all threads and which empties their environment."""

    def forward(batch: Batch, text: TextTower) -> dict[str, torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses = model(batch, text)
        return {name: value.float() for name, value in losses.items()}

    def move(loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        optimiser.step()

    yield Team(0, 1, forward, move, lambda losses: losses)


@contextmanager
def _accelerated(
    model: JointModel, optimiser: torch.optim.Optimizer, device: torch.device, half: bool
) -> Iterator[Team]:
    """Several processes, whose gradients accelerate averages."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs

    born_here = not PartialState._shared_state
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if half else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # a recipe may leave parts idle
    )
    try:
        prepared, optimiser = accelerator.prepare(model, optimiser)

        def move(loss: torch.Tensor) -> None:
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), LONGEST_GRADIENT)
            optimiser.step()

        def average(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return accelerator.reduce(losses, "mean")

        yield Team(accelerator.process_index, accelerator.num_processes, prepared, move, average)
    finally:
        accelerator.free_memory()
        if born_here:  # leave no process-wide state behind
            AcceleratorState._reset_state(reset_partial_state=True)


def _schedule(done: float) -> float:
    """Short warm-up, then cosine decay to a tenth."""
    return min(1.0, 20 * done + 0.05) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
