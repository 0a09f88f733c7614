"""The model store: every layout loads to the same network, everything damaged is refused."""

import dataclasses
import fnmatch
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.zoo import ModelCard, list_models, load_any_model, load_model, manifest, save_model
from mlmd_calc.zoo.model_file import content_checksum, read_model
from mlmd_calc.zoo.run_directory import read_run_directory

GOLDEN = Path(
    os.environ.get("MLMD_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden")
)

SMALL = MDETConfig(n_layers=2, embd_dim=16, num_heads=4, num_3d_kernels=8)

CONFIGS = {
    "released": SMALL,
    "energy and dipole": dataclasses.replace(SMALL, target_heads=("energy", "dipole", "forces")),
    "wide heads, edge types": dataclasses.replace(SMALL, head_project_down=False, edge_types=True),
    "bessel": dataclasses.replace(SMALL, distances="bessel"),
    "bessel with edge types": dataclasses.replace(SMALL, distances="bessel", edge_types=True),
    "fourier": dataclasses.replace(SMALL, directions="fourier", electron_table=True),
    "harmonics": dataclasses.replace(
        SMALL, directions="spherical_harmonics", decomposer="diagonal", ffn_multiplier=3
    ),
    "post-norm relu": dataclasses.replace(SMALL, norm_first=False, activation="relu"),
    "conservative": dataclasses.replace(SMALL, energy_conserving=True),
}

ENERGIES = {1: -13.5, 6: -58.25, 8: -110.5}
CARD = {
    "name": "toy",
    "description": "A test.",
    "elements": [1, 8],
    "recommended": {"rotation": "average", "n_rotations": 4},
    "errors": {"held-out molecules": {"forces, meV/Å": 40.0}},
    "recipe": {"steps": 3},
}


def random_network(config: MDETConfig = SMALL, seed: int = 0) -> MDET:
    network = MDET(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def outputs(network: MDET) -> dict[str, torch.Tensor]:
    positions = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        return network.double()(positions, torch.tensor([[8, 1, 6, 1]]))


def same_outputs(first: MDET, second: MDET) -> bool:
    a, b = outputs(first), outputs(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def original_options(config: MDETConfig) -> dict:
    """Constructor arguments in the names of the authors' code."""
    return {
        "_target_": "mlmd_must_not_import_this.Model",
        "cls_token": False,
        "n_layers": config.n_layers,
        "embd_dim": config.embd_dim,
        "num_3d_kernels": config.num_3d_kernels,
        "num_heads": config.num_heads,
        "activation": config.activation,
        "ffn_multiplier": config.ffn_multiplier,
        "norm_first": config.norm_first,
        "norm": "layer",
        "decomposer_type": config.decomposer,
        "target_heads": list(config.target_heads),
        "head_project_down": config.head_project_down,
        "use_electronic_embeddings": config.electron_table,
        "energy_conserving": config.energy_conserving,
        "directional_embed_type": config.directions,
        "distance_embed_type": config.distances,
        "embed_edge_types": config.edge_types,
    }


def write_run(
    folder: Path, network: MDET, options: dict | None = None, *, prefix: str = "", **checkpoint
) -> Path:
    """Write a pretraining run directory; keywords are further entries of the checkpoint."""
    options = {**original_options(network.config), **(options or {})}
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"train": {"model": options}}))
    (folder / "ckpts").mkdir()
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    content = {"model_state_dict": state, "step": 1, **checkpoint}
    torch.save(content, folder / "ckpts" / "best_model.pth")
    return folder


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "toy.safetensors"
    save_model(path, random_network(), ENERGIES, CARD)
    return path


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    for seed, name in enumerate(["ethanol", "small-organics"]):
        save_model(
            folder / f"{name}.safetensors", random_network(seed=seed), ENERGIES, {"name": name}
        )
    manifest.write_manifest(folder, default="small-organics")
    monkeypatch.setattr(manifest, "SHIPPED_WEIGHTS", folder)
    return folder


# Model files


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_model_file_round_trip(tmp_path: Path, config: MDETConfig) -> None:
    network = random_network(config)
    path = tmp_path / "model.safetensors"
    save_model(path, network, ENERGIES, CARD)
    model = load_model(path, device="cpu")
    assert model.network.config == config
    assert same_outputs(model.network, network)
    assert model.atomic_energies == ENERGIES
    assert not model.network.training


