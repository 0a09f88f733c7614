"""The ATMOS network: padding, symmetries, memory, sampler, losses, foreign weights, options."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from atmos_systems import denoise_window, draw
from scipy.spatial.transform import Rotation

from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.superposition import align
from mlmd_calc.models import ATMOS, ATMOSConfig
from mlmd_calc.models.atmos import Context, Features, SamplerConfig, load_protenix
from mlmd_calc.models.atmos.config import PRESETS, LossConfig
from mlmd_calc.models.atmos.embedders import RelativePositionEncoding
from mlmd_calc.models.atmos.geometry import pair_geometry
from mlmd_calc.models.atmos.losses import (
    atom_weights,
    bond_loss,
    diffusion_loss,
    distogram_loss,
    smooth_lddt_loss,
    training_loss,
)
from mlmd_calc.models.atmos.pairformer import PairStack
from mlmd_calc.models.atmos.primitives import distance_bins
from mlmd_calc.models.atmos.protenix import protenix_names
from mlmd_calc.models.atmos.sampler import (
    noise_levels,
    random_pose,
    random_steps,
    run_sampler,
    training_noise,
)
from mlmd_calc.models.atmos.windows import AtomWindows

SMALL = ATMOSConfig.preset(
    "xs",
    **{"c_s": 16, "c_z": 8, "c_token": 12, "c_atom": 8, "c_atompair": 4, "c_diffusion": 16},
    **{"c_triangle": 8, "triangle_heads": 2, "triangle_head_width": 4, "atom_heads": 2},
    sigma_data=4.0,
    sampler=SamplerConfig(steps=3),
)

CONFIGS = {
    "default": SMALL,
    "augment-concat-shared": dataclasses.replace(
        SMALL, coord_mode="augment", update="concat", single_to_pair="shared"
    ),
    "memory-norm-msa": dataclasses.replace(
        SMALL, encoder_state="memory", state_norm=True, msa_blocks=2, c_m=6, context_cycles=2
    ),
    "no-embeddings-lag": dataclasses.replace(
        SMALL, encoder_state="none", single_to_pair="none", tau="lag"
    ),
    "interpolator": dataclasses.replace(SMALL, max_remaining=5),
}


def random_network(config: ATMOSConfig = SMALL, seed: int = 0) -> ATMOS:
    """Network in double precision whose every parameter is random."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = ATMOS(config)
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.double().eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_features(residues: int, ligand_atoms: int = 0) -> Features:
    """Chain of residues of 4 to 7 atoms and a ligand with one token per atom."""
    sizes = [4 + index % 4 for index in range(residues)] + [1] * ligand_atoms
    n, a = len(sizes), sum(sizes)
    first = torch.tensor([0, *itertools.accumulate(sizes)][:-1])
    ligand = torch.arange(n) >= residues
    frames = first[:, None] + torch.arange(3)
    frames[ligand] = torch.stack([first, first - 1, first - 2], -1)[ligand].clamp(min=0)
    owner = torch.repeat_interleave(torch.arange(n), torch.tensor(sizes))
    bonds = torch.zeros(n, n, dtype=torch.bool)
    bonds[residues:, residues:] = torch.ones(ligand_atoms, ligand_atoms).tril(-1).triu(-1).bool()
    return Features(
        restype=torch.where(ligand, 20, torch.arange(n) % 20),
        asym_id=ligand.long(),
        entity_id=ligand.long(),
        sym_id=torch.zeros(n, dtype=torch.long),
        residue_index=torch.where(ligand, 1, torch.arange(n) + 1),
        token_index=torch.arange(n),
        token_bonds=bonds | bonds.T,
        representative_atom=first + torch.where(ligand, 0, 3),
        frame_atoms=frames,
        frame_mask=torch.arange(n) != residues,
        token_mask=torch.ones(n, dtype=torch.bool),
        atom_to_token=owner,
        ref_pos=2.0 * torch.randn(a, 3, generator=generator(a)),
        ref_mask=torch.arange(a) != 2,
        ref_element=torch.arange(a) % 10,
        ref_charge=(torch.arange(a) % 3 - 1).float(),
        ref_atom_name_chars=torch.arange(4 * a).reshape(a, 4) % 64,
        ref_space_uid=torch.where(ligand, residues, torch.arange(n))[owner],
        is_ligand=ligand[owner],
        atom_mask=torch.ones(a, dtype=torch.bool),
    )


def coordinates(count: int, atoms: int, seed: int = 0) -> torch.Tensor:
    return 4.0 * torch.randn(count, atoms, 3, generator=generator(seed), dtype=torch.float64)


def extras(config: ATMOSConfig, batch: int, atoms: int) -> dict[str, torch.Tensor]:
    """Optional arguments of a step that the configuration makes mandatory."""
    given = {}
    if config.tau == "lag":
        given["lag"] = torch.linspace(1.0, 10.0, batch, dtype=torch.float64)
    if config.max_remaining:
        given["end"] = coordinates(batch, atoms, seed=7)
        given["remaining"] = 1 + torch.arange(batch) % config.max_remaining + 1
    return given


