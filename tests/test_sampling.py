"""Trajectories from ATMOS models: random numbers, symmetry, cost, files, restarts, options."""

import gc
import json
import signal
from dataclasses import asdict, replace

import ase.io
import numpy as np
import pytest
import torch
from another_process import PROCESSES
from atmos_systems import FINE_STEPS, STRIDE_PS, draw, small_network, write_model
from scipy.spatial.transform import Rotation
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.cli import app
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.errors import (
    ConfigError,
    InputError,
    ModelFileError,
    PredictionError,
    RefusedFramesError,
)
from mlmd_calc.geometry.superposition import align
from mlmd_calc.io.restart import read_restart, write_restart
from mlmd_calc.models import recorder
from mlmd_calc.models.atmos import SamplerConfig
from mlmd_calc.models.atmos.interpolator import interpolator_from
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.sampling import (
    FORMATS,
    SamplingJob,
    SamplingRun,
    Trajectories,
    TrajectoryFile,
    quality,
)
from mlmd_calc.sampling.quality import FAULTS, FrameFaults, FrameGuard
from mlmd_calc.sampling.rollouts import SamplerOptions
from mlmd_calc.sampling.trajectory_file import topology_of, write_start
from mlmd_calc.zoo import load_atmos

mdtraj = pytest.importorskip("mdtraj", reason="mdtraj is not installed")
pytest.importorskip("rdkit", reason="rdkit is not installed")

from peptide_structures import without, write_dipeptide  # noqa: E402
from sampling_child import run_until_killed  # noqa: E402


@pytest.fixture(scope="module")
def system(dipeptide):
    return build_system(dipeptide)


@pytest.fixture(scope="module")
def rollout(system):
    return Rollout(small_network(), system.features)


@pytest.fixture(scope="module")
def interpolator(system):
    return Rollout(small_network(1, max_remaining=FINE_STEPS), system.features)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "model": str(write_model(folder / "key.safetensors")),
        "interpolator": str(write_model(folder / "fine.safetensors", max_remaining=FINE_STEPS)),
    }


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + index) for index in range(count)]


def superposed(frames, onto):
    """Frames ``(f, a, 3)`` each superposed on its partner."""
    frames, onto = torch.from_numpy(frames), torch.from_numpy(onto)
    return align(frames, onto, torch.ones(frames.shape[:2], dtype=frames.dtype)).numpy()


def test_a_step_is_that_of_the_network(system, rollout):
    start = torch.from_numpy(system.reference)[None]
    memory, drawn = rollout.step(rollout.start(1), start, generators(1))
    network, features = rollout.network, type(system.features).stack([system.features])
    with torch.no_grad():
        context = network.context(features)
        own = network.step(network.initial_memory(context), start, features, context)
        expected = draw(network, own, features, context, generators(1)[0])[:, 0]
    torch.testing.assert_close(memory.z, own.z, rtol=0, atol=0)
    np.testing.assert_allclose(drawn, superposed(expected.numpy(), start.numpy()), atol=1e-12)


def test_trajectories_together_are_those_one_by_one(system, rollout):
    together = Trajectories(rollout, system.reference, 3, seed=5)
    frames = together.advance(3)
    first = Trajectories(rollout, system.reference, 1, seed=5).advance(3)
    np.testing.assert_allclose(frames[:1], first, atol=1e-9)
    assert np.abs(frames[0] - frames[1]).max() > 0.1
    start = torch.from_numpy(system.reference)[None]
    _, joint = rollout.step(rollout.start(3), start.repeat(3, 1, 1), generators(3))
    for index in range(3):
        _, single = rollout.step(rollout.start(1), start, generators(1, seed=index))
        torch.testing.assert_close(joint[index : index + 1], single, rtol=0, atol=1e-9)


def test_intervals_together_are_those_one_by_one(system, rollout, interpolator):
    def make():
        return Trajectories(rollout, system.reference, 2, 3, interpolator=interpolator)

    one_by_one = make()
    single = np.concatenate([one_by_one.advance(1) for _ in range(3)], axis=1)
    frames = make().advance(3)
    assert frames.shape == (2, 3 * FINE_STEPS, len(system.atoms), 3)
    np.testing.assert_allclose(frames, single, atol=1e-8)
    before = np.concatenate([np.stack([system.reference] * 2)[:, None], frames[:, :-1]], axis=1)
    for trajectory, previous in zip(frames, before, strict=True):
        np.testing.assert_allclose(trajectory, superposed(trajectory, previous), atol=1e-8)