def test_loaded_card_is_the_written_one_completed(model_path: Path) -> None:
    model = load_model(model_path, device="cpu")
    written = ModelCard.from_dict(CARD)
    assert model.card == dataclasses.replace(
        written,
        parameters=sum(p.numel() for p in random_network().parameters()),
        sha256=manifest.file_checksum(model_path),
    )
    assert model.sha256 == model.card.sha256
    assert ModelCard.from_dict(json.loads(json.dumps(model.card.to_dict()))) == model.card


def test_elements_default_to_those_with_an_atomic_energy(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_model(path, random_network(), ENERGIES, {})
    card = load_model(path, device="cpu").card
    assert card.elements == tuple(ENERGIES)
    assert card.name == "mine"


def test_card_with_an_element_without_energy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[17\]"):
        save_model(tmp_path / "m.safetensors", random_network(), ENERGIES, {"elements": [1, 17]})


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"license": "MIT"}, "license"),
        ({"recommended": {"rotations": "none"}}, "rotations"),
        ({"elements": [0]}, "0"),
        ({"recommended": {"sampler_by_length": 1.2}}, "sampler_by_length=1.2"),
        ({"recommended": {"sampler_by_length": {"1": 1.2}}}, "must be positive factors"),
        ({"recommended": {"sampler_by_length": {"one": {"noise_scale": 1.2}}}}, "one"),
        ({"recommended": {"sampler_by_length": {"1": {"noise_scale": 0.0}}}}, "must be positive"),
        ({"recommended": {"sampler_by_length": {"1": {"step_scale": "high"}}}}, "high"),
        ({"recommended": {"sampler_by_length": {"1": {"steps": 10}}}}, "steps"),
    ],
)
def test_wrong_card_entries_are_refused(entries: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ModelCard.from_dict(entries)


def test_every_flipped_byte_is_noticed(model_path: Path) -> None:
    content = model_path.read_bytes()
    damaged = model_path.with_name("damaged.safetensors")
    header = int.from_bytes(content[:8], "little")
    # All of the tensors' part has the same protection; the header is looked at more closely.
    places = [*range(0, 8 + header, 41), *range(8 + header, len(content), len(content) // 30)]
    for place in [*places, len(content) - 1]:
        changed = bytearray(content)
        changed[place] ^= 1
        damaged.write_bytes(changed)
        with pytest.raises(ModelFileError, match=r"damaged\.safetensors"):
            read_model(damaged)


def test_message_about_a_changed_file_names_both_checksums(model_path: Path) -> None:
    with safe_open(model_path, framework="pt") as file:
        written = file.metadata()["sha256"]
    content = bytearray(model_path.read_bytes())
    content[-1] ^= 1
    model_path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"sha256 [0-9a-f]{{64}}, but it says {written}"):
        load_model(model_path, device="cpu")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_file_is_refused(model_path: Path, keep: int) -> None:
    model_path.write_bytes(model_path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="copy it again"):
        load_model(model_path, device="cpu")


def rewrite(path: Path, version: int) -> None:
    """Write the model in the file again, with another version number and without a checksum."""
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["mlmd"]) | {"version": version}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"mlmd": json.dumps(content)})


def test_only_version_1_may_lack_the_checksum(model_path: Path) -> None:
    rewrite(model_path, version=1)
    assert same_outputs(load_model(model_path, device="cpu").network, random_network())
    rewrite(model_path, version=2)
    with pytest.raises(ModelFileError, match="it says none"):
        load_model(model_path, device="cpu")
    rewrite(model_path, version=3)
    with pytest.raises(ModelFileError, match="version 3"):
        load_model(model_path, device="cpu")


def test_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match="no mlmd model description"):
        load_model(path, device="cpu")


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [("float64", torch.float64), ("float32", torch.float32), ("mixed", torch.float32)],
)
def test_dtype_converts_all_weights(model_path: Path, dtype: str, weights: torch.dtype) -> None:
    network = load_model(model_path, device="cpu", dtype=dtype).network
    assert {tensor.dtype for tensor in network.state_dict().values()} == {weights}


@pytest.mark.parametrize("option", [{"dtype": "float16"}, {"device": "abacus"}])
def test_unknown_options_are_refused(model_path: Path, option: dict) -> None:
    (value,) = option.values()
    with pytest.raises(ConfigError, match=value):
        load_model(model_path, **{"device": "cpu", **option})