# ---- padding and cropping -------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_padding_changes_nothing(config: ATMOSConfig) -> None:
    network = random_network(config)
    # The larger one needs several windows of atoms, the smaller ones by themselves do not.
    systems = [toy_features(n, m) for n, m in ((13, 3), (2, 0), (3, 4))]
    batch = Features.stack(systems)
    positions, noisy = coordinates(3, batch.n_atoms), coordinates(3, batch.n_atoms, seed=1)
    given = extras(config, 3, batch.n_atoms)
    sigma = torch.tensor([[0.1], [2.0], [30.0]]).double()
    with torch.no_grad():
        context = network.context(batch)
        memory = network.initial_memory(context)
        for _ in range(2):
            memory = network.step(memory, positions, batch, context, **given)
        conditioning = network.conditioning(memory, batch, context)
        denoised = network.diffusion_module(noisy[:, None], sigma, conditioning)
        for b, system in enumerate(systems):
            n, a = system.n_tokens, system.n_atoms
            alone = Features.stack([system])
            own = {k: v[b : b + 1, :a] if k == "end" else v[b : b + 1] for k, v in given.items()}
            found = network.context(alone)
            for ours, theirs in zip(found, context, strict=True):
                cut = theirs[b, :n, :n] if theirs.ndim == 4 else theirs[b, :n]
                torch.testing.assert_close(ours[0], cut, rtol=1e-9, atol=1e-9)
            state = network.initial_memory(found)
            for _ in range(2):
                state = network.step(state, positions[b : b + 1, :a], alone, found, **own)
            torch.testing.assert_close(state.s[0], memory.s[b, :n], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(state.z[0], memory.z[b, :n, :n], rtol=1e-9, atol=1e-9)
            ready = network.conditioning(state, alone, found)
            out = network.diffusion_module(noisy[b : b + 1, None, :a], sigma[b : b + 1], ready)
            torch.testing.assert_close(out[0], denoised[b, :, :a], rtol=1e-9, atol=1e-9)
    outside = ~batch.token_mask
    assert not memory.s[outside].any()
    assert not memory.z[~batch.pair_mask].any()


def test_samples_of_padded_atoms_lie_at_the_origin() -> None:
    network = random_network()
    batch = Features.stack([toy_features(3), toy_features(2)])
    context = network.context(batch)
    memory = network.initial_memory(context)
    drawn = draw(network, memory, batch, context, generator(), samples=2)
    assert drawn.shape == (2, 2, batch.n_atoms, 3)
    outside = ~batch.atom_mask[:, None].expand(2, 2, -1)
    assert not drawn[outside].any()
    assert drawn[~outside].all()


def test_a_crop_keeps_the_geometry_of_what_is_left() -> None:
    whole = toy_features(6, 5)
    positions = coordinates(1, whole.n_atoms)
    kept = torch.tensor([1, 2, 4, 6, 8, 9, 10])
    crop, atoms = whole.crop(kept)
    assert torch.equal(torch.isin(whole.atom_to_token, kept).nonzero()[:, 0], atoms)
    assert torch.equal(kept[crop.atom_to_token], whole.atom_to_token[atoms])
    assert torch.equal(atoms[crop.representative_atom], whole.representative_atom[kept])
    # Token 6 never had a frame; that of token 8 spans atoms of token 7, which is gone.
    assert crop.frame_mask.tolist() == [True, True, True, False, False, False, True]
    expected = pair_geometry(positions, Features.stack([whole]), SMALL)[0][kept][:, kept]
    found = pair_geometry(positions[:, atoms], Features.stack([crop]), SMALL)[0]
    both = crop.frame_mask[:, None] & crop.frame_mask
    assert torch.equal(found[both], expected[both])
    bins = SMALL.distance_bins
    assert torch.equal(found[..., :bins], expected[..., :bins])
    relative = RelativePositionEncoding(3)
    torch.testing.assert_close(relative(crop), relative(whole)[kept][:, kept])


def test_batches_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="at least one system"):
        Features.stack([])
    profile = dataclasses.replace(toy_features(2), profile=torch.zeros(2, 32))
    with pytest.raises(InputError, match="only some systems of the batch have profile"):
        Features.stack([toy_features(2), profile])


@pytest.mark.parametrize("count", [1, 2, 5, 22, 63, 64, 65, 80, 97, 130])
def test_windows_show_each_atom_the_right_neighbours(count: int) -> None:
    windows = AtomWindows.of(count, 32, 128)
    index = torch.arange(1, count + 1)[:, None]
    queries, keys = windows.queries(index)[..., 0], windows.keys(index)[..., 0]
    assert torch.equal(windows.join(windows.queries(index)), index)
    for row, seen in zip(queries, keys, strict=True):
        for atom in row[row > 0].tolist():
            start = (atom - 1) // 32 * 32 - 48
            wanted = [i + 1 for i in range(start, start + 128) if 0 <= i < count]
            assert seen[seen > 0].tolist() == wanted
    assert windows.is_whole == (count <= 64)


def test_copies_of_a_system_cost_no_memory() -> None:
    features = Features.stack([toy_features(3, 2)])
    copies = features.expand(5)
    assert copies.ref_pos.shape[0] == 5
    assert copies.ref_pos.data_ptr() == features.ref_pos.data_ptr()
    context = Context(*(torch.randn(1, 2, 3) for _ in range(3)))
    assert context.expand(4).s.data_ptr() == context.s.data_ptr()


# ---- symmetries -----------------------------------------------------------------------------


def moved(positions: torch.Tensor) -> torch.Tensor:
    turn = torch.from_numpy(Rotation.random(random_state=3).as_matrix())
    return positions @ turn.T + torch.tensor([100.0, -50.0, 7.0])