def test_interpolator_ends_where_the_keyframes_are(system, rollout, interpolator):
    plain = Trajectories(rollout, system.reference, 1, 3).advance(1)
    filled = Trajectories(rollout, system.reference, 1, 3, interpolator=interpolator).advance(1)
    last = filled[0, -1:]
    np.testing.assert_allclose(superposed(last, plain[0]), plain[0], atol=1e-9)
    assert np.abs(np.diff(filled[0], axis=0)).min(axis=0).max() > 0.01


@pytest.mark.parametrize("bilevel", [False, True])
def test_a_turned_start_turns_the_trajectory(system, rollout, interpolator, bilevel):
    turn, shift = Rotation.random(random_state=4).as_matrix(), np.array([3.0, -8.0, 20.0])
    options = {"interpolator": interpolator if bilevel else None}
    straight = Trajectories(rollout, system.reference, 2, 1, **options).advance(3)
    turned = Trajectories(rollout, system.reference @ turn + shift, 2, 1, **options).advance(3)
    np.testing.assert_allclose(turned, straight @ turn + shift, atol=1e-7)


def test_an_interpolator_begins_as_the_keyframe_network_it_is_made_from(system, rollout):
    fine = Rollout(interpolator_from(rollout.network, 9), system.features)
    assert fine.network.config.max_steps == 8
    start = torch.from_numpy(system.reference).repeat(2, 1, 1)
    memory, positions = rollout.start(2), start
    drawn, whole = generators(2), []
    # The keyframe network begins anew after six frames.
    for _ in range(6):
        memory, positions = rollout.step(memory, positions, drawn)
        whole.append(positions)
    filled = list(fine.fill(start, torch.randn_like(start), generators(2)))
    assert len(filled) == 8
    torch.testing.assert_close(torch.stack(filled[:6]), torch.stack(whole), rtol=0, atol=1e-9)
    with pytest.raises(ConfigError, match="an interpolator already, of max_remaining=9"):
        interpolator_from(fine.network, 9)
    with pytest.raises(ConfigError, match="max_remaining=1; an interval has at least 2 steps"):
        interpolator_from(rollout.network, 1)


@pytest.mark.parametrize("count", [1, 3])
def test_recorded_draws_are_the_same(system, rollout, count, monkeypatch):
    """The denoiser is recorded in the course of the first frame."""
    start = torch.from_numpy(system.reference).expand(count, -1, -1)
    found = []
    for calls_before_recording in (10**9, 5):
        monkeypatch.setattr(recorder, "RECORD_AFTER", calls_before_recording)
        fresh = Rollout(rollout.network, system.features, sampler=SamplerConfig(steps=10))
        sources, memory, positions = generators(count), fresh.start(count), start
        for _ in range(3):
            memory, positions = fresh.step(memory, positions, sources)
        found.append((positions, *memory))
        assert len(fresh._denoise._by_shapes.recordings) == (calls_before_recording < 10**9)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_memory_and_cost_do_not_grow(system, rollout):
    rollout = Rollout(rollout.network, system.features, sampler=SamplerConfig(steps=1))
    trajectories = Trajectories(rollout, system.reference, 1, 0)

    def tensors():
        gc.collect()
        found = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        # Recordings leave a tensor without a type, which has no size.
        return sum(x.nbytes for x in found if x.numel())

    def cost():
        with FlopCounterMode(display=False) as counter:
            trajectories.advance(1)
        return counter.get_total_flops()

    trajectories.advance(recorder.RECORD_AFTER + 5)
    bytes_before, cost_before = tensors(), cost()
    for _ in range(200):
        trajectories.advance(1)
    assert (tensors(), cost()) == (bytes_before, cost_before)


def test_memory_begins_anew_after_a_window(system, rollout):
    memory, positions = rollout.start(2), torch.from_numpy(system.reference).repeat(2, 1, 1)
    steps = []
    for _ in range(8):
        memory, positions = rollout.step(memory, positions, generators(2))
        steps.append(memory.step.tolist())
    assert steps == [[n, n] for n in (1, 2, 3, 4, 5, 6, 1, 2)]
    fresh, _ = rollout.step(rollout.start(2), positions, generators(2))
    memory = memory._replace(step=torch.tensor([6, 2]))
    mixed, _ = rollout.step(memory, positions, generators(2))
    torch.testing.assert_close(mixed.s[0], fresh.s[0], rtol=0, atol=1e-12)
    assert (mixed.s[1] - fresh.s[1]).abs().max() > 1e-3