def test_loading_leaves_global_random_numbers_alone(model_path: Path) -> None:
    before = torch.get_rng_state()
    load_model(model_path, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_printed_card_shows_what_matters(model_path: Path) -> None:
    card = load_model(model_path, device="cpu").card
    console = Console(width=200)
    with console.capture() as capture:
        console.print(card)
    for text in (str(card), capture.get()):
        for expected in ("toy", "H O", "rotation: average", "forces, meV/Å 40", card.sha256):
            assert expected in text


# Shipped models


def test_default_and_named_models(shipped: Path) -> None:
    assert [card.name for card in list_models()] == ["small-organics", "ethanol"]
    default, ethanol = load_model(device="cpu"), load_model("ethanol", device="cpu")
    assert (default.source, ethanol.source) == ("small-organics", "ethanol")
    assert not same_outputs(default.network, ethanol.network)
    assert [card.sha256 for card in list_models()] == [default.sha256, ethanol.sha256]


def test_source_loads_the_same_model_again(
    shipped: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_path.parent)
    write_run(Path("run"), random_network())
    for name in (None, "ethanol", "toy.safetensors", "run"):
        model = load_model(name, device="cpu")
        monkeypatch.chdir("/")
        assert load_model(model.source, device="cpu").sha256 == model.sha256
        monkeypatch.chdir(model_path.parent)


def test_path_reaches_a_file_hidden_by_a_shipped_name(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("ethanol"), random_network())
    assert load_model("./ethanol", device="cpu").source == str(run.absolute())
    assert load_model(run, device="cpu").source == str(run.absolute())
    assert load_model("ethanol", device="cpu").source == "ethanol"


def test_unknown_name_lists_names_and_the_nearest(shipped: Path) -> None:
    with pytest.raises(ConfigError, match=r"ethanol, small-organics\. Did you mean 'ethanol'"):
        load_model("ethanl")


def test_missing_path_is_named(shipped: Path, tmp_path: Path) -> None:
    for missing in ("no.safetensors", tmp_path / "no", str(tmp_path / "no")):
        with pytest.raises(ConfigError, match="no file or folder"):
            load_model(missing)


def test_without_shipped_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "SHIPPED_WEIGHTS", tmp_path)
    assert list_models() == []
    with pytest.raises(ConfigError, match="no model is shipped"):
        load_model()


def test_exchanged_shipped_file_is_refused_with_both_checksums(shipped: Path) -> None:
    good = manifest.file_checksum(shipped / "ethanol.safetensors")
    # Another valid model in its place: only the manifest can tell.
    save_model(shipped / "ethanol.safetensors", random_network(seed=7), ENERGIES, {})
    bad = manifest.file_checksum(shipped / "ethanol.safetensors")
    with pytest.raises(ModelFileError, match=f"{bad}.*{good}"):
        load_model("ethanol")


def test_missing_shipped_file(shipped: Path) -> None:
    (shipped / "ethanol.safetensors").unlink()
    with pytest.raises(ModelFileError, match="is missing"):
        load_model("ethanol")


def test_manifest_refuses_ambiguity(shipped: Path) -> None:
    with pytest.raises(ConfigError, match="'nonsense'"):
        manifest.write_manifest(shipped, default="nonsense")
    shutil.copy(shipped / "ethanol.safetensors", shipped / "copy.safetensors")
    with pytest.raises(ConfigError, match=r"copy\.safetensors"):
        manifest.write_manifest(shipped, default="ethanol")


def test_manifest_of_the_package_is_true() -> None:
    for card in list_models():
        assert load_any_model(card.name, device="cpu").sha256 == card.sha256


# Run directories of the authors' code


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_run_directory_of_every_architecture(tmp_path: Path, config: MDETConfig) -> None:
    network = random_network(config)
    model = load_model(write_run(tmp_path / "run", network), device="cpu")
    assert model.network.config == config
    assert same_outputs(model.network, network)
    assert model.card.name == "run"
    assert model.card.elements is None
    assert model.atomic_energies == {}