def encoded(config: ATMOSConfig, *frames: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Tokens and pairs of the encoder for each frame."""
    network = random_network(config)
    features = Features.stack([toy_features(3, 4)])
    with torch.no_grad():
        context = network.context(features)
        return [network.geometric_encoder(x, features, context.s, context.z) for x in frames]


def test_local_encoding_does_not_depend_on_the_pose_but_on_handedness() -> None:
    positions = coordinates(1, toy_features(3, 4).n_atoms)
    here, there, mirrored = encoded(SMALL, positions, moved(positions), -positions)
    for ours, theirs, mirror in zip(here, there, mirrored, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert (ours - mirror).abs().max() > 1e-3


def test_augmented_encoding_depends_on_rotations_in_its_tokens_only() -> None:
    positions = coordinates(1, toy_features(3, 4).n_atoms)
    config = CONFIGS["augment-concat-shared"]
    here, there, shifted = encoded(config, positions, moved(positions), positions + 100.0)
    torch.testing.assert_close(here.z, there.z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(here.s, shifted.s, rtol=1e-9, atol=1e-9)
    assert (here.s - there.s).abs().max() > 1e-3


def test_atoms_of_a_frame_that_is_not_valid_do_not_matter() -> None:
    network = random_network()
    features = Features.stack([toy_features(3, 4)])
    other = features.frame_atoms.clone()
    other[~features.frame_mask] = torch.tensor([1, 5, 9])
    changed = dataclasses.replace(features, frame_atoms=other)
    positions = coordinates(1, features.n_atoms)
    with torch.no_grad():
        context = network.context(features)
        encode = network.geometric_encoder
        plain = encode(positions, features, context.s, context.z)
        found = encode(positions, changed, context.s, context.z)
    assert (other != features.frame_atoms).any()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, plain, strict=True))


def test_positions_in_double_far_away_serve_weights_in_single() -> None:
    exact, network = random_network(), random_network().float()
    features = Features.stack([toy_features(3, 2)])
    positions = coordinates(1, features.n_atoms)
    with torch.no_grad():
        context = exact.context(features)
        expected = exact.step(exact.initial_memory(context), positions, features, context)
        context = network.context(features)
        memory = network.initial_memory(context)
        found = network.step(memory, positions + 1e5, features, context)
    assert found.z.dtype == torch.float32
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-4)


def test_the_denoiser_is_not_equivariant() -> None:
    network = random_network()
    features = Features.stack([toy_features(2)])
    with torch.no_grad():
        context = network.context(features)
        ready = network.conditioning(network.initial_memory(context), features, context)
        x = coordinates(1, features.n_atoms)[:, None]
        sigma = torch.ones(1, 1).double()
        turn = torch.from_numpy(Rotation.random(random_state=1).as_matrix())
        turned = network.diffusion_module(x @ turn.T, sigma, ready)
        assert (turned - network.diffusion_module(x, sigma, ready) @ turn.T).abs().max() > 1e-3


def test_pair_geometry_by_hand() -> None:
    features = Features.stack([toy_features(2)])
    positions = torch.zeros(1, features.n_atoms, 3, dtype=torch.float64)
    # Frame of the first residue: axes along (1, 1, 0), (1, -1, 0) and -z; origin at atom 1.
    positions[0, :4] = torch.tensor([[0.0, 2, 0], [0, 0, 0], [3, 0, 0], [0, 0, 1]])
    # Second residue: the same frame, moved by 10 along x; representative atom at (3, 0, 5).
    positions[0, 4:8] = torch.tensor([[10.0, 2, 0], [10, 0, 0], [13, 0, 0], [3, 0, 5]])
    pairs = pair_geometry(positions, features, ATMOSConfig())[0]
    histogram, first, second, flags = pairs.split([64, 3, 3, 2], dim=-1)
    edges = np.linspace(2.3125, 21.6875, 63)
    assert histogram[0, 1].argmax() == np.sum(edges < 5.0)
    assert histogram[0, 0].argmax() == 0
    assert torch.equal(histogram.sum(-1), torch.ones(2, 2).double())
    # The direction from one to the other is (0.6, 0, 0.8).
    seen = torch.tensor([0.6 * math.sqrt(0.5), 0.6 * math.sqrt(0.5), -0.8], dtype=torch.float64)
    torch.testing.assert_close(first[0, 1], seen)
    torch.testing.assert_close(second[1, 0], seen)
    torch.testing.assert_close(first[1, 0], -second[1, 0])
    assert not first[0, 0].any()
    assert flags.all()
    lost = dataclasses.replace(features, frame_mask=torch.tensor([[True, False]]))
    _, first, second, flags = pair_geometry(positions, lost, ATMOSConfig())[0].split(
        [64, 3, 3, 2], dim=-1
    )
    assert first[0, 1].any()
    assert not first[1, 0].any()
    assert not second[0, 1].any()
    assert flags[0, 1].tolist() == [1.0, 0.0]


# ---- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_step_leaves_its_memory_alone_and_repeats_exactly(config: ATMOSConfig) -> None:
    network = random_network(config)
    features = Features.stack([toy_features(2, 2)] * 2)
    positions = coordinates(2, features.n_atoms)
    given = extras(config, 2, features.n_atoms)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        context = network.context(features)
        memory = network.initial_memory(context)
        kept = [tensor.clone() for tensor in (*memory, *context)]
        new = network.step(memory, positions, features, context, **given)
        draw(network, new, features, context, generator())
        again = network.step(memory, positions, features, context, **given)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*memory, *context), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(new, again, strict=True))
    assert new.step.tolist() == [1, 1]
    assert (new.z - memory.z).abs().max() > 1e-3
    assert all(torch.equal(weights[name], now) for name, now in network.state_dict().items())


def test_the_index_of_the_step_matters_up_to_the_length_of_the_table() -> None:
    network = random_network(dataclasses.replace(SMALL, max_steps=3))
    features = Features.stack([toy_features(2)] * 5)
    positions = coordinates(1, features.n_atoms).expand(5, -1, -1)
    with torch.no_grad():
        context = network.context(features)
        memory = network.initial_memory(context)._replace(step=torch.tensor([0, 1, 2, 3, 9]))
        s = network.step(memory, positions, features, context).s
    assert all((s[0] - s[k]).abs().max() > 1e-3 for k in (1, 2))
    torch.testing.assert_close(s[3:], s[2:3].expand(2, -1, -1))


def test_what_the_interpolator_is_told_matters() -> None:
    config = CONFIGS["interpolator"]
    network = random_network(config)
    features = Features.stack([toy_features(2)])
    positions, end = coordinates(1, features.n_atoms), coordinates(1, features.n_atoms, seed=5)
    with torch.no_grad():
        context = network.context(features)
        memory = network.initial_memory(context)

        def tokens(end: torch.Tensor, remaining: int) -> torch.Tensor:
            left = torch.tensor([remaining])
            return network.step(memory, positions, features, context, end=end, remaining=left).s

        plain = tokens(end, 2)
        torch.testing.assert_close(tokens(moved(end), 2), plain, rtol=1e-9, atol=1e-9)
        assert (tokens(positions, 2) - plain).abs().max() > 1e-3
        assert (tokens(end, 3) - plain).abs().max() > 1e-3
        for wrong in (0, 6):
            with pytest.raises(InputError, match=rf"\[{wrong}\] must be between 1 and 5"):
                tokens(end, wrong)
        with pytest.raises(InputError, match="needs the end frame and the remaining steps"):
            network.step(memory, positions, features, context, end=end)


def test_arguments_that_do_not_fit_the_model_are_refused() -> None:
    features = Features.stack([toy_features(2)])
    positions, lag = coordinates(1, features.n_atoms), torch.ones(1)
    for name, given, message in (
        ("default", {"lag": lag}, "tau='step' takes no lag"),
        ("no-embeddings-lag", {}, "tau='lag' needs lag"),
        ("no-embeddings-lag", {"lag": -lag}, r"lag=\[-1\.0\] ps.*must be positive"),
        ("default", {"end": positions}, r"not an interpolator \(max_remaining=0\)"),
    ):
        network = random_network(CONFIGS[name])
        context = network.context(features)
        memory = network.initial_memory(context)
        with pytest.raises(InputError, match=message):
            network.step(memory, positions, features, context, **given)


# ---- training pass --------------------------------------------------------------------------


def window(config: ATMOSConfig, features: Features, seed: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of a training pass over three frames with two noisy copies."""
    batch, atoms = len(features.restype), features.n_atoms
    frames = coordinates(3 * batch, atoms, seed).view(batch, 3, atoms, 3)
    noisy, sigma = training_noise(frames[:, 0], features.atom_mask, 2, config, generator(seed))
    given = extras(config, batch, atoms)
    if "remaining" in given:
        given["remaining"] = torch.full((batch,), config.max_remaining)
    return {"frames": frames, "noisy": noisy, "sigma": sigma, **given}


def test_predicted_distances_are_symmetric() -> None:
    features = Features.stack([toy_features(2, 3)])
    with torch.no_grad():
        out = denoise_window(random_network(), features, **window(SMALL, features))
    assert torch.equal(out.distogram, out.distogram.transpose(1, 2))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_parameter_takes_part(config: ATMOSConfig) -> None:
    config = dataclasses.replace(config, context_cycles=2)
    network = random_network(config)
    features = Features.stack([toy_features(3, 3)])
    out = denoise_window(network, features, **window(config, features))
    (out.denoised.square().sum() + out.distogram.square().sum()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_gradients_reach_the_last_cycle_only() -> None:
    embedder = random_network().context_embedder
    features = Features.stack([toy_features(2)])
    once = embedder(features).z
    embedder.cycles = 2
    twice = embedder(features).z
    assert (once - twice).abs().max() > 1e-3
    sizes = [_graph_size(tensor) for tensor in (once, twice)]
    # The second cycle adds nothing but the linear map of what the first one left behind.
    assert sizes[1] <= sizes[0] + 10


def _graph_size(tensor: torch.Tensor) -> int:
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


def test_dropout_shares_its_mask_along_one_axis() -> None:
    stack = PairStack(dataclasses.replace(SMALL, pair_dropout=0.5))
    ones = torch.ones(2, 5, 5, 4)
    rows = stack._drop(ones, shared=-3)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert set(rows.unique().tolist()) == {0.0, 2.0}
    columns = stack._drop(ones, shared=-2)
    assert torch.equal(columns, columns[:, :, :1].expand_as(columns))
    assert torch.equal(stack.eval()._drop(ones, shared=-3), ones)


# ---- noise and sampler ----------------------------------------------------------------------


def test_samples_follow_from_the_state_of_the_generator_alone() -> None:
    network = random_network()
    features = Features.stack([toy_features(2, 2)] * 2)
    with torch.no_grad():
        context = network.context(features)
    memory = network.initial_memory(context)
    source = generator(4)
    state, ambient = source.get_state(), torch.get_rng_state()
    first = draw(network, memory, features, context, source, samples=3)
    later = draw(network, memory, features, context, source, samples=3)
    source.set_state(state)
    assert torch.equal(draw(network, memory, features, context, source, samples=3), first)
    assert torch.equal(draw(network, memory, features, context, source, samples=3), later)
    assert torch.equal(torch.get_rng_state(), ambient)
    assert (first - later).abs().max() > 1e-3
    assert (first[:, 0] - first[:, 1]).abs().max() > 1e-3
    assert not first.requires_grad
    other = draw(network, memory, features, context, generator(5), samples=3)
    assert (first - other).abs().max() > 1e-3


def test_the_ode_sampler_adds_no_noise() -> None:
    assert SMALL.sampler.ode() == SamplerConfig(steps=3, gamma_0=0.0, step_scale=1.0)


@pytest.mark.parametrize("kind", ["sde", "ode"])
def test_the_sampler_reproduces_a_normal_distribution(kind: str) -> None:
    """For data of variance v the exact denoiser is ``x v / (v + σ²)``."""
    sampler = SamplerConfig(
        steps=300, s_max=50.0, gamma_min=0.05, gamma_0=0.02, noise_scale=1.0, step_scale=1.0
    )
    if kind == "ode":
        sampler = sampler.ode()
    width, atoms, copies = 1.7, 10, 400
    mask = torch.ones(1, atoms, dtype=torch.bool)
    shape = (1, copies, atoms, 3)
    source = generator()
    start = torch.randn(shape, generator=source, dtype=torch.float64)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x * width**2 / (width**2 + sigma**2)[..., None, None]

    draws = random_steps(shape, 0.0, [source], start)
    x = run_sampler(denoise, start, draws, mask, sampler, width)[0]
    spread = (x - x.mean(1, keepdim=True)).square().sum() / (3 * copies * (atoms - 1))
    # 10,800 degrees of freedom; the finite steps cost one or two per cent.
    assert math.sqrt(spread) == pytest.approx(width, rel=0.04)


def test_noise_levels_fall_from_the_largest_to_zero() -> None:
    sampler = SamplerConfig(steps=8, s_max=40.0)
    levels = noise_levels(sampler, 2.0)
    assert levels[0] == pytest.approx(80.0)
    assert levels[-1] == 0.0
    assert len(levels) == 9
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_random_poses_are_proper_uniform_rotations() -> None:
    pose = random_pose((2000,), 3.0, [generator()], torch.empty(0, dtype=torch.float64))
    identity = torch.eye(3).double().expand(2000, 3, 3)
    product = pose.rotation @ pose.rotation.transpose(1, 2)
    torch.testing.assert_close(product, identity, rtol=0, atol=1e-12)
    assert torch.linalg.det(pose.rotation).min() > 0.999
    # Entries of a uniform rotation have mean 0 and mean square 1/3.
    assert pose.rotation.mean(0).abs().max() < 0.06
    assert (pose.rotation.square().mean(0) - 1.0 / 3.0).abs().max() < 0.03
    assert pose.translation.std() == pytest.approx(3.0, rel=0.05)


def test_training_noise_has_the_stated_levels_and_poses() -> None:
    mask = torch.ones(1, 9, dtype=torch.bool)
    target = coordinates(1, 9) + 50.0
    config = ATMOSConfig()
    noisy, sigma = training_noise(target, mask, 4000, config, generator())
    ratio = torch.log(sigma / config.sigma_data)
    assert ratio.mean() == pytest.approx(-1.2, abs=0.1)
    assert ratio.std() == pytest.approx(1.5, rel=0.05)
    # Remove the mean: it holds translation and noise of the centre.
    spread = (noisy - noisy.mean(2, keepdim=True)).square().sum((-1, -2))
    clean = (target - target.mean(1, keepdim=True)).square().sum()
    excess = (spread - clean) / sigma.square()
    # Large levels only, where the noise dominates: 3 (9 - 1) degrees of freedom.
    assert excess[sigma > 30.0].mean() == pytest.approx(24.0, rel=0.05)
    assert (noisy.mean(2).square().mean() / (1.0 + sigma.square() / 9.0).mean()) == pytest.approx(
        1.0, rel=0.1
    )
    quiet = dataclasses.replace(config, noise_mean=-40.0, noise_std=1e-3)
    still, _ = training_noise(target, mask, 2, quiet, generator())
    for copy in still[0]:
        torch.testing.assert_close(torch.cdist(copy, copy), torch.cdist(target[0], target[0]))
    assert (still[0, 0] - still[0, 1]).abs().max() > 0.1


def test_random_numbers_do_not_depend_on_the_precision() -> None:
    target, mask = coordinates(1, 5), torch.ones(1, 5, dtype=torch.bool)
    exact, _ = training_noise(target, mask, 2, SMALL, generator())
    rounded, _ = training_noise(target.float(), mask, 2, SMALL, generator())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-5, atol=1e-4)


def test_an_untrained_denoiser_returns_the_scaled_input() -> None:
    network = ATMOS(SMALL).double()
    features = Features.stack([toy_features(2)])
    context = network.context(features)
    ready = network.conditioning(network.initial_memory(context), features, context)
    x, sigma = coordinates(1, features.n_atoms)[:, None], torch.tensor([[3.0]]).double()
    expected = x * 4.0**2 / (4.0**2 + 3.0**2)
    torch.testing.assert_close(network.diffusion_module(x, sigma, ready), expected)


# ---- losses ---------------------------------------------------------------------------------


def test_alignment_finds_the_rotation_and_no_reflection() -> None:
    mobile = coordinates(3, 8)
    fixed = moved(mobile)
    weights = torch.rand(3, 8, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(align(mobile, fixed, weights), fixed)
    mirrored = align(-mobile, fixed, weights)
    assert (mirrored - fixed).abs().max() > 1.0
    distances = torch.cdist(mirrored, mirrored)
    torch.testing.assert_close(distances, torch.cdist(mobile, mobile))


def test_alignment_is_that_of_scipy() -> None:
    mobile, fixed = coordinates(2, 8).unbind(0)
    weights = torch.rand(8, generator=generator(), dtype=torch.float64)
    a, b = (x - np.average(x, axis=0, weights=weights) for x in (mobile.numpy(), fixed.numpy()))
    rotation, _ = Rotation.align_vectors(b, a, weights=weights)
    expected = rotation.apply(a) + np.average(fixed, axis=0, weights=weights)
    np.testing.assert_allclose(align(mobile, fixed, weights).numpy(), expected, atol=1e-12)


def test_alignment_ignores_atoms_without_weight_and_flat_molecules_work() -> None:
    mobile = coordinates(1, 5)[0]
    mobile[:, 2] = 0.0
    fixed = moved(mobile)
    fixed[4] += 30.0
    weights = torch.tensor([1.0, 1, 1, 1, 0]).double()
    torch.testing.assert_close(align(mobile, fixed, weights)[:4], fixed[:4])


def test_diffusion_loss_by_hand() -> None:
    # Two atoms on an axis: the aligned target has the same axis and the same centre.
    target = torch.tensor([[[0.0, 0, 0], [0, 4, 0]]]).double()
    denoised = torch.tensor([[[[7.0, 0, 0], [13, 0, 0]], [[0, 0, 0], [4, 0, 0]]]]).double()
    sigma = torch.tensor([[2.0, 1.0]]).double()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = diffusion_loss(denoised, target, sigma, torch.ones(1, 2).double(), mask, 4.0)
    # The first copy is 6 long instead of 4: each atom is 1 off.
    expected = (2.0**2 + 4.0**2) / (2.0 * 4.0) ** 2 * (1.0 + 1.0) / (3 * 2) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    # With weights 3 and 1 the centroids are nearer to the first atom: it is 0.5 off, the other 1.5.
    weights = torch.tensor([[3.0, 1.0]]).double()
    loss = diffusion_loss(denoised[:, :1], target, sigma[:, :1], weights, mask, 4.0)
    assert loss.item() == pytest.approx(20 / 64 * (3 * 0.25 + 2.25) / 6, rel=1e-6)


def test_no_gradient_flows_through_the_alignment() -> None:
    target, mask = coordinates(1, 6), torch.ones(1, 6, dtype=torch.bool)
    denoised = coordinates(2, 6, seed=1)[None].requires_grad_()
    weights = torch.rand(1, 6, generator=generator(), dtype=torch.float64)
    sigma = torch.full((1, 2), 4.0).double()
    loss = diffusion_loss(denoised, target, sigma, weights, mask, 4.0)
    (grad,) = torch.autograd.grad(loss, denoised)
    aligned = align(target[:, None], denoised, weights[:, None])
    factor = 2.0 / 16.0 / (3 * 6) / 2
    expected = factor * 2.0 * weights[:, None, :, None] * (denoised - aligned)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-12)


def test_weights_of_atoms() -> None:
    features = Features.stack([toy_features(1, 2), toy_features(1)])
    weights = atom_weights(features, LossConfig(), torch.float64)
    assert weights.tolist() == [[1.0] * 4 + [11.0] * 2, [1.0] * 4 + [0.0] * 2]


def test_distogram_loss_by_hand() -> None:
    features = Features.stack([toy_features(2), toy_features(1)])
    target = torch.zeros(2, features.n_atoms, 3).double()
    target[:, 7, 0] = 5.0
    logits = torch.zeros(2, 2, 2, 64).double()
    uniform = distogram_loss(logits, target, features, SMALL)
    assert uniform.item() == pytest.approx(math.log(64), rel=1e-5)
    far = int(np.sum(np.linspace(2.3125, 21.6875, 63) < 5.0))
    assert distance_bins(torch.tensor([5.0]), 2.3125, 21.6875, 64).item() == far
    logits[0, 0, 1, far] = math.log(63.0)
    better = distogram_loss(logits, target, features, SMALL)
    # One of the four pairs of the first system now has probability 1/2 instead of 1/64.
    gain = (math.log(64) - math.log(2)) / 4 / 2
    assert (uniform - better).item() == pytest.approx(gain, rel=1e-5)
    logits[1, 0, 1] = logits[1, 1] = torch.rand(64).double()
    assert torch.equal(distogram_loss(logits, target, features, SMALL), better)


def test_smooth_lddt_by_hand() -> None:
    mask = torch.tensor([[True, True, True, True, False]])
    target = torch.zeros(1, 5, 3).double()
    target[0, :, 0] = torch.tensor([0.0, 3.0, 6.0, 100.0, 1.0])
    perfect = smooth_lddt_loss(moved(target)[:, None], target, mask)
    sigmoid = [1.0 / (1.0 + math.exp(-t)) for t in (0.5, 1.0, 2.0, 4.0)]
    assert perfect.item() == pytest.approx(1.0 - sum(sigmoid) / 4, rel=1e-6)
    worse = target.clone()
    worse[0, 2, 0] = 8.0
    # Of the three near pairs two are now 2 Å too long.
    spoilt = [1.0 / (1.0 + math.exp(2.0 - t)) for t in (0.5, 1.0, 2.0, 4.0)]
    expected = 1.0 - (sum(sigmoid) + 2 * sum(spoilt)) / 12
    assert smooth_lddt_loss(worse[:, None], target, mask).item() == pytest.approx(expected, 1e-6)


def test_bond_loss_by_hand() -> None:
    target = torch.tensor([[[0.0, 0, 0], [1.5, 0, 0], [1.5, 1, 0]]]).double()
    denoised = torch.tensor([[[[0.0, 0, 0], [2.0, 0, 0], [2.0, 1.1, 0]]]]).double()
    bonds = torch.tensor([[[0, 1], [1, 2], [0, 0]]])
    mask = torch.tensor([[True, True, False]])
    loss = bond_loss(denoised, target, bonds, mask)
    assert loss.item() == pytest.approx((0.5**2 + 0.1**2) / 2)


def test_the_training_loss_is_the_weighted_sum_of_its_terms() -> None:
    network = random_network()
    features = Features.stack([toy_features(2, 2), toy_features(2)])
    given = window(SMALL, features)
    target, sigma = given["frames"][:, 0], given["sigma"]
    bonds = torch.tensor([[[0, 1], [1, 2]]]).expand(2, -1, -1)
    known = (bonds, torch.ones(2, 2, dtype=torch.bool))
    with torch.no_grad():
        out = denoise_window(network, features, **given)
        plain = training_loss(out, target, sigma, features, SMALL, LossConfig())
        weights = LossConfig(
            diffusion=2.0, distogram=3.0, smooth_lddt=5.0, bond=7.0, ligand_atom=1.0
        )
        every = training_loss(out, target, sigma, features, SMALL, weights, *known)
        with pytest.raises(InputError, match=r"bond term has weight 7\.0 but no bonds"):
            training_loss(out, target, sigma, features, SMALL, weights)
        bare = training_loss(out, target, sigma, features, SMALL, LossConfig(distogram=0.0))
    assert set(plain) == {"loss", "diffusion", "distogram"}
    torch.testing.assert_close(plain["loss"], 4 * plain["diffusion"] + 0.03 * plain["distogram"])
    total = sum(w * every[n] for n, w in dataclasses.asdict(weights).items() if n in every)
    torch.testing.assert_close(every["loss"], total)
    assert set(every) == {"loss", "diffusion", "distogram", "smooth_lddt", "bond"}
    assert every["diffusion"] < plain["diffusion"]
    assert torch.equal(bare["loss"], 4 * bare["diffusion"])


# ---- weights of others ----------------------------------------------------------------------


PROTENIX_SAMPLE = {
    "input_embedder.atom_attention_encoder.linear_no_bias_f.weight": (128, 385),
    "relative_position_encoding.linear_no_bias.weight": (128, 139),
    "linear_no_bias_sinit.weight": (384, 449),
    "linear_no_bias_zinit2.weight": (128, 384),
    "layernorm_z_cycle.bias": (128,),
    "msa_module.blocks.3.outer_product_mean_msa.linear_out.weight": (128, 1024),
    "msa_module.blocks.2.msa_stack.transition_m.linear_no_bias_a.weight": (256, 64),
    "pairformer_stack.blocks.47.tri_att_end.mha.linear_o.weight": (128, 128),
    "pairformer_stack.blocks.0.attention_pair_bias.linear_nobias_z.weight": (16, 128),
    "diffusion_module.diffusion_conditioning.relpe.linear_no_bias.weight": (128, 139),
    "diffusion_module.diffusion_conditioning.fourier_embedding.w": (256,),
    "diffusion_module.atom_attention_encoder.linear_no_bias_r.weight": (128, 3),
    "diffusion_module.diffusion_transformer.blocks.23.conditioned_transition_block."
    "linear_nobias_a1.weight": (1536, 768),
    "diffusion_module.atom_attention_decoder.atom_transformer.diffusion_transformer.blocks.2."
    "attention_pair_bias.layernorm_kv.linear_s.bias": (128,),
    "distogram_head.linear.bias": (64,),
}
"""Some names and shapes of the released base model."""


def test_the_paper_size_has_the_stated_parameters() -> None:
    with torch.device("meta"):
        network = ATMOS(ATMOSConfig())

    def count(tensors: dict[str, torch.Tensor]) -> int:
        return sum(tensor.numel() for tensor in tensors.values())

    shared = protenix_names(network)
    for name, shape in PROTENIX_SAMPLE.items():
        assert shared[name].shape == shape, name
    assert (len(shared), count(shared)) == (3837, 355_162_545)
    assert count(network.diffusion_module.state_dict()) == 203_257_585
    blocks = network.transition.blocks.state_dict()
    extra = {name: tensor for name, tensor in blocks.items() if ".s_to_z_" in name}
    assert count(extra) == 396_288
    assert count(blocks) - count(extra) == 12_283_392
    assert count(network.geometric_encoder.state_dict()) == pytest.approx(1.1e6, rel=0.05)
    assert count(network.state_dict()) == pytest.approx(369e6, rel=0.005)


@pytest.mark.parametrize(("name", "size"), [("xs", 0.85e6), ("s", 5.5e6), ("m", 26.8e6)])
def test_sizes_of_the_presets(name: str, size: float) -> None:
    with torch.device("meta"):
        network = ATMOS(ATMOSConfig.preset(name))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(size, rel=0.02)


def foreign_checkpoint(config: ATMOSConfig) -> dict[str, torch.Tensor]:
    """Random tensors under the names of a released checkpoint."""
    names = protenix_names(ATMOS(config))
    assert not any(name.startswith("context_embedder") for name in names)
    return {
        name: torch.randn(tensor.shape, generator=generator(index))
        for index, (name, tensor) in enumerate(names.items())
    }


WITH_MSA = dataclasses.replace(SMALL, msa_blocks=2, c_m=6)
WIDER = dataclasses.replace(
    WITH_MSA, c_s=24, c_z=12, single_heads=3, context_blocks=2, diffusion_blocks=3, c_diffusion=20
)


@pytest.mark.parametrize(
    ("config", "prefix", "nested"),
    [(WITH_MSA, "", True), (WIDER, "module.", False)],
    ids=["small", "wider"],
)
def test_a_foreign_checkpoint_is_taken_over(config: ATMOSConfig, prefix: str, nested: bool) -> None:
    state = foreign_checkpoint(config)
    unused = ("template_embedder.linear.weight", "confidence_head.a.bias", "constraint_embedder.b")
    whole = {prefix + name: tensor for name, tensor in state.items()}
    whole |= {prefix + name: torch.zeros(1) for name in (*unused, "surprise.weight")}
    network = ATMOS(config)
    own = {name: t.clone() for name, t in network.state_dict().items()}
    report = load_protenix(network, {"model": whole, "step": 3} if nested else whole)
    assert set(report.loaded) == set(state)
    assert set(report.unused) == set(unused)
    assert report.unknown == ("surprise.weight",)
    for name, tensor in protenix_names(network).items():
        assert torch.equal(tensor, state[name])
    kept = ("geometric_encoder.", "transition.")
    for name, tensor in network.state_dict().items():
        if name.startswith(kept):
            assert torch.equal(tensor, own[name])


def test_a_network_without_alignment_module_leaves_those_weights_out() -> None:
    state = foreign_checkpoint(WITH_MSA)
    report = load_protenix(ATMOS(SMALL), state)
    assert report.unused
    assert all(name.startswith("msa_module.") for name in report.unused)
    assert not report.unknown


def test_checkpoints_of_another_network_are_refused_and_change_nothing() -> None:
    network = ATMOS(SMALL)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = foreign_checkpoint(SMALL)
    incomplete = {name: t for name, t in state.items() if "distogram" not in name}
    larger = foreign_checkpoint(dataclasses.replace(SMALL, context_blocks=2))
    wider = foreign_checkpoint(dataclasses.replace(SMALL, c_diffusion=20))
    for checkpoint, message in (
        (incomplete, "lacks 2 entries.*distogram_head.linear.bias"),
        (larger, r"no place for.*pairformer_stack\.blocks\.1\."),
        (wider, r"another shape.*diffusion_module.*\(20, 8\) instead of \(16, 8\)"),
        ({"model": [1, 2]}, "neither a dictionary of tensors"),
        ({"epoch": 3}, "neither a dictionary of tensors"),
    ):
        with pytest.raises(ModelFileError, match=message):
            load_protenix(network, checkpoint)
    now = network.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())