def test_lag_is_told_and_needed(system):
    network = small_network(tau="lag")
    with pytest.raises(InputError, match="give lag_ps"):
        Rollout(network, system.features)
    start = torch.from_numpy(system.reference)[None]
    near, far = (
        rollout.step(rollout.start(1), start, generators(1))[1]
        for rollout in (Rollout(network, system.features, lag_ps=lag) for lag in (1.0, 100.0))
    )
    assert (near - far).abs().max() > 1e-3


def left_first(frames):
    """Accept frames whose first atom lies left of the second."""
    return frames[:, 0, 0] < frames[:, 1, 0]


def test_refused_frames_are_drawn_again(system, rollout):
    positions = torch.from_numpy(system.reference).repeat(8, 1, 1)
    rows = list(range(8))

    def drawn(rows, **options):
        chosen = Rollout(rollout.network, system.features, **options)
        own = [generators(8)[row] for row in rows]
        return chosen.step(chosen.start(len(rows)), positions[rows], own)[1]

    seen = []

    def accept(frames):
        # Frames come in the pose in which they were drawn, in which left and right are a matter
        # of chance.
        seen.append(left_first(frames))
        return seen[-1]

    once = drawn(rows)
    again = drawn(rows, accept=accept, redraws=20)
    refused = (~seen[0]).tolist()
    assert 0 < sum(refused) < 8
    assert [len(judged) for judged in seen[1:]] == [int((~judged).sum()) for judged in seen[:-1]]
    assert seen[-1].all()
    changed = [bool((one != two).any()) for one, two in zip(once, again, strict=True)]
    assert changed == refused
    # Those of one trajectory do not depend on the others.
    alone = torch.cat([drawn([row], accept=left_first, redraws=20) for row in rows])
    torch.testing.assert_close(alone, again, rtol=0, atol=1e-9)


def test_frames_are_settled_before_they_are_judged(system, rollout):
    start = torch.from_numpy(system.reference)[None]
    seen = []

    def accept(frames):
        seen.append(frames)
        return torch.ones(len(frames), dtype=torch.bool)

    def distances(settle):
        chosen = Rollout(rollout.network, system.features, settle=settle, accept=accept, redraws=1)
        frame = chosen.step(chosen.start(1), start, generators(1))[1][0]
        torch.testing.assert_close(torch.pdist(seen[-1][0]), torch.pdist(frame), rtol=0, atol=1e-9)
        return torch.cdist(frame, frame)

    backwards = distances(lambda frames: frames.flip(1))
    torch.testing.assert_close(backwards.flip(0, 1), distances(None), rtol=0, atol=1e-9)


def test_a_frame_that_is_always_refused_ends_the_trajectory(system, rollout):
    calls = []

    def never(frames):
        calls.append(len(frames))
        return torch.zeros(len(frames), dtype=torch.bool)

    stubborn = Rollout(rollout.network, system.features, accept=never, redraws=3)
    start = torch.from_numpy(system.reference)[None]
    with pytest.raises(RefusedFramesError, match="drawn 4 times, and refused every time"):
        stubborn.step(stubborn.start(1), start, generators(1))
    assert calls == [1, 1, 1, 1]
    tolerant = Rollout(rollout.network, system.features, accept=never, redraws=0)
    assert tolerant.step(tolerant.start(1), start, generators(1))[1].isfinite().all()
    assert calls == [1, 1, 1, 1]


def test_guard_refuses_what_no_simulation_visits(dipeptide, system):
    good = system.reference
    names = ["CH3", "C1", "O1", "N1", "CA", "C2", "O2", "CB", "N2", "C3"]
    place = {name: index for index, name in enumerate(names)}

    def turned(atoms, axis, degrees):
        """Turn atoms about a line through the first two atoms of the axis."""
        first, second = (good[place[name]] for name in axis)
        vector = np.radians(degrees) * (second - first) / np.linalg.norm(second - first)
        moved, index = good.copy(), [place[name] for name in atoms]
        moved[index] = Rotation.from_rotvec(vector).apply(good[index] - first) + first
        return moved

    def stretched(atom, parent, length):
        moved = good.copy()
        away = good[place[atom]] - good[place[parent]]
        moved[place[atom]] += length * away / np.linalg.norm(away)
        return moved

    clashing = good.copy()
    clashing[place["O1"]] = good[place["C3"]] + [1.0, 0.0, 0.0]
    bent = good.copy()
    normal = np.cross(good[place["O1"]] - good[place["C1"]], good[place["N1"]] - good[place["C1"]])
    bend = Rotation.from_rotvec(np.radians(30.0) * normal / np.linalg.norm(normal))
    arm = good[place["O1"]] - good[place["C1"]]
    bent[place["O1"]] = good[place["C1"]] + bend.apply(arm)
    frames = {
        "": good,
        "turned": turned(["O2", "N2", "C3"], ("CA", "C2"), 20.0),
        "slightly stretched": stretched("CH3", "C1", 0.15),
        "flipped": good * [1.0, 1.0, -1.0],
        "bonds": stretched("CH3", "C1", 0.25),
        "angles": bent,
        "isomerised": turned(["C3"], ("C2", "N2"), 180.0),
        "contacts": clashing,
    }
    found = FrameFaults(system, dipeptide)(np.stack(list(frames.values())))
    sound = ["", "turned", "slightly stretched"]
    for index, label in enumerate(frames):
        faults = [name for name in FAULTS if found[name][index]]
        assert faults == [] if label in sound else label in faults, (label, faults)
    guard = FrameGuard(system, dipeptide)
    accepted = guard(torch.from_numpy(np.stack(list(frames.values()))))
    assert accepted.tolist() == [True] * 3 + [False] * 5
    assert guard.refused == 5
    assert guard.faults["flipped"] == 1