def test_golden_run_directories() -> None:
    folder = GOLDEN / "mdet"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    cases = sorted(path.parents[1] for path in folder.glob("*/.hydra/config.yaml"))
    assert cases
    for case in cases:
        options = yaml.safe_load((case / ".hydra" / "config.yaml").read_text())["train"]["model"]
        config = load_model(case, device="cpu").network.config
        asked = {key: options[key] for key in original_options(config)}
        derived = original_options(config)
        del asked["_target_"], derived["_target_"]
        assert derived == asked, case.name


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "encoder.", "module._orig_mod.encoder."]
)
def test_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    run = write_run(tmp_path / "run", random_network(), prefix=prefix)
    assert same_outputs(load_model(run, device="cpu").network, random_network())


def test_names_of_compiled_layers(tmp_path: Path) -> None:
    network = random_network()
    state = {
        name.replace("attention.", "attention._orig_mod."): tensor
        for name, tensor in network.state_dict().items()
    }
    run = write_run(tmp_path / "run", network, model_state_dict=state)
    assert same_outputs(read_run_directory(run).network, network)


def test_bare_state_dictionary(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_network())
    torch.save(random_network(seed=3).state_dict(), run / "ckpts" / "best_model.pth")
    assert same_outputs(read_run_directory(run).network, random_network(seed=3))


def test_averaged_weights(tmp_path: Path) -> None:
    config = CONFIGS["fourier"]
    averaged = random_network(config, seed=5)
    shadow = {f"encoder.{name}": p.detach() for name, p in averaged.named_parameters()}
    shadow["loss.weight"] = torch.ones(1)
    run = write_run(
        tmp_path / "run", random_network(config), ema_state={"decay": 0.9, "shadow": shadow}
    )
    raw, ema = read_run_directory(run), read_run_directory(run, ema=True)
    assert same_outputs(raw.network, random_network(config))
    assert same_outputs(ema.network, averaged)
    assert raw.card.sha256 != ema.card.sha256


def test_absent_or_partial_averages_are_refused(tmp_path: Path) -> None:
    network = random_network()
    run = write_run(tmp_path / "none", network)
    with pytest.raises(ModelFileError, match="no averaged weights"):
        read_run_directory(run, ema=True)
    shadow = dict(network.named_parameters())
    shadow.pop("composer.node_proj.0.bias")
    run = write_run(tmp_path / "partial", network, ema_state={"shadow": shadow})
    with pytest.raises(ModelFileError, match=r"composer\.node_proj\.0\.bias"):
        read_run_directory(run, ema=True)


def test_fine_tuned_layout_with_other_heads(tmp_path: Path) -> None:
    network = random_network(dataclasses.replace(SMALL, target_heads=("forces", "energy")))
    run = write_run(tmp_path / "run", network)
    options = {**original_options(SMALL), "target_heads": ["forces"]}
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"ft": {"_target_": "a.b"}}))
    with pytest.raises(ModelFileError, match=r"model_pretrain_conf\.yaml"):
        read_run_directory(run)
    (run / ".hydra" / "model_pretrain_conf.yaml").write_text(yaml.safe_dump(options))
    loaded = read_run_directory(run).network
    assert set(loaded.config.target_heads) == {"forces", "energy"}
    assert same_outputs(loaded, network)


def test_choice_of_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_network(seed=0))
    names = ["best_model", "model_final", "model_100000", "model_50000"]
    for seed, name in enumerate(names):
        state = {"model_state_dict": random_network(seed=seed).state_dict()}
        torch.save(state, run / "ckpts" / f"{name}.pth")
    assert same_outputs(
        read_run_directory(run, checkpoint="model_50000").network, random_network(seed=3)
    )
    for seed, name in enumerate(names):
        assert same_outputs(read_run_directory(run).network, random_network(seed=seed))
        (run / "ckpts" / f"{name}.pth").unlink()
    with pytest.raises(ModelFileError, match=r"no checkpoint best_model\.pth"):
        read_run_directory(run)


def test_named_checkpoint_has_no_substitute(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_network())
    with pytest.raises(ModelFileError, match=r"no checkpoint model_final\.pth.*best_model"):
        read_run_directory(run, checkpoint="model_final")


@pytest.mark.parametrize(
    "ignored",
    [
        {"norm_first": False},
        {"decomposer_type": "diagonal"},
        {"use_electronic_embeddings": True},
        {"directional_embed_type": "fourier"},
        {"norm": "batch"},
        {"norm_first": False, "activation": "relu", "cls_token": True},
    ],
)
def test_tensors_win_over_options_the_released_code_ignores(tmp_path: Path, ignored: dict) -> None:
    run = write_run(tmp_path / "run", random_network(), ignored)
    loaded = read_run_directory(run).network
    assert loaded.config == SMALL
    assert same_outputs(loaded, random_network())


