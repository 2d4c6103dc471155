"""The optimisation loop; the only place that knows accelerate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from oneshot_medad._runtime import process_count
from oneshot_medad._threads import Guard
from oneshot_medad.errors import ConfigError
from oneshot_medad.nn.prompts import TextTower
from oneshot_medad.training.cache import Views, draw_batch
from oneshot_medad.training.joint import JointModel

if TYPE_CHECKING:
    from accelerate import Accelerator

TRAINING = Guard()
"""Held while accelerate is in use."""
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
    averaged: the detector is that of one process. So it is if a process takes its share in several parts to save memory
    (accelerate's ``ACCELERATE_GRADIENT_ACCUMULATION_STEPS`` in the environment).

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
    with _accelerator(device, half) as accelerator:
        processes, parts = accelerator.num_processes, accelerator.gradient_accumulation_steps
        if recipe.batch_size % (processes * parts):
            shared = f"{processes} processes" + (f" of {parts} steps each" if parts > 1 else "")
            raise ConfigError(f"Got batch_size={recipe.batch_size} in {shared}; wanted a multiple of them.")
        prepared, optimiser = accelerator.prepare(model, optimiser)
        try:
            prepared.train()
            steps = range(recipe.n_steps)
            bar = tqdm(steps, desc="fit") if progress and accelerator.is_main_process else None
            for step in bar or steps:
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * _schedule(step / recipe.n_steps)
                batch = draw_batch(views, recipe, generator, device)
                optimiser.zero_grad()
                found: list[dict[str, torch.Tensor]] = []
                for part in range(parts):
                    share = batch.share(accelerator.process_index * parts + part, processes * parts)
                    with nullcontext() if part + 1 == parts else accelerator.no_sync(prepared):
                        losses = prepared(share, text)
                        accelerator.backward(losses["loss"])  # divides by the number of parts
                    found.append({name: value.detach() for name, value in losses.items()})
                accelerator.clip_grad_norm_(prepared.parameters(), LONGEST_GRADIENT)
                optimiser.step()
                mean = {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}
                averaged = accelerator.reduce(mean, "mean")
                history.append({name: float(value) for name, value in averaged.items()})
                if bar:
                    bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
        finally:
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)  # a wrapped forward could not be pickled
            model.eval()
    return history


@contextmanager
def _accelerator(device: torch.device, half: bool) -> Iterator[Accelerator]:
    """Born and gone inside; its state belongs to the whole process, so fits in other threads wait for their turn."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs

    with TRAINING:
        born_here = not PartialState._shared_state
        # a recipe may leave parts idle; accelerate empties the environment for a moment to read what it is given here
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if process_count() > 1 else []
        accelerator = Accelerator(
            cpu=device.type == "cpu", mixed_precision="bf16" if half else "no", kwargs_handlers=handlers
        )
        try:
            yield accelerator
        finally:
            accelerator.free_memory()
            if born_here:  # leave no process-wide state behind
                AcceleratorState._reset_state(reset_partial_state=True)


def _schedule(done: float) -> float:
    """Short warm-up, then cosine decay to a tenth."""
    return min(1.0, 20 * done + 0.05) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