def test_hydrogens_are_guarded(dipeptide, system):
    """The methyl groups of both ends are folded onto each other: heavy atoms alone are apart."""
    bare = without(dipeptide, np.flatnonzero(dipeptide.numbers == 1).tolist())
    frame = system.reference.copy()
    first, last = 0, len(frame) - 1
    frame[last] = frame[first] + 2.5 * np.array([0.0, 0.0, 1.0])
    for structure, expected in ((dipeptide, True), (bare, False)):
        faults = FrameFaults(build_system(structure), structure)
        assert faults(frame[None])["contacts"].tolist() == [expected]


def test_dynamics_passes_the_guard(dipeptide, system):
    """Small vibrations of all atoms, of the size that they have at 300 K."""
    noise = np.random.default_rng(0).normal(0.0, 0.03, (200, *system.reference.shape))
    assert FrameGuard(system, dipeptide)(torch.from_numpy(system.reference + noise)).all()


def test_a_frame_that_is_not_finite_is_refused(system):
    network = small_network()
    network.diffusion_module.atom_attention_decoder.linear_no_bias_out.weight.data[:] = torch.nan
    rollout = Rollout(network, system.features)
    with pytest.raises(PredictionError, match="not finite"):
        Trajectories(rollout, system.reference, 1, 0).advance(1)


def test_networks_in_each_others_place(system, rollout, interpolator):
    with pytest.raises(ConfigError, match="needs keyframes to go between"):
        Trajectories(interpolator, system.reference, 1, 0)
    with pytest.raises(ConfigError, match="is not an interpolator"):
        Trajectories(rollout, system.reference, 1, 0, interpolator=rollout)
    with pytest.raises(ConfigError, match="count=0"):
        Trajectories(rollout, system.reference, 0, 0)
    start = torch.from_numpy(system.reference)[None]
    with pytest.raises(InputError, match="cannot fill intervals"):
        next(rollout.fill(start, start, generators(1)))


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_grow_and_are_cut_back(dipeptide, tmp_path, suffix):
    atoms = np.arange(len(dipeptide))
    frames = dipeptide.positions + np.random.default_rng(0).normal(size=(5, len(atoms), 3))
    topology = topology_of(dipeptide, atoms)
    whole = TrajectoryFile(tmp_path / f"whole.{suffix}", topology, 0.5)
    whole.append(frames, 0)
    grown = TrajectoryFile(tmp_path / f"grown.{suffix}", topology, 0.5)
    grown.append(frames[:2], 0)
    size = grown.size
    grown.append(frames[[4, 4]], 2)
    grown.cut(size)
    grown.append(frames[2:], 2)
    assert grown.path.read_bytes() == whole.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [grown.path.name, whole.path.name]
    )
    if suffix == "extxyz":
        read = ase.io.read(grown.path, ":")
        found = np.array([image.positions for image in read])
        assert [image.info["time_ps"] for image in read] == [0.0, 0.5, 1.0, 1.5, 2.0]
        np.testing.assert_array_equal(read[0].numbers, dipeptide.numbers)
    else:
        write_start(tmp_path / "start.pdb", topology, topology.positions)
        arguments = {} if suffix == "pdb" else {"top": str(tmp_path / "start.pdb")}
        read = mdtraj.load(str(grown.path), **arguments)
        found = 10.0 * read.xyz
    if suffix == "xtc":
        np.testing.assert_allclose(read.time, [0.0, 0.5, 1.0, 1.5, 2.0])
    if suffix == "pdb":
        assert [atom.name for atom in read.top.atoms] == list(dipeptide.names)
    np.testing.assert_allclose(found, frames, atol=0.0051 if suffix == "xtc" else 0.00051)
    grown.cut(0)
    with pytest.raises(ModelFileError, match="has 0 bytes, but the run"):
        grown.cut(1)