def test_tensors_win_over_sizes(tmp_path: Path) -> None:
    wrong = {
        "n_layers": 7,
        "embd_dim": 4,
        "num_3d_kernels": 6,
        "ffn_multiplier": 9,
        "embed_edge_types": True,
        "head_project_down": False,
        "distance_embed_type": "bessel",
        "target_heads": ["dipole"],
        "energy_conserving": True,
    }
    run = write_run(tmp_path / "run", random_network(), wrong)
    assert read_run_directory(run).network.config == SMALL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cls_token": True}, "extra token"),
        ({"num_heads": None}, "num_heads is None"),
        ({"num_heads": "${heads}"}, "num_heads is"),
        ({"num_heads": 3}, "multiple of num_heads=3"),
        ({"activation": "silu"}, "activation='silu'"),
    ],
)
def test_unusable_options_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    run = write_run(tmp_path / "run", random_network(), options)
    with pytest.raises(ModelFileError, match=message):
        read_run_directory(run)


def test_bessel_needs_the_edge_type_option(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_network(CONFIGS["bessel"]), {"embed_edge_types": None})
    with pytest.raises(ModelFileError, match="embed_edge_types is None"):
        read_run_directory(run)


def test_batch_norm_is_refused(tmp_path: Path) -> None:
    network = random_network()
    state = {**network.state_dict(), "layers.0.norm.running_mean": torch.zeros(16)}
    run = write_run(tmp_path / "run", network, model_state_dict=state)
    with pytest.raises(ModelFileError, match="batch norm"):
        read_run_directory(run)


def test_missing_and_superfluous_tensors_are_listed(tmp_path: Path) -> None:
    state = random_network().state_dict()
    state["layers.0.extra.weight"] = state.pop("layers.1.attention.klin.weight")
    run = write_run(tmp_path / "run", random_network(), model_state_dict=state)
    with pytest.raises(ModelFileError, match=r"klin\.weight.*not expected.*extra"):
        read_run_directory(run)


def test_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    state = random_network().state_dict()
    state["layers.1.attention.klin.weight"] = torch.zeros(16, 8)
    run = write_run(tmp_path / "run", random_network(), model_state_dict=state)
    with pytest.raises(ModelFileError, match=r"klin\.weight \(16, 8\) not \(16, 16\)"):
        read_run_directory(run)


def test_double_precision_checkpoint_keeps_its_digits(tmp_path: Path) -> None:
    network = random_network().double()
    with torch.no_grad():
        network.heads["forces"].mlp[0].weight.mul_(1 + 1e-12)
    run = write_run(tmp_path / "run", network)
    assert same_outputs(load_model(run, device="cpu").network, network)


@pytest.mark.parametrize(
    "content", [{"step": 3}, {"weight": torch.ones(2, 2)}, [1, 2], {"model_state_dict": {}}]
)
def test_foreign_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    run = write_run(tmp_path / "run", random_network())
    torch.save(content, run / "ckpts" / "best_model.pth")
    with pytest.raises(ModelFileError, match=r"best_model\.pth"):
        read_run_directory(run)


@pytest.mark.parametrize("keep", [0, 1000, -500])
def test_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    file = write_run(tmp_path / "run", random_network()) / "ckpts" / "best_model.pth"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="is damaged"):
        load_model(tmp_path / "run", device="cpu")


