"""Time of a step of fine-tuning in single precision, and with matrix products in bfloat16.

Run with the folder of a training set, as `mlmd finetune` takes it. Steps of both kinds take turns
on the same batches, with the same weights; the last line is the root mean square difference between
their losses.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any, Final

import torch

from mlmd_calc.data import read_dataset
from mlmd_calc.training.module import TrainingModule
from mlmd_calc.training.recipe import load_recipe
from mlmd_calc.training.task import prepare
from mlmd_calc.zoo import load_atom

_KINDS: Final = {"single": False, "bfloat16": True}


def measure(module: TrainingModule, batch: Any, *, half: bool) -> tuple[float, float]:
    """Return processor time in s and loss of one step, without the update of the weights."""
    begin = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss = torch.stack(list(module.loss_terms(batch).values())).sum()
    loss.backward()
    return time.process_time() - begin, loss.item()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="atom-small-organics")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    recipe = load_recipe("atom-finetune", {"held_out_molecules": []})
    task = prepare(read_dataset([options.data]), recipe, load_atom(options.model, device="cpu"))
    times: dict[str, list[float]] = {name: [] for name in _KINDS}
    losses: dict[str, list[float]] = {name: [] for name in _KINDS}
    # The first batch is for warming up.
    for batch in itertools.islice(task.stream(seed=0), options.steps + 1):
        for name, half in _KINDS.items():
            seconds, loss = measure(task.module, batch, half=half)
            times[name].append(seconds)
            losses[name].append(loss)
    single, half = (sum(times[name][1:]) / options.steps for name in _KINDS)
    errors = [(b / a - 1.0) ** 2 for a, b in zip(*losses.values(), strict=True)]
    print(
        f"single precision {single:.3f} s a step, bfloat16 {half:.3f} s, ratio {single / half:.2f}"
    )
    print(f"losses differ by {100.0 * math.sqrt(sum(errors) / len(errors)):.2g} %")


if __name__ == "__main__":
    main()