def test_dcd_tells_the_time_step(dipeptide, tmp_path):
    file = TrajectoryFile(tmp_path / "x.dcd", topology_of(dipeptide, np.arange(22)), 0.5)
    file.append(dipeptide.positions[None], 0)
    interval = np.frombuffer(file.path.read_bytes(), "<f4", count=1, offset=44)[0]
    # The time of √(amu Å² / (kcal/mol)) in fs.
    assert 48.88821 * interval == pytest.approx(500.0, rel=1e-5)


def test_unknown_format():
    with pytest.raises(ConfigError, match="'trr'; choose one of xtc, dcd, extxyz, pdb"):
        SamplingJob("x", "y", format="trr")


def test_negative_redraws():
    with pytest.raises(ConfigError, match="redraws=-1; it must be at least 0"):
        SamplingJob("x", "y", redraws=-1)


def start(folder, structure, models, **options):
    job = SamplingJob(
        "dipeptide",
        **{**models, "frames": 6 * FINE_STEPS, "replicas": 2, "seed": 4, "redraws": 0, **options},
    )
    return SamplingRun.start(folder, replace(job, keyframes_per_checkpoint=2), structure)


@pytest.mark.slow
def test_killed_run_goes_on_bit_for_bit(dipeptide, models, tmp_path):
    # A DCD file counts its frames, so a wrong count would show as well.
    options = {"format": "dcd"}
    whole = start(tmp_path / "whole", dipeptide, models, **options)
    assert whole.run()
    killed = start(tmp_path / "killed", dipeptide, models, **options)
    killed.close()
    child = PROCESSES.Process(target=run_until_killed, args=(killed.folder, 2 * FINE_STEPS))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()
    resumed = SamplingRun.resume(killed.folder)
    assert resumed.frame == 2 * FINE_STEPS
    assert resumed.run()
    assert resumed.summary()["quality"] == whole.summary()["quality"]
    for path, expected in zip(resumed.paths, whole.paths, strict=True):
        assert path.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_refused_draws_are_counted_across_restarts(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "ANGLE_LIMIT", 9.0)  # of which a good model exceeds some
    models, options = {"model": "atmos-peptides"}, {"replicas": 1, "redraws": 40, "steps": 20}
    alanine = capped_peptide("A", 1)
    whole = start(tmp_path / "whole", alanine, models, frames=6, **options)
    whole.run()
    short = start(tmp_path / "short", alanine, models, frames=4, **options)
    short.run()
    short.close()
    longer = SamplingRun.resume(short.folder, frames=6)
    longer.run()
    for name in ("refused", "faults", "quality"):
        assert longer.summary()[name] == whole.summary()[name]
    assert whole.summary()["refused"] > 0
    assert whole.quality.unsound == 0
    assert longer.paths[0].read_bytes() == whole.paths[0].read_bytes()


def test_molecules_beyond_the_training_are_refused_before_the_first_draw(tmp_path):
    job = SamplingJob("x", "atmos-peptides", frames=1, redraws=2, seed=1)
    for structure, reason in (
        (structure_from_smiles("CCO"), "MOL 1 of chain 1 is not an amino acid"),
        (capped_peptide("AAAAAA", 0), "has 6 amino acids; known are 1 to 5"),
    ):
        with pytest.raises(InputError, match=f"beyond the training.*{reason}.*--beyond-training"):
            SamplingRun.start(tmp_path / "run", job, structure)
        assert not (tmp_path / "run").exists()
    ethanol = structure_from_smiles("CCO")
    run = SamplingRun.start(tmp_path / "run", replace(job, beyond_training=True), ethanol)
    assert any("is not an amino acid" in note for note in run.notes)


def test_longer_run_goes_on(dipeptide, models, tmp_path):
    models = {**models, "interpolator": None}
    whole = start(tmp_path / "whole", dipeptide, models, frames=5, format="extxyz")
    whole.run()
    short = start(tmp_path / "short", dipeptide, models, frames=3, format="extxyz")
    assert not short.run(should_stop=lambda: short.frame == 2)
    with pytest.raises(ConfigError, match="being written to by another"):
        SamplingRun.resume(short.folder)
    short.close()
    longer = SamplingRun.resume(short.folder, frames=5)
    assert longer.run()
    longer.close()
    assert longer.paths[0].read_bytes() == whole.paths[0].read_bytes()
    with pytest.raises(ConfigError, match="frames=4, but the run has 5 already"):
        SamplingRun.resume(short.folder, frames=4)


