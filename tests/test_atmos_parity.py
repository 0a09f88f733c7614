"""Agreement of ATMOS with Protenix for every case of known answers."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from torch import nn

from mlmd_calc.geometry.superposition import align
from mlmd_calc.models.atmos import ATMOSConfig, Context, Features, SamplerConfig
from mlmd_calc.models.atmos.atom_attention import AtomAttentionEncoder
from mlmd_calc.models.atmos.diffusion import DiffusionModule
from mlmd_calc.models.atmos.diffusion_transformer import DiffusionTransformer
from mlmd_calc.models.atmos.embedders import (
    ContextEmbedder,
    DistogramHead,
    InputFeatureEmbedder,
    RelativePositionEncoding,
)
from mlmd_calc.models.atmos.geometry import in_local_axes, local_axes
from mlmd_calc.models.atmos.losses import diffusion_loss, distogram_loss, smooth_lddt_loss
from mlmd_calc.models.atmos.pairformer import PairformerBlock, PairformerStack
from mlmd_calc.models.atmos.primitives import distance_bins
from mlmd_calc.models.atmos.sampler import Pose, StepNoise, noise_levels, run_sampler
from mlmd_calc.models.atmos.windows import AtomWindows

FOLDER = GOLDEN / "protenix"
ABSENT = f"no known answers at {FOLDER}; set MLMD_GOLDEN to the folder that holds protenix/"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
"""Largest error as a fraction of the largest answer."""
SUFFIX = {torch.float64: "f64", torch.float32: "f32"}
WINDOWS = ("one window", "several windows")


class Case:
    """Inputs, weights and answers of one file."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.name = name
        self.dtype = dtype
        self.checked: set[str] = set()

    def given(self, name: str) -> torch.Tensor:
        """Input with a batch axis, numbers with a fraction in the precision of the case."""
        tensor = torch.from_numpy(self.arrays[f"in.{name}"])
        return (tensor.to(self.dtype) if tensor.is_floating_point() else tensor)[None]

    def size(self, name: str) -> int:
        return int(self.arrays[f"cfg.{name}"])

    def setting(self, name: str) -> float:
        return float(self.arrays[f"in.{name}"])

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(FOLDER / f"{self.name}.safetensors")

    def fill(self, module: nn.Module) -> nn.Module:
        """Load the weights of the case, all of them and nothing else."""
        module.load_state_dict(self.weights())
        return module.to(self.dtype).eval()

    def answer(self, name: str) -> torch.Tensor:
        self.checked.add(name)
        key = f"out.{name}"
        key = key if key in self.arrays else f"{key}.{SUFFIX[self.dtype]}"
        return torch.from_numpy(self.arrays[key])

    def check(self, name: str, ours: torch.Tensor, tolerance: float | None = None) -> None:
        theirs = self.answer(name)
        assert ours.shape == theirs.shape, name
        error = (ours.detach() - theirs).abs().max() / theirs.abs().max()
        assert error <= (tolerance or TOLERANCE[self.dtype]), f"{name}: {error:.1e}"

    def all_answers_checked(self) -> None:
        names = {
            key[4:].removesuffix(".f32").removesuffix(".f64")
            for key in self.arrays
            if key.startswith("out.")
        }
        assert self.checked == names


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def molecule_features(case: Case) -> Features:
    """Features of a batch of one; frames, which these cases do not have, are left invalid."""
    restype = case.given("restype_idx")
    n, everything = restype.shape[1], torch.ones_like
    representative = case.given("distogram_rep_atom_mask")[0].nonzero()[:, 0]
    return Features(
        restype=restype,
        **{
            name: case.given(name)
            for name in ("asym_id", "entity_id", "sym_id", "residue_index", "token_index")
        },
        token_bonds=case.given("token_bonds").bool(),
        representative_atom=representative[None],
        frame_atoms=torch.zeros(1, n, 3, dtype=torch.long),
        frame_mask=torch.zeros(1, n, dtype=torch.bool),
        token_mask=everything(restype, dtype=torch.bool),
        atom_to_token=case.given("atom_to_token_idx"),
        ref_pos=case.given("ref_pos"),
        ref_mask=case.given("ref_mask").bool(),
        ref_element=case.given("ref_element_idx"),
        ref_charge=case.given("ref_charge"),
        ref_atom_name_chars=case.given("ref_atom_name_char_idx"),
        ref_space_uid=case.given("ref_space_uid"),
        is_ligand=case.given("is_ligand").bool(),
        atom_mask=everything(case.given("atom_to_token_idx"), dtype=torch.bool),
        profile=case.given("profile"),
        deletion_mean=case.given("deletion_mean"),
    )


