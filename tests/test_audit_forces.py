"""Audit of force fields: estimators on systems with known answers, and planted faults."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_potentials import Morse
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_masses
from audit_systems import (
    FIRST,
    LENGTHS,
    MINIMUM,
    NUMBERS,
    SECOND,
    SHAPE,
    SPRING,
    VORTEX,
    single_precision,
    springs,
    with_vortex,
)

from mlmd_calc import units
from mlmd_calc.analysis.audit import field
from mlmd_calc.analysis.audit.forces import ForceAudit
from mlmd_calc.analysis.audit.measurement import (
    Measurement,
    Verdict,
    common_size,
    jackknife,
)
from mlmd_calc.analysis.audit.motion import ThermalRun, energy_drift, thermal_run
from mlmd_calc.analysis.audit.settings import AuditSettings, measure_all, measured, overall
from mlmd_calc.analysis.jump_ensemble import Sample
from mlmd_calc.analysis.statistics import root_mean_square
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.potential import Structure
from mlmd_calc.propagation import FunctionForces

WATER = FunctionForces(springs)
SMALL = AuditSettings(thermal_fs=100.0, drift_fs=20.0)


def shaken(count, seed=0):
    """Structures of water as vibrations make them."""
    shifts = 0.05 * np.random.default_rng(seed).standard_normal((count, 3, 3))
    return [replace(MINIMUM, positions=SHAPE + shift) for shift in shifts]


def rng():
    """The same random numbers every time."""
    return np.random.default_rng(1)


# ---- numbers and verdicts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.5, 0.1, Verdict.PASS),
        (-0.5, 0.1, Verdict.PASS),
        (0.9, 0.1, Verdict.CANNOT_TELL),
        (-1.2, 0.1, Verdict.CANNOT_TELL),
        (-1.5, 0.1, Verdict.FAIL),
        (0.1, np.nan, Verdict.CANNOT_TELL),
        (np.nan, np.nan, Verdict.CANNOT_TELL),
    ],
)
def test_verdicts_leave_room_for_the_error(value, error, verdict):
    assert Measurement("", value, error, 1.0, "").verdict is verdict


def test_what_cannot_be_measured_says_why():
    def refuse():
        raise ConfigError("no energy here")

    found = measured("energy", 1.0, "eV", refuse)
    assert found.verdict is Verdict.CANNOT_TELL
    assert found.note == "no energy here"
    assert found.to_dict()["value"] is None
    sound = Measurement("", 0.0, 0.0, 1.0, "")
    assert overall([sound, found]) is Verdict.CANNOT_TELL
    assert overall([sound, found, Measurement("", 2.0, 0.0, 1.0, "")]) is Verdict.FAIL


def test_jackknife_gives_the_standard_error_of_a_mean():
    values = rng().standard_normal(50)
    found = jackknife(lambda x: float(x.mean()), values, factor=-2.0)
    assert found.value == pytest.approx(-2.0 * values.mean())
    assert found.standard_error == pytest.approx(2.0 * values.std(ddof=1) / np.sqrt(50))


def test_common_size_is_free_of_noise():
    noise = rng().standard_normal((12, 400))
    assert root_mean_square(noise) == pytest.approx(1.0, abs=0.05)
    assert common_size(noise).value < 0.1
    found = common_size(noise + 0.5)
    assert found.value == pytest.approx(0.5, abs=3 * found.standard_error)
    assert found.standard_error < 0.1


# ---- estimators ------------------------------------------------------------------------------


def test_springs_are_the_slope_of_their_energy():
    balance = field.energy_balance(WATER, shaken(4), rng())
    assert balance.discrepancy_percent.value < 1e-6
    assert np.abs(balance.changes).min() > 1e-3
    assert field.loop_work(WATER, shaken(4), rng()).share_percent.value < 1e-6
    assert field.antisymmetry(WATER, shaken(2)).value < 1e-6


def test_work_around_a_loop_in_a_field_of_known_curl():
    """F = c A x does the work ∮ F dx = c ∮ x'ᵀ Aᵀ x ds, whatever the plane of the loop."""
    curl = 0.3 * np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    seen = []

    def swirl(positions):
        seen.append(positions.copy())
        return 0.0, positions @ curl.T

    atom = Structure(np.array([1]), np.array([[0.2, 0.1, 0.0]]))
    found = field.loop_work(FunctionForces(swirl), [atom], rng())
    x = np.array(seen)[:, 0]
    # Twice the area inside a polygon; that of the ellipse is larger by a known factor.
    area = 0.5 * np.cross(x, np.roll(x, -1, axis=0)).sum(axis=0)[2]
    angle = 2 * np.pi / len(x)
    assert found.works[0] == pytest.approx(2 * 0.3 * area * angle / np.sin(angle), rel=1e-9)
    assert abs(found.works[0]) <= found.ways[0]