def test_water_stays_out_and_hydrogens_on_wish(tmp_path, models):
    structure = read_structure(write_dipeptide(tmp_path / "complex.pdb", complexed=True))
    models = {**models, "interpolator": None}
    for hydrogens, count in ((True, 22 + 2 * 9), (False, 10 + 2 * 3)):
        folder = tmp_path / str(hydrogens)
        run = start(folder, structure, models, hydrogens=hydrogens, frames=2, format="pdb")
        run.run()
        read = mdtraj.load(str(run.paths[0]))
        assert (read.n_frames, read.n_atoms) == (3, count)
        kept = [i for i in range(40) if hydrogens or structure.numbers[i] > 1]
        assert [atom.element.atomic_number for atom in read.top.atoms] == list(
            structure.numbers[kept]
        )
        np.testing.assert_allclose(10 * read.xyz[0], structure.positions[kept], atol=1e-3)
        assert mdtraj.load(str(folder / "start.pdb")).n_atoms == count
    assert "Left out: 1 HOH." in run.notes
    bonds = 10 * np.linalg.norm(
        mdtraj.load(str(tmp_path / "True" / "trajectory-1.pdb")).xyz[:, [0, 0, 8]]
        - mdtraj.load(str(tmp_path / "True" / "trajectory-1.pdb")).xyz[:, [1, 2, 9]],
        axis=-1,
    )
    np.testing.assert_allclose(bonds, np.broadcast_to(bonds[0], bonds.shape), atol=3e-3)


def test_models_that_do_not_fit(dipeptide, models, tmp_path):
    with pytest.raises(ConfigError, match=r"frames=6 is not a multiple of 4.*choose 4 or 8"):
        start(tmp_path / "a", dipeptide, models, frames=6)
    with pytest.raises(ConfigError, match=r"frames=3 is not a multiple of 4.*choose 4$"):
        start(tmp_path / "a", dipeptide, models, frames=3)
    other = write_model(
        tmp_path / "other.safetensors", max_remaining=FINE_STEPS, card={"strides_ps": [1.0]}
    )
    with pytest.raises(ConfigError, match=r"stride of 1 ps, but.*its steps would be 2.5 ps"):
        start(tmp_path / "a", dipeptide, {**models, "interpolator": str(other)})
    foreign = write_model(tmp_path / "foreign.safetensors", card={"elements": [6, 8]})
    with pytest.raises(InputError, match="does not know N; it was trained on C, O"):
        start(tmp_path / "a", dipeptide, {"model": str(foreign)})
    several = write_model(
        tmp_path / "several.safetensors", tau="lag", card={"strides_ps": [1.0, 5.0]}
    )
    with pytest.raises(ConfigError, match="strides of 1, 5 ps; choose one"):
        start(tmp_path / "a", dipeptide, {"model": str(several)})
    with pytest.raises(ConfigError, match="stride of 2 ps"):
        start(tmp_path / "a", dipeptide, {"model": str(several)}, stride_ps=2.0)
    assert start(tmp_path / "b", dipeptide, {"model": str(several)}, stride_ps=5.0).interval_ps == 5
    quiet = write_model(tmp_path / "quiet.safetensors", sampler={"steps": 2, "gamma_0": 0.0})
    with pytest.raises(ConfigError, match="adds no noise"):
        start(tmp_path / "a", dipeptide, {"model": str(quiet)}, sampler="sde")


def test_sampler_and_steps_change_the_frames(dipeptide, models, tmp_path):
    models = {"model": models["model"]}
    found = []
    for index, options in enumerate(
        [{}, {"sampler": "ode"}, {"steps": 3}, {"noise_scale": 1.5}, {"step_scale": 1.1}]
    ):
        run = start(tmp_path / str(index), dipeptide, models, frames=1, format="dcd", **options)
        run.run()
        found.append(run.paths[0].read_bytes())
    assert len(set(found)) == 5


