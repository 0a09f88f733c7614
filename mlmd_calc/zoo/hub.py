"""Run directories in Hugging Face repositories, named ``hf://owner/repo[/variant]``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mlmd_calc.errors import ConfigError, ModelFileError

HUB_PREFIX: Final = "hf://"

_CONFIG: Final = ".hydra/config.yaml"
_CHECKPOINT: Final = "ckpts/best_model.pth"


def fetch_run_directory(source: str) -> Path:
    """Fetch a run directory, or find it in Hugging Face's own cache when offline.

    Only the configuration files and the best checkpoint are fetched.

    Parameters
    ----------
    source
        ``hf://owner/repo`` if the repository is a run directory itself, ``hf://owner/repo/variant``
        if it holds several.

    Returns
    -------
    Path
        The run directory in the cache.

    Raises
    ------
    ConfigError
        If the source is malformed, or names no variant although the repository has several.
    ModelFileError
        If the repository cannot be read.
    """
    parts = source.removeprefix(HUB_PREFIX).split("/")
    if len(parts) not in (2, 3) or not all(parts) or ".." in parts:
        raise ConfigError(
            f"{source!r} is not of the form hf://owner/repo or hf://owner/repo/variant"
        )
    repository, variant = "/".join(parts[:2]), "".join(f"{part}/" for part in parts[2:])
    wanted = [f"{variant}.hydra/*.yaml", f"{variant}{_CHECKPOINT}"]
    folder = _snapshot(repository, wanted) / variant
    if not (folder / _CONFIG).is_file():
        root = _snapshot(repository, [f"*{_CONFIG}"])
        runs = sorted(p.parents[1].relative_to(root) for p in root.rglob(_CONFIG))
        names = ", ".join(f"{HUB_PREFIX}{repository}/{run.as_posix()}" for run in runs)
        raise ConfigError(
            f"{source} is not a run directory (it has no {_CONFIG}); choose one of: "
            f"{names or 'none'}"
        )
    if not (folder / _CHECKPOINT).is_file():
        raise ModelFileError(
            f"{source} has no {_CHECKPOINT}, or you are offline and it is not in the local cache; "
            "connect once to fetch it"
        )
    return folder


def _snapshot(repository: str, patterns: list[str]) -> Path:
    """Folder of a repository in the cache, with the matching files as far as they exist."""
    # Only fetching needs the package and its HTTP stack.
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    login = "log in with `hf auth login` (older: `huggingface-cli login`) or set HF_TOKEN"
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except HFValidationError as error:
        raise ConfigError(
            f"{repository!r} is not a Hugging Face repository name: {error}"
        ) from error
    except GatedRepoError as error:
        raise ModelFileError(
            f"{repository} is gated: ask for access at https://huggingface.co/{repository}, "
            f"then {login}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelFileError(
            f"Hugging Face shows you no repository {repository}. Check the name; if it is private, "
            f"{login}"
        ) from error
    except Exception as error:  # every HTTP library and version of it has its own types
        raise ModelFileError(
            f"{repository} cannot be fetched ({type(error).__name__}: {error}) and is not in the "
            "local cache. Connect once to fill the cache (HF_HOME says where it is), or copy the "
            "run directory here and give its path"
        ) from error