def pairformer_config(case: Case) -> ATMOSConfig:
    return ATMOSConfig(
        c_s=case.size("c_s"),
        c_z=case.size("c_z"),
        c_triangle=case.size("c_hidden_mul"),
        triangle_heads=case.size("no_heads_pair"),
        triangle_head_width=case.size("c_hidden_pair_att"),
        single_heads=case.size("n_heads"),
        pair_transition_factor=case.size("num_intermediate_factor"),
    )


def check_masks(case: Case, module: nn.Module) -> None:
    """Check the three kinds of mask of a Pairformer case."""
    s, z = case.given("s"), case.given("z")
    pair_mask, tokens = case.given("pair_mask") > 0, case.given("token_mask") > 0
    with torch.no_grad():
        for names, mask in ((("s", "z"), pair_mask), (("s_nomask", "z_nomask"), None)):
            for name, out in zip(names, module(s, z, mask, None), strict=True):
                case.check(name, out[0])
        both = tokens[:, :, None] & tokens[:, None]
        _, out = module(s, z, both, None)
        case.check("z_tokenmask_valid", out[0] * both[0, ..., None])


def test_pairformer_block(dtype: torch.dtype) -> None:
    case = Case("pairformer_block", dtype)
    block = case.fill(PairformerBlock(pairformer_config(case)))
    updates: dict[str, torch.Tensor] = {}
    for name, module in block.named_children():
        module.register_forward_hook(lambda _m, _i, out, name=name: updates.update({name: out}))
    with torch.no_grad():
        block(case.given("s"), case.given("z"), case.given("pair_mask") > 0, None)
    for name, update in updates.items():
        case.check(name, update[0])
    check_masks(case, block)
    case.all_answers_checked()


def test_pairformer_stack(dtype: torch.dtype) -> None:
    case = Case("pairformer_stack", dtype)
    check_masks(case, case.fill(PairformerStack(pairformer_config(case), case.size("n_blocks"))))
    case.all_answers_checked()


def test_diffusion_transformer(dtype: torch.dtype) -> None:
    case = Case("diffusion_transformer", dtype)
    sizes = [case.size(name) for name in ("c_a", "c_s", "c_z", "n_blocks", "n_heads")]
    module = case.fill(DiffusionTransformer(*sizes, cross=False))
    block = module.blocks[0]
    a, s, z = (case.given(name) for name in ("a", "s", "z"))
    with torch.no_grad():
        case.check("a", module(a, module.conditions(s), module.biases(z))[0])
        # Both branches were recorded for the input of the block.
        attention = block.attention_pair_bias
        attended = attention(a, attention.conditions(s), attention.bias(z), None)
        case.check("block0.attention_pair_bias", attended[0])
        transition = block.conditioned_transition_block
        updated = transition(a, transition.conditions(s))
        case.check("block0.conditioned_transition", updated[0])
    case.all_answers_checked()