@pytest.mark.parametrize(("length", "scale", "step"), [("2", 1.003, 1.5), ("1", 1.4, 1.1)])
def test_sampler_is_what_the_card_recommends_for_the_length(
    dipeptide, system, tmp_path, length, scale, step
):
    """The system has one amino acid; what is recommended from two on is not for it."""
    assert len(system.alpha_carbons) == 1
    one = {"noise_scale": 1.4, "step_scale": 1.1}
    card = {"recommended": {"sampler_by_length": {length: one, "7": {"noise_scale": 2.0}}}}
    model = load_atmos(str(write_model(tmp_path / "m.safetensors", card=card)), device="cpu")
    recommended = SamplerOptions().of(model, system)
    assert (recommended.noise_scale, recommended.step_scale) == (scale, step)
    changed = SamplerOptions(noise_scale=1.2).of(model, system)
    assert (changed.noise_scale, changed.step_scale) == (1.2, step)
    own = model.network.config.sampler
    assert model.sampler(9) == replace(own, noise_scale=2.0)
    frames = []
    same = {"noise_scale": scale, "step_scale": step}
    for index, options in enumerate([{}, same, {**same, "noise_scale": scale + 0.1}]):
        place = tmp_path / str(index)
        run = start(place, dipeptide, {"model": model.source}, frames=1, format="dcd", **options)
        run.run()
        frames.append(run.paths[0].read_bytes())
    assert frames[0] == frames[1] != frames[2]


def test_changed_model_is_refused(dipeptide, tmp_path):
    path = write_model(tmp_path / "key.safetensors")
    run = start(tmp_path / "run", dipeptide, {"model": str(path)}, frames=1)
    run.close()
    write_model(path, seed=1)
    with pytest.raises(ModelFileError, match="bring back the original models"):
        SamplingRun.resume(run.folder)
    with pytest.raises(ConfigError, match="holds a run already"):
        start(tmp_path / "run", dipeptide, {"model": str(path)})
    with pytest.raises(ConfigError, match="holds no run to continue"):
        SamplingRun.resume(tmp_path)


@pytest.mark.slow
def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    options = ["--model", "atmos-peptides", "--seed", "3", "-n", "2", "-b", "2", "-f", "extxyz"]
    options += ["--redraws", "9", "--noise-scale", "1.1", "--step-scale", "1.1"]
    done = runner.invoke(app, ["sample", "sequence:A", *options, "-o", "run", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["verdict"], summary["frame"]) == ("completed", 2)
    assert summary["ended_early"] is None
    assert (summary["quality"]["frames"], summary["quality"]["unsound"]) == (4, 0)
    job = summary["job"]
    assert (job["redraws"], job["noise_scale"], job["step_scale"]) == (9, 1.1, 1.1)
    assert summary["interval_ps"] == STRIDE_PS
    assert len(ase.io.read(tmp_path / summary["trajectories"][1], ":")) == 3
    done = runner.invoke(app, ["sample", "--restart", "-o", "run", "-n", "4"])
    assert done.exit_code == 0, done.output
    assert "2 × 4 frames" in done.stdout
    assert len(ase.io.read(tmp_path / "run" / "trajectory-0.extxyz", ":")) == 5


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Topology and trajectory of Ace-SK-Nme."""
    folder, job = tmp_path_factory.mktemp("sampled"), SamplingJob("x", "atmos-peptides", frames=2)
    run = SamplingRun.start(folder, job, capped_peptide("SK", 0))
    run.run()
    run.close()
    return str(folder / "start.pdb"), str(run.paths[0])


def test_bonds_in_mdtraj(sampled):
    topology, trajectory = sampled
    read = mdtraj.load(trajectory, top=topology)
    pairs = np.array([[first.index, second.index] for first, second in read.top.bonds])
    structure = capped_peptide("SK", 0)
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == {
        tuple(sorted(pair)) for pair in structure.bonds.tolist()
    }
    assert 10.0 * mdtraj.compute_distances(read, pairs).max() < 2.0


def test_names_in_mdanalysis(sampled):
    universe = pytest.importorskip("MDAnalysis", reason="not installed").Universe(*sampled)
    assert len(universe.select_atoms("name H")) == 3


def test_command_with_poor_frames(models, tmp_path, monkeypatch):
    """A network that was never trained draws nothing sound."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    options = ["--model", models["model"], "--seed", "3", "-n", "2", "-f", "extxyz", "--json"]
    kept = runner.invoke(app, ["sample", "sequence:A", *options, "-o", "kept", "--redraws", "0"])
    refused = runner.invoke(app, ["sample", "sequence:A", *options, "-o", "no", "--redraws", "2"])
    assert (kept.exit_code, refused.exit_code) == (1, 1)
    kept, refused = (json.loads(done.stdout) for done in (kept, refused))
    assert kept["verdict"] == refused["verdict"] == "poor"
    assert (kept["frame"], kept["quality"]["unsound"], kept["ended_early"]) == (2, 2, None)
    assert (refused["frame"], refused["refused"]) == (0, 3)
    assert "drawn 3 times" in refused["ended_early"]
    assert "does not tell which molecules it was trained on" in " ".join(kept["notes"])
    # Only the start is in the file.
    assert len(ase.io.read(tmp_path / "no" / "trajectory-0.extxyz", ":")) == 1
    options += ["--no-hydrogens", "-o", "amide", "--redraws", "0"]
    runner.invoke(app, ["sample", "smiles:CC(=O)N", *options])
    assert len(ase.io.read(tmp_path / "amide" / "trajectory-0.extxyz")) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no start given; name a structure file"),
        (["smiles:C"], "beyond the training of model 'atmos-peptides'"),
        (["AG"], "or a peptide as sequence:AG"),
        (["no.pdb", "--model", "M"], "there is no file 'no.pdb'; give a PDB"),
        (["smiles:C", "--model", "M", "--ligand", "LIG"], "write it as NAME=SMILES"),
        (["smiles:C", "--model", "M", "--sampler", "euler"], "choose one of sde, ode"),
        (["smiles:C", "--model", "M", "--sampler", "ode", "--noise-scale", "2"], "adds no noise"),
        (["smiles:C", "--model", "M", "--noise-scale", "-1"], "noise_scale=-1.0; it must not be"),
        (
            ["smiles:C", "--model", "M", "--step-scale", "0"],
            "step_scale=0.0; it must be a positive",
        ),
        (["smiles:C", "--model", "atmos-peptides"], "is not an amino acid, and the model knows"),
        (["smiles:C", "--model", "M", "-n", "0"], "frames=0; it must be at least 1"),
        (["smiles:C", "--model", "M", "-b", "99999999999999999999"], "from 1 to 65,536"),
        (["--restart", "--seed", "1"], "--seed cannot be given with --restart"),
        (["smiles:C", "--restart"], "INPUT cannot be given with --restart"),
    ],
)
def test_command_refuses(arguments, sentence, models, tmp_path):
    arguments = [models["model"] if text == "M" else text for text in arguments]
    done = CliRunner().invoke(app, ["sample", *arguments, "-o", str(tmp_path / "run")])
    assert sentence in str(done.exception)