class Trap:
    """An object that a careless reader would call a function for."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_network(), step=Trap(tmp_path / "sprung"))
    with pytest.raises(ModelFileError, match="not a checkpoint of tensors"):
        read_run_directory(run)
    assert not (tmp_path / "sprung").exists()


def test_configuration_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlmd_must_not_import_this.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    run = write_run(tmp_path / "run", random_network())
    read_run_directory(run)
    (run / ".hydra" / "config.yaml").write_text("!!python/object/apply:os.mkdir [sprung]")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="not a readable YAML file"):
        read_run_directory(run)
    assert not Path("sprung").exists()


@pytest.mark.parametrize("text", ["", "a: 1", "[1]", "train: {model: 3}", "a: [", "train: null"])
def test_foreign_configuration_is_refused(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run", random_network())
    (run / ".hydra" / "config.yaml").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.yaml"):
        read_run_directory(run)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"there is no .*config\.yaml"):
        load_model(tmp_path)


def test_lone_checkpoint_points_to_its_run_directory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", random_network())
    with pytest.raises(ModelFileError, match="give the folder of the run"):
        load_model(run / "ckpts" / "best_model.pth")


def test_run_directory_becomes_a_model_file(tmp_path: Path) -> None:
    content = read_run_directory(write_run(tmp_path / "run", random_network()))
    path = tmp_path / "converted.safetensors"
    save_model(path, content.network, content.atomic_energies, content.card.to_dict())
    model = load_model(path, device="cpu")
    assert same_outputs(model.network, random_network())
    assert model.card.elements is None


# Hugging Face


class FakeHub:
    """A repository in a folder, and a cache that receives what is asked for."""

    def __init__(self, remote: Path, cache: Path) -> None:
        self.remote, self.cache, self.online = remote, cache, True
        self.error: Exception | None = None

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == "owner/repo"
        if self.error:
            raise self.error
        for file in self.remote.rglob("*") if self.online else []:
            name = file.relative_to(self.remote).as_posix()
            if file.is_file() and any(fnmatch.fnmatch(name, p) for p in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.cache / name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "remote", tmp_path / "cache")
    fake.cache.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_repository_that_is_a_run_directory(hub: FakeHub) -> None:
    write_run(hub.remote, random_network())
    model = load_model("hf://owner/repo", device="cpu")
    assert same_outputs(model.network, random_network())
    assert (model.source, model.card.name) == ("hf://owner/repo", "owner/repo")


def test_variant_fetches_only_what_it_needs(hub: FakeHub) -> None:
    for seed, variant in enumerate(["4l", "12l"]):
        run = write_run(hub.remote / variant, random_network(seed=seed))
        shutil.copy(run / "ckpts" / "best_model.pth", run / "ckpts" / "model_50000.pth")
    model = load_model("hf://owner/repo/12l", device="cpu")
    assert same_outputs(model.network, random_network(seed=1))
    assert model.card.name == "owner/repo/12l"
    fetched = {p.relative_to(hub.cache).as_posix() for p in hub.cache.rglob("*") if p.is_file()}
    assert fetched == {"12l/.hydra/config.yaml", "12l/ckpts/best_model.pth"}
    hub.online = False
    assert load_model("hf://owner/repo/12l", device="cpu").sha256 == model.sha256


@pytest.mark.parametrize("source", ["hf://owner/repo", "hf://owner/repo/13l"])
def test_variants_are_listed(hub: FakeHub, source: str) -> None:
    for variant in ("4l", "12l"):
        write_run(hub.remote / variant, random_network())
    with pytest.raises(ConfigError, match="hf://owner/repo/12l, hf://owner/repo/4l"):
        load_model(source)


def test_half_cached_variant_offline(hub: FakeHub) -> None:
    write_run(hub.remote, random_network())
    load_model("hf://owner/repo", device="cpu")
    (hub.cache / "ckpts" / "best_model.pth").unlink()
    hub.online = False
    with pytest.raises(ModelFileError, match="offline"):
        load_model("hf://owner/repo", device="cpu")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "gated.*hf auth login.*HF_TOKEN"),
        (RepositoryNotFoundError, "Check the name.*hf auth login.*HF_TOKEN"),
        (LocalEntryNotFoundError, "not in the local cache.*HF_HOME"),
        (ConnectionError, "not in the local cache.*HF_HOME"),
    ],
)
def test_unreadable_repository(hub: FakeHub, kind: type[Exception], message: str) -> None:
    # The library's errors want an HTTP response to be built from.
    hub.error = kind.__new__(kind)
    with pytest.raises(ModelFileError, match=message):
        load_model("hf://owner/repo")


@pytest.mark.parametrize(
    "source", ["hf://", "hf://repo", "hf://owner/repo/", "hf://a/b/c/d", "hf://owner/repo/.."]
)
def test_malformed_repository_is_refused(hub: FakeHub, source: str) -> None:
    with pytest.raises(ConfigError, match="form hf://owner/repo"):
        load_model(source)


# Files made to harm


def hostile_file(path: Path, **changes) -> Path:
    """Write a model file, correct checksum included, whose description has entries changed."""
    network = random_network()
    content = {
        "version": 2,
        "model": "mdet",
        "config": network.config.to_dict(),
        "atomic_energies": {"1": -13.5},
        "card": {"name": "toy"},
    }
    for entry, values in changes.items():
        content[entry] = {**content[entry], **values} if isinstance(values, dict) else values
    tensors = dict(network.state_dict())
    description = json.dumps(content)
    metadata = {"mlmd": description, "sha256": content_checksum(description, tensors)}
    save_file(tensors, path, metadata=metadata)
    return path


def nested(depth: int) -> dict:
    table: dict = {}
    for _ in range(depth):
        table = {"a": table}
    return table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atomic_energies": {"1": float("nan")}}, "atomic energy of element 1 is nan"),
        ({"atomic_energies": {"1": "x"}}, "atomic energy of element 1 is 'x'"),
        ({"atomic_energies": {"H": 0.0}}, "'H'"),
        ({"atomic_energies": [1]}, "cannot build|can build"),
        ({"config": {"n_layers": 10**9}}, "n_layers=1000000000; .* from 1 to 1,000"),
        ({"config": {"embd_dim": -16}}, "embd_dim=-16"),
        ({"config": {"embd_dim": "16"}}, "embd_dim='16'"),
        ({"config": {"num_3d_kernels": 10**12}}, "num_3d_kernels=1000000000000"),
        ({"config": {"ffn_dropout": [0.1]}}, "ffn_dropout="),
        ({"config": {"target_heads": {"forces": 1}}}, "target_heads="),
        ({"config": {"embd_dim": 4096}}, "wrong shape"),
        ({"config": 7}, "MD-ET options are 7"),
        ({"card": {"name": "a\x1b[2Jb"}}, r"name='a\\x1b\[2Jb'"),
        ({"card": {"name": "../../etc/passwd"}}, "no path"),
        ({"card": {"elements": [-1]}}, r"\[-1\]"),
        ({"card": {"elements": "CH"}}, "elements='CH'"),
        ({"card": {"recipe": nested(900)}}, "20 levels"),
        ({"card": {"errors": {"a\x07": 1}}}, "control characters"),
        ({"card": {"parameters": "many"}}, "parameters='many'"),
        ({"card": [1]}, "card entries are"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_model_file_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = hostile_file(tmp_path / "bad.safetensors", **changes)
    with pytest.raises(ModelFileError, match=message) as refusal:
        load_model(path, device="cpu")
    assert str(path) in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_terabytes_of_nothing_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    size = 2**40
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    network = random_network()
    content = {"version": 2, "model": "mdet", "config": network.config.to_dict()}
    header = json.dumps({"__metadata__": {"mlmd": json.dumps(content)}, "x": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    with pytest.raises(ModelFileError, match=r"huge\.safetensors has 1,024 GiB"):
        load_model(path, device="cpu")


@pytest.mark.parametrize("name", ["ckpts/best_model.pth", ".hydra/config.yaml"])
def test_huge_file_of_a_run_directory_is_refused(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", random_network())
    with (run / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ModelFileError, match=r"GiB|bytes"):
        read_run_directory(run)


@pytest.mark.parametrize(
    "change",
    [
        {"embedding.nuclear_embedding.embedding.weight": torch.ones(128, 16, dtype=torch.int64)},
        {"layers.0.norm.weight": torch.full((16,), float("nan"))},
        {"layers.0.norm.weight": torch.ones(1).expand(2**40)},
    ],
    ids=["integers", "not finite", "one number a trillion times"],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, change: dict) -> None:
    state = {**random_network().state_dict(), **change}
    run = write_run(tmp_path / "run", random_network(), model_state_dict=state)
    with pytest.raises(ModelFileError, match=r"floating-point|finite|weights"):
        read_run_directory(run)


@pytest.mark.parametrize(
    "text",
    [
        # Each line stands for ten of the one before.
        "a0: &a0 [x]\n"
        + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
        "[" * 2_000,
        "train: {model: 2001-99-99}",
        f"train: {{model: {'9' * 5000}}}",
    ],
    ids=["bomb", "deep", "no date", "long number"],
)
def test_hostile_yaml_is_refused_in_a_short_sentence(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run", random_network())
    (run / ".hydra" / "config.yaml").write_text(text)
    with pytest.raises(ModelFileError, match=r"config\.yaml") as refusal:
        read_run_directory(run)
    assert len(str(refusal.value)) < 1000