def test_antisymmetry_of_a_linear_field():
    rows = rng().standard_normal((9, 9))
    linear = FunctionForces(lambda x: (0.0, (rows @ x.ravel()).reshape(3, 3)))
    known = np.linalg.norm(rows - rows.T) / 2 / np.linalg.norm(rows)
    assert field.antisymmetry(linear, shaken(2)).value == pytest.approx(known, rel=1e-6)
    derivatives = field.force_derivatives(linear, MINIMUM)
    assert derivatives == pytest.approx(rows, abs=1e-6)


def test_net_force_torque_and_orientation_of_a_uniform_field():
    """Falling atoms: the sum of n equal forces is √n times the root of the sum of squares."""
    gravity = np.array([0.0, 0.0, -2.0])
    falling = FunctionForces(lambda x: (2.0 * float(x[:, 2].sum()), np.tile(gravity, (3, 1))))
    assert field.net_force(falling, shaken(3)).value == pytest.approx(100 * np.sqrt(3))
    assert field.net_torque(falling, shaken(3)).value < 1e-9
    assert field.translation_defect(falling, shaken(3)).value < 1e-9
    # Turned back, the forces point everywhere.
    assert field.turned(falling, shaken(2), energies=True).force_percent.value == pytest.approx(100)


def test_torque_of_a_couple():
    """Two opposite forces across their arm, at the same distance from the centre."""
    pair = Structure(np.array([1, 1]), np.array([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]))
    couple = FunctionForces(lambda x: (0.0, np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])))
    assert field.net_torque(couple, [pair, pair]).value == pytest.approx(100 * np.sqrt(2))


def test_energy_over_orientations():
    """A field along z on one bond: the mean of cos² over the rotations is a third."""
    (one,) = shaken(1)
    bond = one.positions[1] - one.positions[0]
    tilted = FunctionForces(lambda x: (0.01 * float((x[1] - x[0])[2]), springs(x)[1]))
    found = field.turned(tilted, [one, one], energies=True)
    known = 10.0 * np.linalg.norm(bond) / np.sqrt(3)
    assert found.energy_meV.value == pytest.approx(known, rel=1e-6)
    assert found.force_percent.value < 1e-9


def morse(change=lambda length: 0.0):
    """H2 whose force has an additional part; energies are not looked at."""
    atoms = Atoms("H2", [[0, 0, 0], [0.74, 0, 0]])
    atoms.calc = Morse(4.6, 1.9, 0.74)
    clean = AttachedCalculator(atoms)

    def function(positions):
        (one,) = clean.evaluate([Structure(np.array([1, 1]), positions)], ("energy", "forces"))
        added = change(np.linalg.norm(positions[1] - positions[0]))
        return one.energy, one.forces + np.array([[-added, 0, 0], [added, 0, 0]])

    return FunctionForces(function), Structure(np.array([1, 1]), atoms.positions)


def test_morse_potential_is_smooth_with_one_minimum():
    (found,) = field.stretches(*morse())
    assert found.roughness_meV_per_A < 1e-4
    assert found.extra_minima == 0
    assert found.lengths[[0, -1]] == pytest.approx([0.59, 0.99])
    slope = 2 * 4.6 * 1.9 * np.exp(-1.9 * 0.25) * (1 - np.exp(-1.9 * 0.25))
    assert found.pulls[-1] == pytest.approx(-slope)


def test_a_step_and_ripples_of_the_force_are_found():
    (step,) = field.stretches(*morse(lambda length: 0.03 * (length > 0.85)))
    # Steps of height s leave 10 s / √924 of a sixth difference.
    assert step.roughness_meV_per_A == pytest.approx(30.0 * 10 / np.sqrt(924), rel=1e-3)
    (ripples,) = field.stretches(*morse(lambda length: 5.0 * np.sin(2 * np.pi * length / 0.1)))
    assert ripples.extra_minima >= 1


def test_both_sides_of_a_bond_move_as_they_are():
    """Ethane: the C–C bond separates its halves; a bond of cyclopropane only two atoms."""
    moved = []

    def watch(positions):
        moved.append(positions)
        return 0.0, np.zeros_like(positions)

    for name in ("C2H6", "C3H6_D3h"):
        atoms = molecule(name)
        moved.clear()
        field.stretches(FunctionForces(watch), Structure(atoms.numbers, atoms.positions))
        ways = np.linalg.norm(moved[0] - atoms.positions, axis=1)
        assert np.count_nonzero(ways > 1e-9) == (8 if name == "C2H6" else 2)


def test_drift_of_an_orbit_that_a_vortex_drives():
    """An atom on a circle of radius r gains c r² ω of energy per time from F = c e_z × x."""
    spring, radius, curl = 5.0, 0.2, 0.01
    mass = atomic_masses[8]
    omega = np.sqrt(spring / mass) * units.FS
    turn = curl * np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def function(positions):
        energy, forces = Harmonic.tethers(spring, np.zeros((1, 3))).energy_and_forces(positions)
        return energy, forces + positions @ turn.T

    start = np.array([[[[radius, 0.0, 0.0]]] * 3])
    speed = np.array([[[[0.0, omega * radius, 0.0]]] * 3])
    sample = Sample(np.array([8]), np.array([mass]), np.zeros(1), start, speed)
    run = ThermalRun(sample, Structure(np.array([8]), start[0, 0]), 3)
    found = energy_drift(
        FunctionForces(function), run, replicas=3, duration_fs=20.0, timesteps_fs=(0.25, 0.5)
    )
    known = curl * radius**2 * omega * units.FS_PER_PS / units.MEV
    assert found.extrapolated.value == pytest.approx(known, rel=0.02)
    assert found.drifts.shape == (2, 3)