@pytest.mark.parametrize("command", ["sample", "interpolate", "run", "audit"])
def test_seeds_are_not_negative(command, tmp_path):
    words = {"interpolate": ["x", "y"]}.get(command, ["x"])
    done = CliRunner().invoke(app, [command, *words, "--seed", "-1"])
    assert done.exit_code == 2
    assert "--seed" in done.stderr


def test_runs_of_earlier_versions_are_refused(dipeptide, models, tmp_path):
    start(tmp_path, dipeptide, models).close()
    stored = read_restart(tmp_path / "restart.npz")
    del stored["guard"]
    write_restart(tmp_path / "restart.npz", stored)
    with pytest.raises(ModelFileError, match="started by an earlier version"):
        SamplingRun.resume(tmp_path)


def test_runs_from_before_steering_go_on_without(dipeptide, models, tmp_path):
    models = {**models, "interpolator": None}
    whole = start(tmp_path / "whole", dipeptide, models, frames=3, steer=False, steps=20)
    whole.run()
    short = start(tmp_path / "short", dipeptide, models, frames=1, steer=False, steps=20)
    short.run()
    short.close()
    stored = read_restart(short.folder / "restart.npz")
    del stored["job"]["steer"]
    write_restart(short.folder / "restart.npz", stored)
    for frames in (2, 3):
        longer = SamplingRun.resume(short.folder, frames=frames)
        longer.run()
        longer.close()
    assert longer.paths[0].read_bytes() == whole.paths[0].read_bytes()


def test_a_steered_run_is_another_run(dipeptide, models, tmp_path):
    models = {**models, "interpolator": None}
    drawn = []
    for name, steer in (("steered", True), ("not", False)):
        run = start(tmp_path / name, dipeptide, models, frames=1, redraws=0, steer=steer, steps=20)
        run.run()
        run.close()
        drawn.append((run.paths[0].read_bytes(), json.loads((run.folder / "run.json").read_text())))
    (steered, known), (plain, unknown) = drawn
    assert steered != plain
    assert known["steer"]
    assert "steer" not in unknown


def test_a_job_is_stored_as_it_was_given(dipeptide, models, tmp_path):
    run = start(tmp_path, dipeptide, models, ligands={})
    run.close()
    assert asdict(SamplingRun.resume(tmp_path).job) == asdict(run.job)
