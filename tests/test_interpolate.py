"""Trajectories between two given structures."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from peptide_structures import permuted
from typer.testing import CliRunner

from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.biomolecules.pdb import format_structure
from mlmd_calc.cli import app
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.sampling.between import draw_between
from mlmd_calc.sampling.rollouts import SamplerOptions
from mlmd_calc.zoo import load_atmos

pytest.importorskip("mdtraj", reason="mdtraj writes the frames")
pytest.importorskip("rdkit", reason="rdkit builds the peptides")

FIRST, LAST = capped_peptide("A", 0), capped_peptide("A", 1)


@pytest.fixture(scope="module")
def model():
    return load_atmos("atmos-peptides-interpolator", device="cpu", dtype="float32")


def draw(model, first=FIRST, last=LAST, **options):
    defaults = {"count": 2, "seed": 3, "redraws": 0, "sampler": SamplerOptions(steps=4)}
    return draw_between(model, first, last, **{**defaults, **options})


def distances(positions):
    return np.linalg.norm(positions[..., :, None, :] - positions[..., None, :, :], axis=-1)


def test_ends_are_as_given(model):
    drawn = draw(model)
    assert drawn.frames.shape == (2, model.network.config.max_remaining + 1, len(FIRST), 3)
    assert drawn.interval_ps == 1.0
    np.testing.assert_allclose(drawn.frames[:, 0], [FIRST.positions] * 2, atol=1e-9)
    heavy = FIRST.numbers > 1
    for own in drawn.frames[:, -1, heavy]:
        np.testing.assert_allclose(distances(own), distances(LAST.positions[heavy]), atol=1e-9)
    # Trajectories differ in between, and each has random numbers of its own.
    assert np.abs(drawn.frames[0, 5] - drawn.frames[1, 5]).max() > 0.01
    alone = draw(model, count=1)
    np.testing.assert_allclose(alone.frames[0], drawn.frames[0], atol=1e-3)
    moved = np.diff(drawn.frames[:, :, build_system(FIRST).atoms], axis=1)
    rmsd = np.sqrt(np.square(moved).sum(-1).mean(-1))
    np.testing.assert_allclose(drawn.steps, rmsd, atol=1e-9)


def test_order_numbers_and_pose_of_the_end_do_not_matter(model):
    order = np.random.default_rng(0).permutation(len(LAST))
    other = permuted(LAST, order)
    turned = replace(
        other,
        positions=other.positions[:, [1, 2, 0]] + 5.0,
        residue_numbers=other.residue_numbers + 7,
    )
    ours, theirs = (draw(model, last=last, count=1).steps for last in (LAST, turned))
    np.testing.assert_allclose(ours, theirs, atol=1e-2)


def test_equal_arms_of_the_end_may_have_other_names(model):
    first, last = (capped_peptide("V", seed) for seed in (0, 1))
    names = list(last.names)
    one, two = names.index("CG1"), names.index("CG2")
    positions = last.positions.copy()
    positions[[one, two]] = positions[[two, one]]
    ours, theirs = (
        draw(model, first=first, last=end, count=1).steps
        for end in (last, replace(last, positions=positions))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_ends_that_are_not_of_one_molecule_are_refused(model):
    with pytest.raises(InputError, match=r"differ in .* have ACE-ALA-NME and ACE-GLY-NME"):
        draw(model, last=capped_peptide("G", 0))
    mirrored = replace(LAST, positions=LAST.positions * [1.0, 1.0, -1.0])
    with pytest.raises(InputError, match="is a mirror image of the first"):
        draw(model, last=mirrored)
    keyframes = load_atmos("atmos-peptides", device="cpu", dtype="float32")
    with pytest.raises(ConfigError, match="'atmos-peptides' is not an interpolator"):
        draw(keyframes)
    with pytest.raises(ConfigError, match="count=0"):
        draw(model, count=0)


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, structure in (("first.pdb", FIRST), ("last.pdb", LAST)):
        (tmp_path / name).write_text(format_structure(structure))
    options = ["-b", "2", "--steps", "2", "--redraws", "0", "--seed", "1", "-f", "extxyz"]
    arguments = ["interpolate", "first.pdb", "last.pdb", *options, "-o", "out"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["frames"], summary["interval_ps"], summary["refused"]) == (11, 1.0, 0)
    # Drawn in two steps and kept as they are; the ends are not counted.
    assert summary["quality"]["frames"] == 18
    assert summary["quality"]["unsound"] > 0
    for path in summary["trajectories"]:
        frames = ase.io.read(path, ":")
        assert [frame.info["time_ps"] for frame in frames] == list(range(11))
        np.testing.assert_allclose(frames[0].positions, FIRST.positions, atol=1e-3)
    assert len(read_structure(tmp_path / "out" / "start.pdb")) == len(FIRST)
    again = CliRunner().invoke(app, arguments)
    assert "holds a run already" in str(again.exception)