def use_windows(monkeypatch: pytest.MonkeyPatch, make: str) -> None:
    """Let short sequences have one window, as they do, or several, as longer ones do."""
    if make == "several windows":
        several = lambda a, q, k: AtomWindows(a, q, k, (k - q) // 2)  # noqa: E731
        monkeypatch.setattr(AtomWindows, "of", several)


def trunk_config(case: Case) -> ATMOSConfig:
    return ATMOSConfig(
        c_s=case.size("c_s"),
        c_z=case.size("c_z"),
        c_token=case.size("c_token"),
        c_atom=case.size("c_atom"),
        c_atompair=case.size("c_atompair"),
        c_m=case.size("c_m"),
        single_heads=case.size("pairformer_heads"),
        context_blocks=case.size("pairformer_blocks"),
        context_cycles=case.size("N_cycle"),
        msa_blocks=case.size("msa_blocks"),
    )


@pytest.mark.parametrize("windows", WINDOWS)
def test_input_feature_embedder(
    dtype: torch.dtype, windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_windows(monkeypatch, windows)
    case = Case("input_feature_embedder", dtype)
    config = ATMOSConfig(
        c_token=case.size("c_token"),
        c_atom=case.size("c_atom"),
        c_atompair=case.size("c_atompair"),
        context_atom_blocks=case.size("n_blocks"),
        atom_heads=case.size("n_heads"),
        atom_queries=case.size("n_queries"),
        atom_keys=case.size("n_keys"),
    )
    embedder = case.fill(InputFeatureEmbedder(config))
    features = molecule_features(case)
    encoder = embedder.atom_attention_encoder
    with torch.no_grad():
        case.check("s_inputs", embedder(features)[0])
        conditioning = encoder.conditioning(features)
        a, q = encoder(None, conditioning, encoder.atom_transformer.blocks(conditioning))
    case.check("a", a[0])
    case.check("q_l", q[0])
    case.check("c_l", conditioning.single[0])
    check_window_contents(case, encoder, conditioning.pair[0], features)
    relp = RelativePositionEncoding(139)
    nn.init.eye_(relp.linear_no_bias.weight)
    case.check("relp_sum", relp(features)[0].sum(-1).to(dtype))
    case.all_answers_checked()


def check_window_contents(
    case: Case, encoder: AtomAttentionEncoder, pair: torch.Tensor, features: Features
) -> None:
    """Compare pairs slot by slot, or, for a single window, atom by atom."""
    mask, uid = case.answer("mask_trunked") > 0, features.ref_space_uid[0]
    windows = encoder.windows(features)
    slots = torch.arange(32)[:, None] + 32 * torch.arange(2)[:, None, None]
    keys = torch.arange(128) - 48 + 32 * torch.arange(2)[:, None, None]
    inside = (slots < len(uid)) & (keys >= 0) & (keys < len(uid))
    assert torch.equal(mask, inside)
    slots, keys = torch.broadcast_tensors(slots, keys)
    if windows.count == 1:
        ours = torch.zeros(2, 32, 128, pair.shape[-1], dtype=pair.dtype)
        ours[mask] = pair[0, slots[mask], keys[mask]]
    else:
        ours = pair * mask[..., None]
    case.check("p_lm_masked", ours)
    same = uid[slots[mask]] == uid[keys[mask]]
    assert torch.equal(case.answer("v_lm")[mask] > 0, same)


def test_relative_position_encoding(dtype: torch.dtype) -> None:
    case = Case("relative_position_encoding", dtype)
    module = case.fill(RelativePositionEncoding(case.size("c_z")))
    names = ("asym_id", "residue_index", "entity_id", "sym_id", "token_index")
    blank = molecule_features(Case("trunk"))
    features = dataclasses.replace(blank, **{name: case.given(name) for name in names})
    with torch.no_grad():
        case.check("z", module(features)[0])
        code = RelativePositionEncoding(139)
        nn.init.eye_(code.linear_no_bias.weight)
        assert torch.equal(code(features)[0], case.answer("relp").float())
    case.all_answers_checked()


@pytest.mark.parametrize("windows", WINDOWS)
def test_trunk(dtype: torch.dtype, windows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_windows(monkeypatch, windows)
    case = Case("trunk", dtype)
    config = trunk_config(case)
    trunk = ContextEmbedder(config)
    trunk.distogram_head = DistogramHead(config.c_z, 64)
    case.fill(trunk)
    features = molecule_features(case)
    with torch.no_grad():
        aligned, trunk.msa_module = trunk(features), None
        plain, trunk.cycles = trunk(features), 1
        short = trunk(features)
        case.check("distogram_logits", trunk.distogram_head(plain.z)[0])
    case.check("s_inputs", plain.s_inputs[0])
    for suffix, out in (("", plain), ("_cycle1", short), ("_msa1", aligned)):
        case.check(f"s{suffix}", out.s[0])
        case.check(f"z{suffix}", out.z[0])
    case.all_answers_checked()


class FreeInputWidth(ATMOSConfig):
    """The decoder's cases have token inputs of a width that no embedder makes."""

    c_s_inputs = 33


def diffusion_module(dtype: torch.dtype) -> tuple[Case, DiffusionModule, Features]:
    case = Case("diffusion_module", dtype)
    assert case.size("c_s_inputs") == FreeInputWidth.c_s_inputs
    assert case.size("enc_blocks") == case.size("dec_blocks")
    assert case.size("enc_heads") == case.size("dec_heads")
    config = FreeInputWidth(
        c_atom=case.size("c_atom"),
        c_atompair=case.size("c_atompair"),
        c_s=case.size("c_s"),
        c_z=case.size("c_z"),
        single_heads=1,
        c_diffusion=case.size("c_token"),
        decoder_atom_blocks=case.size("enc_blocks"),
        atom_heads=case.size("enc_heads"),
        diffusion_blocks=case.size("dit_blocks"),
        diffusion_heads=case.size("dit_heads"),
        sigma_data=float(case.arrays["cfg.sigma_data"]),
    )
    return case, case.fill(DiffusionModule(config)), molecule_features(case)


@pytest.mark.parametrize("windows", WINDOWS)
def test_diffusion_module(
    dtype: torch.dtype, windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_windows(monkeypatch, windows)
    case, module, features = diffusion_module(dtype)
    context = Context(case.given("s_inputs"), case.given("s_trunk"), case.given("z_trunk"))
    sigma, noisy = case.given("sigma"), case.given("x_noisy")
    with torch.no_grad():
        conditioning = module.conditioning(features, *context)
        embedded = module.diffusion_conditioning
        tokens = embedded.noisy_tokens(conditioning.tokens, sigma)
        case.check("cond.s", tokens[0])
        case.check("cond.z", embedded.pairs(context.z, features)[0])
        case.check("fourier", embedded.fourier_embedding(torch.log(sigma[0] / 16.0) / 4.0))
        scaled = noisy / torch.sqrt(sigma**2 + 16.0**2)[..., None, None]
        a, q = module.atom_attention_encoder(
            scaled, conditioning.atoms, conditioning.encoder_blocks
        )
        case.check("enc.a", a[0])
        case.check("enc.q_l", q[0])
        case.check("enc.c_l", conditioning.atoms.single[0])
        case.check("r_update", module.update(scaled, sigma, conditioning)[0])
        case.check("x_denoised", module(noisy, sigma, conditioning)[0])
    case.all_answers_checked()


def test_the_frozen_fourier_features_are_the_official_ones() -> None:
    _, module, _ = diffusion_module(torch.float32)
    fresh = type(module.diffusion_conditioning.fourier_embedding)()
    official = Case("diffusion_module").weights()
    for name in ("w", "b"):
        key = f"diffusion_conditioning.fourier_embedding.{name}"
        assert torch.equal(getattr(fresh, name), official[key])


def test_noise_schedule() -> None:
    case = Case("noise_schedule")
    constants = {name: case.setting(name) for name in ("s_max", "s_min", "rho")}
    for steps in (5, 20, 50, 200):
        levels = noise_levels(SamplerConfig(steps=steps, **constants), case.setting("sigma_data"))
        case.check(f"N{steps}", torch.tensor(levels, dtype=torch.float64))
    case.all_answers_checked()


@pytest.mark.parametrize("kind", ["sde", "ode"])
def test_sampler_with_recorded_noise(kind: str, dtype: torch.dtype) -> None:
    case = Case(f"sampler_{kind}", dtype)
    _, module, features = diffusion_module(dtype)
    sampler = SamplerConfig(
        steps=int(case.setting("N_step")),
        gamma_0=case.setting("gamma0"),
        gamma_min=case.setting("gamma_min"),
        noise_scale=case.setting("noise_scale_lambda"),
        step_scale=case.setting("step_scale_eta"),
    )
    names = ("rot", "trans", "noise")
    recorded = zip(*(case.given(name)[0][:, None] for name in names), strict=True)
    draws = [StepNoise(Pose(rotation, shift), noise) for rotation, shift, noise in recorded]
    context = [case.given(name) for name in ("s_inputs", "s_trunk", "z_trunk")]
    steps: dict[str, list[torch.Tensor]] = {"x_noisy": [], "t_hat": [], "x_denoised": []}
    with torch.no_grad():
        conditioning = module.conditioning(features, *context)

        def denoise(noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            out = module(noisy, sigma, conditioning)
            for kept, value in zip(steps.values(), (noisy, sigma, out), strict=True):
                kept.append(value[0])
            return out

        final = run_sampler(
            denoise, case.given("init_normal"), draws, features.atom_mask, sampler, 16.0
        )
    levels = torch.tensor(noise_levels(sampler, 16.0), dtype=dtype)
    case.check("schedule", levels)
    for name, values in steps.items():
        case.check(name, torch.stack(values))
    case.check("x_final", final[0])
    case.all_answers_checked()


def test_losses(dtype: torch.dtype) -> None:
    case = Case("losses", dtype)
    prediction, target, mask = case.given("pred"), case.given("gt"), case.given("mask")
    sigma, sigma_data = case.given("sigma"), float(case.arrays["cfg.sigma_data"])
    for extra in (10, 0):
        weights = mask * (1.0 + extra * case.given("is_ligand"))
        case.check(f"weight_lig{extra}", weights[0])
        # The original moves missing atoms to the origin beforehand.
        mobile = (target * mask[..., None])[:, None]
        case.check(f"aligned_lig{extra}", align(mobile, prediction, weights[:, None])[0])
        loss = diffusion_loss(prediction, target, sigma, weights, mask, sigma_data)
        case.check(f"mse_lig{extra}", loss)
        # At levels far above its unit the noise factor is one over the unit squared.
        loss = diffusion_loss(prediction, target, torch.full_like(sigma, 1e9), weights, mask, 1.0)
        case.check(f"mse_noscale_lig{extra}", loss)
    case.check("smooth_lddt", smooth_lddt_loss(prediction, target, mask > 0), 1e-8)
    check_distogram_loss(case, target, mask)
    frames = case.given("frames")[0]
    axes = local_axes(*frames.unbind(1))
    offsets = case.given("points")[0] - frames[:, 1, None]
    case.check("express_in_frame", in_local_axes(axes[:, None], offsets))
    case.all_answers_checked()


def check_distogram_loss(case: Case, target: torch.Tensor, mask: torch.Tensor) -> None:
    config = ATMOSConfig()
    expected = [float(case.arrays[f"cfg.{name}"]) for name in ("min_bin", "max_bin", "no_bins")]
    assert [config.distogram_min, config.distogram_max, config.distogram_bins] == expected
    representative = case.given("distogram_rep_atom_mask")[0].nonzero()[:, 0]
    features = dataclasses.replace(
        molecule_features(Case("trunk")),
        representative_atom=representative[None],
        atom_mask=mask > 0,
    )
    loss = distogram_loss(case.given("distogram_logits"), target, features, config)
    case.check("disto_loss", loss)
    points = target[0, representative]
    distances = torch.linalg.vector_norm(points[:, None] - points, dim=-1)
    assert torch.equal(distance_bins(distances, *expected[:2], 64), case.answer("disto_bin"))
    present = mask[0, representative]
    case.check("disto_pair_mask", present[:, None] * present)
    atoms = torch.linalg.vector_norm(target[0][:, None] - target[0], dim=-1)
    near = (atoms < 15.0) & (mask[0][:, None] * mask[0] > 0) & ~torch.eye(len(atoms)).bool()
    case.check("lddt_mask_count", near.sum().to(target.dtype))


def test_every_file_is_checked() -> None:
    """The folder holds the files that the tests above read, and no others."""
    found = {path.stem for path in FOLDER.glob("*.npz")}
    assert found == {
        *("pairformer_block", "pairformer_stack", "diffusion_transformer", "trunk"),
        *("input_feature_embedder", "relative_position_encoding", "diffusion_module"),
        *("noise_schedule", "sampler_sde", "sampler_ode", "losses"),
    }