# ---- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ATMOSConfig(), *CONFIGS.values()])
def test_configuration_round_trip(config: ATMOSConfig) -> None:
    assert ATMOSConfig.from_dict(config.to_dict()) == config


def test_presets() -> None:
    assert ATMOSConfig.preset("paper") == ATMOSConfig()
    assert {ATMOSConfig.preset(name).c_s for name in PRESETS} == {64, 128, 192, 384}
    changed = ATMOSConfig.preset("xs", sigma_data=2.0, sampler={"steps": 7})
    assert (changed.sigma_data, changed.sampler.steps, changed.c_z) == (2.0, 7, 32)
    with pytest.raises(ConfigError, match="preset='xl'; choose one of xs, s, m, paper"):
        ATMOSConfig.preset("xl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c_s": 0}, "c_s=0; it must be a whole number"),
        ({"msa_blocks": -1}, "msa_blocks=-1; it must be a whole number from 0"),
        ({"transition_blocks": True}, "transition_blocks=True"),
        ({"c_s": 20, "single_heads": 3}, "c_s=20 is not a multiple of single_heads=3"),
        ({"c_atom": 30}, "c_atom=30 is not a multiple of atom_heads=4"),
        ({"c_diffusion": 100}, "c_diffusion=100 is not a multiple of diffusion_heads=16"),
        ({"coord_mode": "global"}, "coord_mode='global'; choose one of local, augment"),
        ({"encoder_state": "both"}, "encoder_state='both'"),
        ({"update": "mean"}, "update='mean'"),
        ({"single_to_pair": "all"}, "single_to_pair='all'"),
        ({"tau": "none"}, "tau='none'; choose one of step, lag"),
        ({"pair_dropout": 1.0}, "pair_dropout=1.0"),
        ({"sigma_data": 0.0}, "sigma_data=0.0; it must be a positive number"),
        ({"noise_std": float("nan")}, "noise_std=nan"),
        ({"pose_translation": -1.0}, "pose_translation=-1.0"),
        ({"atom_keys": 33}, "atom_keys=33 must exceed atom_queries=32 by an even"),
        ({"distance_bins": 2}, "distance_bins=2"),
        ({"distogram_min": 9.0, "distogram_max": 8.0}, "distogram_min=9.0"),
        ({"layers": 3}, r"unknown ATMOS options \['layers'\]"),
        ({"sampler": {"order": 2}}, r"unknown ATMOS sampler options \['order'\]"),
        ({"sampler": {"steps": 0}}, "steps=0"),
        ({"sampler": {"gamma_0": -0.1}}, "gamma_0=-0.1"),
        ({"sampler": {"step_scale": 0.0}}, "step_scale=0.0"),
        ({"sampler": {"s_max": 1e-5}}, "s_max=1e-05 must exceed s_min"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ATMOSConfig.from_dict(options)


def test_negative_loss_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="bond=-1"):
        LossConfig(bond=-1.0)
    with pytest.raises(ConfigError, match="all terms of the loss have weight 0"):
        LossConfig(diffusion=0.0, distogram=0.0)