def test_energy_of_springs_does_not_drift():
    run = thermal_run(WATER, MINIMUM, temperature_K=300.0, replicas=4, duration_fs=20.0, rng=rng())
    assert run.died_percent == 0.0
    drift = energy_drift(WATER, run, replicas=4, duration_fs=20.0, timesteps_fs=(0.25, 0.5))
    assert drift.extrapolated.value < 0.02


def test_a_run_that_breaks_is_an_answer():
    """Springs that push: the audit goes on with shaken atoms, and fails."""

    def push(positions):
        arms = positions - positions.mean(axis=0)
        return -10.0 * float((arms**2).sum()), 20.0 * arms

    apart = FunctionForces(push)
    with pytest.raises(PredictionError, match="none of 3 replicas"):
        thermal_run(apart, MINIMUM, temperature_K=300.0, replicas=3, duration_fs=50.0, rng=rng())
    audit = ForceAudit(apart, MINIMUM, AuditSettings.quick())
    found = by_name(audit)
    assert found["replicas lost under a thermostat"].verdict is Verdict.FAIL
    assert "none of 4 replicas" in found["replicas lost under a thermostat"].note
    assert found["energy drift at Δt → 0"].verdict is Verdict.CANNOT_TELL
    assert found["net force"].verdict is Verdict.PASS


# ---- whole audits ----------------------------------------------------------------------------


def by_name(audit, *names):
    """All measurements of an audit by their names, or those of some parts."""
    parts = {name: part for name, part in audit.parts().items() if not names or name in names}
    assert parts.keys() >= set(names)
    return {one.name: one for one in measure_all(parts, lambda name: None)}


def failures(audit, *names):
    """Names of the measurements that fail."""
    return {name for name, one in by_name(audit, *names).items() if one.verdict is Verdict.FAIL}


def test_sound_springs_pass():
    found = by_name(ForceAudit(WATER, MINIMUM, SMALL))
    passed = {name for name, one in found.items() if one.verdict is Verdict.PASS}
    # A tenth of a picosecond does not tell temperatures to 10 %.
    short = {"temperature of all atoms", "temperature of H", "temperature of O"}
    assert found.keys() - passed <= short, found
    assert not any(found[name].verdict is Verdict.FAIL for name in short)


def test_equal_seeds_give_equal_numbers():
    audits = [
        by_name(ForceAudit(WATER, MINIMUM, AuditSettings.quick(seed=seed))) for seed in (3, 3, 4)
    ]
    # repr, because NaN is not equal to itself.
    first, again, other = map(repr, audits)
    assert first == again
    assert first != other


def test_a_non_conservative_term_of_one_percent_is_caught():
    found = failures(ForceAudit(with_vortex(0.01), MINIMUM, SMALL))
    assert {
        "energy against work",
        "work around closed loops",
        "antisymmetry λ of the force derivatives",
        "energy drift at Δt → 0",
    } <= found
    assert "net force" not in found
    assert "rotation of forces" not in found


@pytest.mark.parametrize(("function", "caught"), [(springs, False), (single_precision, True)])
def test_drift_of_single_precision_is_caught(function, caught):
    """A kilometre away on the scale of a molecule, where rounding moves atoms by 6e-5 Å."""
    away = Structure(NUMBERS, SHAPE + 1000.0)
    found = failures(ForceAudit(FunctionForces(function), away, SMALL))
    assert ("energy drift at Δt → 0" in found) == caught
    assert ("roughness of the force along bonds" in found) == caught


def test_settings_that_tell_nothing_are_refused():
    with pytest.raises(ConfigError, match="replicas=2"):
        AuditSettings(replicas=2)


def test_share_of_the_vortex_is_measured():
    """λ of springs with a share s: both parts are sums over springs, scaled alike."""
    share = 0.05
    found = field.antisymmetry(with_vortex(share), [MINIMUM, MINIMUM]).value
    directions = (SHAPE[FIRST] - SHAPE[SECOND]) / LENGTHS[:, None]
    lengthening = np.zeros((3, 3, 3))
    for spring, (i, j) in enumerate(zip(FIRST, SECOND, strict=True)):
        lengthening[spring, i], lengthening[spring, j] = directions[spring], -directions[spring]
    rows = lengthening.reshape(3, 9)
    even, odd = (SPRING * rows.T @ m @ rows for m in (np.eye(3), share * VORTEX))
    known = np.linalg.norm(odd) / np.hypot(np.linalg.norm(even), np.linalg.norm(odd))
    assert found == pytest.approx(known, rel=1e-3)
