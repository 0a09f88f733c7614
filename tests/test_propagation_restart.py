"""Restart files: exact, refused when damaged, and written in one go."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from jump_systems import Noisy, Spoilt, forces_of, nan, springs, springs_state, tethered

from mlmd_calc import load_propagator
from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.io import restart
from mlmd_calc.models.atom import ATOMIntegrator, IntegratorConfig
from mlmd_calc.models.mdet import MDETConfig
from mlmd_calc.potential import Potential
from mlmd_calc.propagation import (
    Bussi,
    Corrections,
    EnergyWindow,
    Guard,
    JumpLoop,
    Langevin,
    Strides,
    Temperature,
    VerletPropagator,
    default_checks,
    read_restart,
    state_from_ase,
    write_restart,
)
from mlmd_calc.zoo import save_model

CONTENT = {
    "numbers": [1, 2.5, float("inf"), None, True, 2**100],
    "text": "Å",
    "nested": {"deep": [{"array": np.arange(6.0).reshape(2, 3)}, np.array(5)]},
    "empty": {"list": [], "array": np.zeros((0, 3))},
    "precise": 0.1 + 0.2,
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_round_trip(tmp_path):
    path = tmp_path / "run.npz"
    write_restart(path, CONTENT)
    found = read_restart(path)
    deep = found["nested"].pop("deep")
    np.testing.assert_array_equal(deep[0]["array"], CONTENT["nested"]["deep"][0]["array"])
    assert deep[1] == 5
    assert found["empty"].pop("array").shape == (0, 3)
    expected = {**CONTENT, "nested": {}, "empty": {"list": []}}
    assert found == expected
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def rewrite(path, **changes):
    """Change arrays of a restart file without its checksum."""
    with np.load(path) as file:
        arrays = {**{name: file[name] for name in file.files}, **changes}
    np.savez(path, **arrays)


def header(path, **changes):
    with np.load(path) as file:
        content = json.loads(file["header"].tobytes()) | changes
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    write_restart(path, CONTENT)
    good = path.read_bytes()
    for size in (0, 10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ModelFileError, match="not a readable restart file"):
            read_restart(path)
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(len(good), size=40):
        changed = bytearray(good)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        # Some bytes of the container mean nothing; none may change the content.
        try:
            found = read_restart(path)
        except ModelFileError:
            refused += 1
        else:
            assert found["precise"] == CONTENT["precise"]
    assert refused > 20
    path.write_bytes(good)
    rewrite(path, **{"array:0": np.ones((2, 3))})
    with pytest.raises(ModelFileError, match="checksum is wrong"):
        read_restart(path)


def test_other_files_and_versions_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(ModelFileError, match="does not exist"):
        read_restart(path)
    write_restart(path, CONTENT)
    rewrite(path, header=header(path, version=restart.VERSION + 1))
    with pytest.raises(ModelFileError, match="version 2, but this program reads version 1"):
        read_restart(path)
    rewrite(path, header=header(path, format="something"))
    with pytest.raises(ModelFileError, match="format 'something'"):
        read_restart(path)
    np.savez(path, positions=np.eye(3))
    with pytest.raises(ModelFileError, match="not a readable restart file"):
        read_restart(path)
    with path.open("wb") as file:
        np.save(file, np.eye(3))
    with pytest.raises(ModelFileError, match="not a readable restart file"):
        read_restart(path)


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    with pytest.raises(TypeError, match="Python objects"):
        write_restart(tmp_path / "run.npz", {"x": np.array([object()])})
    with pytest.raises(ValueError, match="cannot be stored"):
        write_restart(tmp_path / "run.npz", {"x": "array:0"})
    assert not (tmp_path / "run.npz").exists()


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    write_restart(path, {"step": 1})

    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(restart.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_restart(path, {"step": 2})
    assert read_restart(path) == {"step": 1}


def make_loop(rng_seed, system=None, **options):
    """A loop in which everything random or remembered takes part."""
    harmonic, start = tethered() if system is None else system
    checks = (*default_checks(energies=True), EnergyWindow("accept", limit=1e-5))
    options = {
        "thermostat": Langevin(300.0, 0.01),
        "forces": forces_of(harmonic),
        "corrections": Corrections.none(),
        "md_steps_per_jump": 3,
        "guard": Guard(checks=checks),
        "propagator": Noisy(harmonic),
        **options,
    }
    rng = np.random.default_rng(rng_seed)
    return JumpLoop([start] * 3, options.pop("propagator"), 8.0, rng=rng, **options)


FREE = {
    "system": (springs(), springs_state()),
    "thermostat": None,
    "corrections": Corrections(rescale_energy=True),
    "guard": Guard(checks=(Temperature(window_fs=50.0), EnergyWindow("accept", limit=1e-5))),
}


BALANCED = replace(Corrections.none(), balance_elements=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"corrections": BALANCED}, {"thermostat": Bussi(300.0, 50.0)}, FREE],
    ids=["langevin", "balanced", "bussi", "rescaled and rotated"],
)
def test_a_continued_run_is_the_same_to_the_last_bit(options):
    whole = make_loop(1, **options)
    for step in range(30):
        if step == 17:
            whole.save("run.npz")
        whole.advance()
    # Another seed and another start must not matter.
    again = make_loop(2, **options)
    again.advance()
    again.load("run.npz")
    assert again.step == 17
    for _ in range(13):
        again.advance()
    for one, two in zip(whole.states, again.states, strict=True):
        np.testing.assert_array_equal(one.positions, two.positions)
        np.testing.assert_array_equal(one.velocities, two.velocities)
        assert one.time == two.time
        assert one.energy == two.energy
        assert one.memory["calls"] == two.memory["calls"] == [30]
    assert list(whole.events) == list(again.events)
    assert len(whole.events) > 10
    assert whole.setup.rng.random() == again.setup.rng.random()


@pytest.fixture(scope="module")
def toy():
    from toy_models import toy_model

    return toy_model(MDETConfig(n_layers=1, embd_dim=16, num_heads=2, num_3d_kernels=8))


def tiny_atom(forces, path):
    """ATOM propagator with a force model of its own."""
    if not path.exists():
        config = IntegratorConfig(lifting_dim=16, num_heads=2, accelerations=True)
        network = ATOMIntegrator(config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        save_model(path, network.eval(), {}, {"name": "tiny", "elements": [1, 8]})
    return load_propagator(path, potential=forces, device="cpu")


@pytest.mark.parametrize("kind", ["verlet", "atom"])
def test_random_orientations_of_the_force_model_go_on(toy, kind, tmp_path):
    from ase.build import molecule

    def loop(seed):
        forces = Potential(toy, forces="direct", rotation="random", seed=seed, device="cpu")
        state = state_from_ase(molecule("H2O"))
        atom = kind == "atom"
        return JumpLoop(
            [state],
            tiny_atom(forces, tmp_path / "m.safetensors")
            if atom
            else VerletPropagator(forces, 0.1),
            0.2,
            forces=None if atom else forces,
            guard=Guard.off(),
            corrections=Corrections.none(),
        )

    whole, again = loop(1), loop(2)
    whole.advance()
    whole.save("run.npz")
    again.load("run.npz")
    for _ in range(3):
        whole.advance()
        again.advance()
    np.testing.assert_array_equal(whole.states[0].positions, again.states[0].positions)


def test_another_kind_of_force_model_is_refused(toy):
    from ase.build import molecule

    forces = Potential(toy, forces="direct", rotation="random", seed=1, device="cpu")
    whole = JumpLoop(
        [state_from_ase(molecule("H2O"))],
        VerletPropagator(forces, 0.1),
        0.2,
        forces=forces,
        guard=Guard.off(),
        corrections=Corrections.none(),
    )
    whole.save("run.npz")
    untold = VerletPropagator(whole.forces, 0.1)
    untold.potential = None
    without = JumpLoop(
        [state_from_ase(molecule("H2O"))],
        untold,
        0.2,
        guard=Guard.off(),
        corrections=Corrections.none(),
    )
    with pytest.raises(ConfigError, match="another kind of force model"):
        without.load("run.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thermostat": Langevin(310.0, 0.01)}, "thermostat = Langevin.*300.0.*310.0"),
        ({"corrections": Corrections()}, "corrections"),
        ({"md_steps_per_jump": 4}, "md_steps_per_jump = 3, but this run has 4"),
        ({"guard": Guard(checks=())}, "checks"),
        ({"propagator": Spoilt(tethered()[0], nan)}, "propagator = Noisy, .* Spoilt"),
    ],
)
def test_other_settings_are_refused(options, message):
    make_loop(1).save("run.npz")
    with pytest.raises(ModelFileError, match=message):
        make_loop(1, **options).load("run.npz")


def test_other_limits_are_allowed(tmp_path):
    loop = make_loop(1)
    loop.save("run.npz")
    checks = (*default_checks(energies=True), EnergyWindow("accept", limit=1.0))
    other = make_loop(1, guard=Guard(checks=checks, redraws=9))
    other.load("run.npz")
    assert other.step == 0
    loop.propagator.strides = Strides(4.0, 4.0)
    assert torch.equal(other.setup.generator.get_state(), loop.setup.generator.get_state())
