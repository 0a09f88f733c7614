"""Jumps in ASE: they behave as ASE's own dynamics, and go on after a SIGKILL."""

import io
import json
import signal

import ase.io
import numpy as np
import pytest
from analytic_potentials import HarmonicCalculator, Morse
from another_process import PROCESSES
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.constraints import FixAtoms, FixCom, FixSubsetCom, Hookean
from ase.io.trajectory import Trajectory
from ase.md.logger import MDLogger
from ase.md.verlet import VelocityVerlet
from jump_child import STEPS, run
from jump_systems import Noisy, Spoilt, nan, springs, springs_state, tethered

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.md import JumpNVE, JumpNVT
from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.propagation import Corrections, EnergyWindow, Guard, VerletPropagator, read_restart
from mlmd_calc.propagation.harmonic import HarmonicPropagator

FREE = {"corrections": Corrections.none(), "guard": Guard.off()}
"""For atoms in an external field."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Counting(HarmonicCalculator):
    """Counts its calculations."""

    count = 0

    def calculate(self, *arguments, **options):
        self.count += 1
        super().calculate(*arguments, **options)


def read_trajectory(path):
    with Trajectory(path) as frames:
        return list(frames)


def tethered_atoms(calculator=True):
    harmonic, start = tethered()
    atoms = start.to_atoms()
    if calculator:
        atoms.calc = Counting(harmonic)
    return harmonic, atoms


def nve(atoms, harmonic, **options):
    return JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(harmonic), **{**FREE, **options})


def test_the_same_path_as_velocity_verlet():
    def tetrahedron():
        corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
        atoms = Atoms("CNOF", 1.6 / np.sqrt(8) * corners)
        atoms.set_velocities(0.01 * np.random.default_rng(0).normal(size=(4, 3)))
        atoms.calc = Morse(depth=4.0, a=1.5, r0=1.5)
        return atoms

    expected, atoms = tetrahedron(), tetrahedron()
    VelocityVerlet(expected, 0.5 * units.FS).run(80)
    propagator = VerletPropagator(AttachedCalculator(tetrahedron()), 0.5)
    assert JumpNVE(atoms, 4 * units.FS, propagator).run(10)
    np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-10)
    np.testing.assert_allclose(atoms.get_momenta(), expected.get_momenta(), atol=1e-9)


def test_constant_energy():
    harmonic, start = springs(), springs_state()
    atoms = start.to_atoms()
    atoms.calc = HarmonicCalculator(harmonic)
    energy = atoms.get_total_energy()
    energies = []
    dyn = JumpNVE(atoms, 17 * units.FS, HarmonicPropagator(harmonic), guard=Guard.off())
    dyn.attach(lambda: energies.append(atoms.get_total_energy()))
    dyn.run(1000)
    assert len(energies) == 1001
    np.testing.assert_allclose(energies, energy, rtol=1e-10)


@pytest.mark.parametrize(
    "thermostat",
    [
        {"friction": 0.05 / units.FS},
        {"thermostat": "langevin", "friction": 0.05 / units.FS},
        {"thermostat": "bussi", "taut": 20 * units.FS},
    ],
)
def test_constant_temperature(thermostat):
    harmonic, atoms = tethered_atoms(calculator=False)
    temperatures = []
    dyn = JumpNVT(
        atoms,
        23 * units.FS,
        HarmonicPropagator(harmonic),
        temperature_K=500.0,
        rng=np.random.default_rng(3),
        **thermostat,
        **FREE,
    )
    dyn.attach(lambda: temperatures.append(atoms.get_temperature()))
    dyn.run(2000)
    # 12 degrees of freedom, about 1000 independent frames: 1.3 % are expected.
    assert np.mean(temperatures[50:]) == pytest.approx(500.0, rel=0.05)


def test_run_irun_observers_and_time():
    harmonic, atoms = tethered_atoms()
    dyn = nve(atoms, harmonic)
    called, others = [], []
    dyn.attach(lambda: called.append(dyn.nsteps), interval=2)
    dyn.attach(lambda word: others.append(word), -3, "third")
    assert dyn.run(0) is True
    assert dyn.run(3) is True
    assert [*dyn.irun(2)] == [False, False, True]
    assert dyn.nsteps == dyn.get_number_of_steps() == 5
    # The start is shown once, as run(0) of ASE shows it.
    assert called == [0, 0, 2, 4]
    assert others == ["third"]
    assert dyn.get_time() == pytest.approx(40 * units.FS)
    assert dyn.converged()


def test_no_force_is_evaluated_that_nobody_asked_for():
    harmonic, atoms = tethered_atoms()
    dyn = nve(atoms, harmonic, trajectory="run.traj", logfile="run.log")
    dyn.run(5)
    assert atoms.calc.count == 0
    # Hybrid: three steps take four evaluations, as nothing is known after a jump.
    harmonic, atoms = tethered_atoms()
    nve(atoms, harmonic, md_steps_per_jump=3).run(5)
    assert atoms.calc.count == 5 * 4
    harmonic, atoms = tethered_atoms()
    nve(atoms, harmonic, rescale_energy=True).run(5)
    assert atoms.calc.count == 6


def test_a_failed_jump_falls_back_on_the_attached_calculator():
    harmonic, atoms = tethered_atoms()
    spoilt = Spoilt(harmonic, lambda f, s: nan(f, s) if s.time == 16.0 else f)
    dyn = JumpNVE(atoms, 8 * units.FS, spoilt, corrections=Corrections.none(), guard=Guard(()))
    dyn.run(1)
    start = atoms.copy()
    start.calc = HarmonicCalculator(harmonic)
    dyn.run(2)
    assert dyn.events.counts()["fallback"] == 1
    # No energy has confirmed the end of the jump before, so that is taken back as well.
    assert atoms.calc.count == 33
    VelocityVerlet(start, 0.5 * units.FS).run(32)
    np.testing.assert_allclose(atoms.positions, start.positions, atol=1e-12)
    assert dyn.get_time() == pytest.approx(24 * units.FS)
    assert len(ase.io.read("offending_frames.extxyz", index=":")) == len(dyn.events)


def test_a_failing_calculator_ends_the_run():
    class Failing(HarmonicCalculator):
        def calculate(self, *arguments, **options):
            raise CalculationFailed("no convergence")

    harmonic, atoms = tethered_atoms()
    atoms.calc = Failing(harmonic)
    dyn = nve(atoms, harmonic, md_steps_per_jump=1)
    with pytest.raises(PredictionError, match="Failing: no convergence"):
        dyn.run(1)
    assert dyn.nsteps == 0


def test_raising_and_stopping():
    for last in ("raise", "stop"):
        harmonic, atoms = tethered_atoms(calculator=False)
        spoilt = Spoilt(harmonic, nan, lambda call, stride: call >= 2)
        guard = Guard(checks=(), last=last)
        dyn = JumpNVE(
            atoms,
            8 * units.FS,
            spoilt,
            guard=guard,
            corrections=Corrections.none(),
            trajectory="t.traj",
        )
        if last == "raise":
            with pytest.raises(PredictionError, match="not finite"):
                dyn.run(10)
        else:
            assert dyn.run(10) is False
            assert dyn.run(10) is False
            assert "not finite" in dyn.stopped
        assert dyn.nsteps == 2
        frames = read_trajectory("t.traj")
        assert len(frames) == 3
        np.testing.assert_array_equal(frames[-1].positions, atoms.positions)
        assert np.isfinite(atoms.positions).all()


def test_the_log_shows_energies_only_where_they_are_known():
    harmonic, atoms = tethered_atoms()
    log = io.StringIO()
    nve(atoms, harmonic, logfile=log, loginterval=2).run(4)
    head, *lines = log.getvalue().splitlines()
    assert head.split()[:5] == ["Time[ps]", "Etot[eV]", "Epot[eV]", "Ekin[eV]", "T[K]"]
    assert [line.split()[0] for line in lines] == ["0.0000", "0.0160", "0.0320"]
    assert lines[-1].split()[1:3] == ["-", "-"]
    assert float(lines[-1].split()[3]) == pytest.approx(atoms.get_kinetic_energy(), abs=1e-4)
    harmonic, atoms = tethered_atoms()
    log = io.StringIO()
    nve(atoms, harmonic, logfile=log, rescale_energy=True).run(4)
    last = log.getvalue().splitlines()[-1].split()
    assert float(last[1]) == pytest.approx(atoms.get_total_energy(), abs=1e-4)
    assert last[-2:] == ["0", "0"]


def test_ases_own_logger_works():
    harmonic, atoms = tethered_atoms()
    dyn = nve(atoms, harmonic)
    log = io.StringIO()
    dyn.attach(MDLogger(dyn, atoms, log))
    dyn.run(3)
    assert len(log.getvalue().splitlines()) == 5
    assert atoms.calc.count == 4


def test_trajectories_store_what_was_run():
    harmonic, atoms = tethered_atoms()
    dyn = JumpNVT(
        atoms,
        8 * units.FS,
        HarmonicPropagator(harmonic),
        300.0,
        friction=0.01 / units.FS,
        trajectory="run.traj",
        loginterval=3,
        **FREE,
    )
    dyn.run(7)
    with Trajectory("run.traj") as frames:
        assert len(frames) == 3
        assert frames.description["md-type"] == "JumpNVT"
        assert frames.description["propagator"] == "HarmonicPropagator"
        assert "300" in frames.description["thermostat"]
    json.dumps(dyn.todict())


def test_what_the_user_does_between_steps_counts():
    harmonic, atoms = tethered_atoms(calculator=False)
    dyn = nve(atoms, harmonic)
    dyn.run(2)
    atoms.positions += 0.1
    atoms.set_momenta(0 * atoms.get_momenta())
    moved = atoms.get_positions()
    dyn.run(1)
    frames = harmonic.evolve(moved, np.zeros((4, 3)), atoms.get_masses(), [8.0])
    np.testing.assert_allclose(atoms.positions, frames[0][0], atol=1e-13)
    assert dyn.get_time() == pytest.approx(24 * units.FS)
    atoms.set_masses(2 * atoms.get_masses())
    dyn.run(1)
    np.testing.assert_array_equal(dyn.loop.states[0].masses, atoms.get_masses())
    atoms.numbers[0] = 7
    with pytest.raises(InputError, match="other atoms"):
        dyn.run(1)


def test_a_new_start_gives_a_new_total_energy():
    harmonic, atoms = tethered_atoms()
    dyn = nve(atoms, harmonic, rescale_energy=True)
    dyn.run(2)
    atoms.set_momenta(1.1 * atoms.get_momenta())
    energy = atoms.get_total_energy()
    dyn.run(5)
    assert atoms.get_total_energy() == pytest.approx(energy, rel=1e-12)


def test_fixcom_is_obeyed_and_other_constraints_are_refused():
    harmonic, start = springs(), springs_state()
    atoms = start.to_atoms()
    atoms.set_constraint(FixCom())
    centre = atoms.get_center_of_mass()
    dyn = JumpNVT(
        atoms,
        8 * units.FS,
        HarmonicPropagator(harmonic),
        300.0,
        friction=0.1 / units.FS,
        guard=Guard.off(),
        rng=np.random.default_rng(0),
    )
    temperatures = []
    dyn.attach(lambda: temperatures.append(atoms.get_temperature()))
    dyn.run(1000)
    np.testing.assert_allclose(atoms.get_center_of_mass(), centre, atol=1e-10)
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    # ASE counts three degrees of freedom less.
    assert np.mean(temperatures[50:]) == pytest.approx(300.0, rel=0.07)
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match=r"FixAtoms.*only FixCom"):
        dyn.run(1)
    with pytest.raises(InputError, match="FixAtoms"):
        JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(harmonic))
    # The first lists its atom as a number; the second is to ASE a kind of FixCom.
    for held in (Hookean(0, (0.0, 0.0, 0.0), 10.0, rt=0.1), FixSubsetCom([0, 1])):
        atoms.set_constraint(held)
        with pytest.raises(InputError, match="only FixCom"):
            JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(harmonic))
    # What holds nothing is no constraint.
    atoms.set_constraint(FixAtoms([]))
    free = JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(harmonic), guard=Guard.off())
    free.attach(atoms.set_constraint, constraint=FixCom())
    with pytest.raises(ConfigError, match="FixCom was set after"):
        free.run(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes friction"),
        ({"taut": 5.0}, "takes friction"),
        ({"friction": 0.1, "taut": 5.0}, "not taut"),
        ({"thermostat": "bussi", "friction": 0.1}, "takes taut"),
        ({"thermostat": "nose", "friction": 0.1}, "choose 'langevin' or 'bussi'"),
        ({"friction": 0.1, "rng": np.random}, "default_rng"),
        ({"friction": -0.1}, "friction=-0.1; it must be a positive number"),
        ({"friction": 0.1, "guard": "off"}, "guard='off'; it must be a Guard or None"),
        ({"friction": 0.1, "md_steps_per_jump": 1.5}, "md_steps_per_jump=1.5; it must be a whole"),
        ({"friction": 0.1, "frames_per_jump": 10**9}, "a whole number from 1 to 1,000"),
        ({"friction": 0.1, "guard": Guard(checks=(EnergyWindow(),))}, "attach a calculator"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    harmonic, atoms = tethered_atoms(calculator=False)
    with pytest.raises(ConfigError, match=message):
        JumpNVT(atoms, 8 * units.FS, HarmonicPropagator(harmonic), 300.0, **options)


@pytest.mark.parametrize(("timestep", "unit"), [(8.0, "fs"), (0.008, "ps")])
def test_steps_in_the_units_of_other_programs_are_refused(timestep, unit):
    atoms = molecule("CH4")
    with pytest.raises(ConfigError, match=rf"for {timestep:g} {unit} write 8 \* ase.units.fs"):
        JumpNVT(atoms, timestep, "atom-small-organics", 300.0)


def test_friction_per_picosecond_is_warned_of():
    harmonic, atoms = tethered_atoms(calculator=False)
    with pytest.warns(UserWarning, match="acts at 982/ps, where 1 to 100/ps are usual"):
        JumpNVT(atoms, 8 * units.FS, HarmonicPropagator(harmonic), 300.0, friction=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrections": {"momentum": False}}, "must be a Corrections or None"),
        ({"loginterval": 1.5}, "loginterval=1.5; it must be a whole number from 1"),
    ],
)
def test_options_of_constant_energy_that_do_not_fit_are_refused(options, message):
    harmonic, atoms = tethered_atoms(calculator=False)
    with pytest.raises(ConfigError, match=message):
        JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(harmonic), **options)


def test_periodic_atoms_are_refused():
    atoms = molecule("H2O", vacuum=5.0)
    atoms.pbc = True
    with pytest.raises(InputError, match="periodic"):
        JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(springs(3)))


def test_a_calculator_without_energy_cannot_rescale():
    class ForcesOnly(HarmonicCalculator):
        implemented_properties = ("forces",)

    harmonic, atoms = tethered_atoms()
    atoms.calc = ForcesOnly(harmonic)
    with pytest.raises(ConfigError, match="ForcesOnly does not know energy"):
        nve(atoms, harmonic, rescale_energy=True).run(1)


# Restart


def assert_same_trajectories(one, two):
    for a, b in zip(read_trajectory(one), read_trajectory(two), strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())


def test_killed_runs_go_on_to_the_same_trajectory(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = run(whole)
    rng = np.random.default_rng()
    for kill in range(6):
        # The first part begins like the whole run; the seeds of the others must not matter.
        step = 15 * kill + int(rng.integers(3, 15))
        child = PROCESSES.Process(target=run, args=(killed, 1 + kill, step, 0.01 * rng.random()))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        child.close()
        assert 0 < read_restart(killed / "run.npz")["step"] < STEPS
    child = PROCESSES.Process(target=run, args=(killed, 7))
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()
    assert_same_trajectories(whole / "run.traj", killed / "run.traj")
    last = read_restart(killed / "run.npz")
    assert last["step"] == STEPS
    np.testing.assert_array_equal(last["states"][0]["positions"], expected.atoms.positions)
    assert last["events"] == expected.events.to_json()
    assert len(expected.events) > 0


def make(harmonic, atoms, seed, **options):
    return JumpNVT(
        atoms,
        8 * units.FS,
        Noisy(harmonic),
        300.0,
        friction=0.01 / units.FS,
        rng=np.random.default_rng(seed),
        **{**FREE, **options},
    )


def test_newer_frames_are_removed_and_none_is_missing():
    harmonic, atoms = tethered_atoms()
    dyn = make(harmonic, atoms, 1, trajectory="run.traj", loginterval=2)
    dyn.run(5)
    dyn.save_restart("run.npz")
    dyn.run(5)
    expected = [frame.positions for frame in read_trajectory("run.traj")]
    _, atoms = tethered_atoms()
    again = make(harmonic, atoms, 2, trajectory="run.traj", loginterval=2, restart="run.npz")
    assert again.nsteps == 5
    assert len(read_trajectory("run.traj")) == 3
    again.run(5)
    found = [frame.positions for frame in read_trajectory("run.traj")]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again.atoms.positions, dyn.atoms.positions)
    np.testing.assert_array_equal(again.atoms.get_momenta(), dyn.atoms.get_momenta())
    with Trajectory("short.traj", "w") as file:
        file.write(atoms)
    with pytest.raises(ModelFileError, match=r"short.traj holds 1 frame, but 3"):
        make(harmonic, atoms, 2, trajectory="short.traj", loginterval=2, restart="run.npz")
    # Of another interval frames would be lost.
    with pytest.raises(
        ModelFileError, match=r"a frame every 2 steps, .* has loginterval=4; set it"
    ):
        make(harmonic, atoms, 2, trajectory="run.traj", loginterval=4, restart="run.npz")
    assert len(read_trajectory("run.traj")) == 6
    with pytest.raises(ModelFileError, match=r"gone.traj, .* is not there; bring it back, or pass"):
        make(harmonic, atoms, 2, trajectory="gone.traj", loginterval=2, restart="run.npz")
    with Trajectory("new.traj", "w") as file:
        make(harmonic, atoms, 2, trajectory=file, loginterval=2, restart="run.npz").run(5)
    assert len(read_trajectory("new.traj")) == 3


def test_a_restart_file_knows_what_the_user_has_changed():
    harmonic, atoms = tethered_atoms()
    dyn = make(harmonic, atoms, 1)
    dyn.run(3)
    atoms.set_momenta(1.234 * atoms.get_momenta())
    dyn.save_restart("run.npz")
    dyn.run(3)
    _, others = tethered_atoms()
    make(harmonic, others, 2, restart="run.npz").run(3)
    np.testing.assert_array_equal(others.positions, atoms.positions)


def test_the_random_orientations_of_the_calculator_go_on():
    from toy_models import toy_model

    from mlmd_calc import MDETCalculator
    from mlmd_calc.models.mdet import MDETConfig

    model = toy_model(MDETConfig(n_layers=1, embd_dim=16, num_heads=2, num_3d_kernels=8))

    def dynamics(seed, **options):
        atoms = molecule("H2O")
        atoms.calc = MDETCalculator(model, forces="direct", rotation="random", seed=seed)
        return JumpNVE(
            atoms,
            0.2 * units.FS,
            HarmonicPropagator(springs(3)),
            guard=Guard.off(),
            md_steps_per_jump=2,
            md_timestep=0.01 * units.FS,
            rng=np.random.default_rng(seed),
            **options,
        )

    whole = dynamics(1)
    whole.run(3)
    whole.save_restart("run.npz")
    whole.run(3)
    again = dynamics(2, restart="run.npz")
    again.run(3)
    np.testing.assert_array_equal(again.atoms.positions, whole.atoms.positions)


def test_restart_files_of_other_runs_are_refused():
    harmonic, atoms = tethered_atoms()
    make(harmonic, atoms, 1).save_restart("run.npz")
    with pytest.raises(ModelFileError, match="propagator = Noisy"):
        nve(atoms, harmonic, restart="run.npz")
    with pytest.raises(ModelFileError, match="does not exist"):
        make(harmonic, atoms, 1, restart="none.npz")
