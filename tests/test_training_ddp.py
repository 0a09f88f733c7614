"""Two processes on the CPU train one network on twice the data."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import needs_lightning  # noqa: F401
import pytest
import torch
from spring_molecules import spring_frames

from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.training.held_out import split
from mlmd_calc.training.mdet.atomic_energies import fit_atomic_energies
from mlmd_calc.training.mdet.batches import StructureTable, TrainingBatches
from mlmd_calc.training.mdet.module import MDETTraining
from mlmd_calc.training.mdet.recipe import MDETLossWeights, MDETRecipe
from mlmd_calc.zoo import load_model

FRAMES = [spring_frames("water", [8, 1, 1], 40), spring_frames("carbon monoxide", [6, 8], 40)]
RECIPE = MDETRecipe(
    model={"n_layers": 1, "embd_dim": 16, "num_heads": 2, "num_3d_kernels": 8},
    loss=MDETLossWeights(forces=1.0, energy=1.0),
    steps=4,
    learning_rate=1e-3,
    warmup_steps=2,
    pairs_per_batch=60,
    ema_decay=0.0,
    validate_every=2,
    held_out_fraction=0.2,
)

SCRIPT = """
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from test_training_ddp import FRAMES, RECIPE
from mlmd_calc.training.mdet.module import MDETTraining
from mlmd_calc.training.train import train

folder = Path({folder!r})
batches = dict(straight=[], resumed=[])
original = MDETTraining.training_step

def remember(module, batch, index):
    if run == "straight" and module.trainer.global_step == 3 and module.trainer.is_global_zero:
        shutil.copy(folder / "straight" / "last.ckpt", folder / "resumed")
    batches[run].append(batch.energies.tolist())
    return original(module, batch, index)

MDETTraining.training_step = remember
for run in batches:
    train(FRAMES, RECIPE, folder / run, devices=2, accelerator="cpu", progress=False)
rank = os.environ.get("LOCAL_RANK", "0")
(folder / f"batches.{{rank}}.json").write_text(json.dumps(batches))
"""
"""Trains to the end, and from the checkpoint of half-way once more. Every process runs it."""


def train_by_hand() -> tuple[MDET, list[list[float]]]:
    """Plain loop over pairs of batches with the mean of their gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RECIPE.seed)
        module = MDETTraining(MDET(MDETConfig.from_dict(RECIPE.model)), RECIPE)
    frames, _ = split(FRAMES, RECIPE)
    table = StructureTable(frames, fit_atomic_energies(frames))
    batches = list(
        islice(
            TrainingBatches(
                table, pairs_per_batch=RECIPE.pairs_per_batch, copies=RECIPE.copies, seed=0
            ),
            2 * RECIPE.steps,
        )
    )
    setup = module.configure_optimizers()
    for pair in zip(batches[::2], batches[1::2], strict=True):
        for batch in pair:
            (sum(module.loss_terms(batch).values()) / 2).backward()
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), RECIPE.gradient_clip)
        setup["optimizer"].step()
        setup["optimizer"].zero_grad()
        setup["lr_scheduler"]["scheduler"].step()
    return module.network, [batch.energies.tolist() for batch in batches]


@pytest.mark.slow
def test_two_processes_share_the_batches_and_average_the_gradients(tmp_path):
    for run in ("straight", "resumed"):
        (tmp_path / run).mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    result = subprocess.run(
        [sys.executable, "-W", "error", script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = [json.loads((tmp_path / f"batches.{rank}.json").read_text()) for rank in (0, 1)]
    straight, resumed = (
        load_model(tmp_path / run / "model.safetensors", dtype="float32").network.state_dict()
        for run in ("straight", "resumed")
    )
    network, batches = train_by_hand()
    assert [found["straight"] for found in seen] == [batches[0::2], batches[1::2]]
    # After two steps of two processes, the fifth batch is next.
    assert [found["resumed"] for found in seen] == [batches[4::2], batches[5::2]]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(straight[name], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(resumed[name], straight[name])
