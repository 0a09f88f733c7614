"""Systems read from XML: which forces are of this package, and the refusal of foreign code."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import openmm

from mlmd_calc.errors import ModelFileError
from openmm_bridge.backends import choose_backend, openmmtorch_module

_OURS: Final = {("openmm_bridge.computation", name) for name in ("_restore", "TensorComputation")}
"""Module and name of what a Python force of this package calls when it is read."""


def load_system(path: str | os.PathLike[str]) -> openmm.System:
    """Read a System from the XML that ``openmm.XmlSerializer.serialize`` made.

    ``openmm.XmlSerializer.deserialize`` runs whatever code a file names for its Python forces, as
    ``pickle`` does. Here only forces that :func:`openmm_bridge.create_force` made are allowed; they
    hold the name of a model and numbers. The model itself is looked for where the file says.

    Parameters
    ----------
    path
        XML file.

    Raises
    ------
    ModelFileError
        If the file cannot be read, is not a System, or holds a Python force of another origin.
    MissingDependencyError
        If it holds a TorchForce, which cannot be read here.

    Examples
    --------
    >>> from openmm_bridge import load_system
    >>> system = load_system("system.xml")  # doctest: +SKIP
    """
    try:
        root = ElementTree.fromstring(Path(path).read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        raise ModelFileError(f"{path} cannot be read as the XML of a System: {error}") from error
    if root.tag != "System":
        raise ModelFileError(
            f"{path} holds a {root.tag}, not a System; pass what XmlSerializer.serialize(system) "
            "returned"
        )
    for element in root.iter():
        if "Python" in element.get("type", "") or element.get("function") is not None:
            _reference(element.get("function", ""), str(path))
    if any(element.get("type") == "TorchForce" for element in root.iter()):
        # OpenMM can read such a force, and make a Context of it, after this is imported.
        choose_backend("torchscript")
    # The checked elements, not the file, which another parser might read in another way.
    return openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))


def description_of(force: Any) -> dict[str, Any] | None:
    """Read what a force of this package says about itself; None if it does not, or is another."""
    if isinstance(force, openmm.PythonForce):
        return stored_description(force)
    found = module_description(force)
    # A Python force in an ATMForce has no kind either.
    if found is None and type(force) is openmm.Force:
        return stored_description(force)
    return found


def stored_description(force: Any) -> dict[str, Any] | None:
    """Read what a Python force says about itself, also of a System that was copied or read.

    Returns
    -------
    dict or None
        Content of ``MDETComputation.reference``; None if it is not a stored force of this package.
    """
    try:
        root = ElementTree.fromstring(openmm.XmlSerializer.serialize(force))
        reference = _reference(root.get("function", ""), force.getName())
    except (openmm.OpenMMException, ModelFileError):
        return None
    description: dict[str, Any] = json.loads(reference)
    return description


def module_description(force: Any) -> dict[str, Any] | None:
    """Read what a TorchForce says about itself, also of a System that was copied or read from XML.

    Returns
    -------
    dict or None
        None if it is not a TorchForce, or not one with a module of this package.
    """
    torch_force = as_torch_force(force)
    description = torch_force and getattr(torch_force.getModule(), "description", None)
    return json.loads(description) if description else None


def as_torch_force(force: Any) -> Any:
    """Return a force as the TorchForce it is; None if it is none."""
    try:
        kind = openmmtorch_module().TorchForce
    except (ImportError, AttributeError):
        # Without it there are no such forces; it is deprecated and may go.
        return None
    return kind.cast(force) if kind.isinstance(force) else None


def _reference(function: str, where: str) -> str:
    """Take the reference out of a pickled function, without calling what it names."""
    try:
        found = _Unpickler(io.BytesIO(bytes.fromhex(function))).load()
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error}") from error
    except Exception as error:
        raise ModelFileError(f"{where}: a Python force is damaged ({error})") from error
    if not isinstance(found, str):
        raise ModelFileError(
            f"{where}: a Python force holds a {type(found).__name__} where forces of this package "
            "have a text; make it anew with create_force"
        )
    return found


class _Unpickler(pickle.Unpickler):
    """Reads nothing but plain values and the calls that forces of this package consist of."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Stand in for our function; refuse all others."""
        if (module, name) not in _OURS:
            raise ModelFileError(
                f"a Python force would run {module}.{name}, which is not of this package; if you "
                "trust the file, read it with openmm.XmlSerializer.deserialize"
            )
        return lambda *reference: reference[0] if len(reference) == 1 else reference
