"""The mmCIF format: named columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from mlmd_calc.biomolecules.sites import Address, ResidueKey, Site, Sites
from mlmd_calc.errors import ModelFileError

_TOKEN: Final = re.compile(
    r"""
    ^;(?P<text>.*?)^;                   # lines between semicolons
    | (?P<quote>['"])(?P<quoted>.*?)(?P=quote)(?=\s|$)
    | \#[^\n]*                          # comment
    | (?P<bare>\S+)
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_ABSENT: Final = ("?", ".", "")
_COVALENT: Final = ("covale", "disulf")

_Row: TypeAlias = Mapping[str, str]


def parse_mmcif(text: str, model: int = 0) -> Sites:
    """Read one model of the first block of a file; see `parse_pdb`."""
    tables = _tables(text)
    rows = _rows(tables, "_atom_site.")
    names = list(dict.fromkeys(row.get("pdbx_pdb_model_num", "1") for row in rows))
    if not rows:
        raise ModelFileError("there is no table _atom_site.* of mmCIF; crystals are not read")
    if not -len(names) <= model < len(names):
        raise ModelFileError(f"there is no model {model}; the file has {len(names)}")
    return Sites(
        atoms=[_site(row) for row in rows if row.get("pdbx_pdb_model_num", "1") == names[model]],
        links=_links(tables, rows),
        cell=_cell(tables),
        models=len(names),
    )


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    """Words and whether they stand bare, so that they may be keywords."""
    for match in _TOKEN.finditer(text):
        if match["bare"] is not None:
            yield match["bare"], True
        elif match["quoted"] is not None or match["text"] is not None:
            yield match["quoted"] if match["text"] is None else match["text"], False


def _tables(text: str) -> dict[str, list[str]]:
    """Values of every item of the first block, by lower-case name."""
    values: dict[str, list[str]] = {}
    header: list[str] = []
    count, in_loop, blocks = 0, False, 0
    for token, bare in _tokens(text):
        lower = token.lower()
        if bare and lower.startswith("data_"):
            blocks += 1
            if blocks > 1:
                break
        elif bare and lower == "loop_":
            header, count, in_loop = [], 0, True
        elif bare and token.startswith("_"):
            # A name after values ends the loop.
            if not in_loop or count:
                header, count, in_loop = [], 0, False
            header.append(lower)
            values.setdefault(lower, [])
        elif header:
            values[header[count % len(header)]].append(token)
            count += 1
            if not in_loop:
                header = []
    return values


def _rows(tables: Mapping[str, list[str]], category: str) -> list[dict[str, str]]:
    columns = {
        name.removeprefix(category): values
        for name, values in tables.items()
        if name.startswith(category)
    }
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ModelFileError(f"the last line of {category}* is incomplete; the file is cut off")
    return [
        {key: value for key, value in zip(columns, row, strict=True) if value not in _ABSENT}
        for row in zip(*columns.values(), strict=True)
    ]


def _first(row: _Row, *keys: str) -> str:
    return next((row[key] for key in keys if key in row), "")


def _site(row: _Row) -> Site:
    try:
        name = _first(row, "auth_atom_id", "label_atom_id")
        return Site(
            serial=_first(row, "id"),
            name=name,
            columns=name,
            location=_first(row, "label_alt_id"),
            residue_name=_first(row, "auth_comp_id", "label_comp_id"),
            key=ResidueKey(
                _first(row, "label_asym_id"),
                _first(row, "auth_asym_id", "label_asym_id"),
                int(_first(row, "auth_seq_id", "label_seq_id") or 0),
                _first(row, "pdbx_pdb_ins_code"),
            ),
            position=(float(row["cartn_x"]), float(row["cartn_y"]), float(row["cartn_z"])),
            occupancy=float(row.get("occupancy", 1.0)),
            element=_first(row, "type_symbol"),
            charge=int(row.get("pdbx_formal_charge", 0)),
        )
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"an atom of _atom_site cannot be read ({error}): {row}") from error


def _links(
    tables: Mapping[str, list[str]], atoms: list[dict[str, str]]
) -> list[tuple[Address, Address]]:
    """Covalent bonds of ``_struct_conn``, in the authors' names."""
    authors = {
        tuple(_first(row, key) for key in ("label_asym_id", "label_seq_id", "label_comp_id")): row
        for row in atoms
    }

    def address(row: _Row, partner: str) -> Address:
        label = tuple(
            _first(row, f"{partner}_label_{key}") for key in ("asym_id", "seq_id", "comp_id")
        )
        known = authors.get(label, {})
        number = _first(row, f"{partner}_auth_seq_id") or _first(
            known, "auth_seq_id", "label_seq_id"
        )
        return Address(
            _first(row, f"{partner}_auth_asym_id")
            or _first(known, "auth_asym_id", "label_asym_id"),
            int(number or 0),
            _first(row, f"pdbx_{partner}_pdb_ins_code") or _first(known, "pdbx_pdb_ins_code"),
            _first(row, f"{partner}_label_atom_id"),
        )

    return [
        (address(row, "ptnr1"), address(row, "ptnr2"))
        for row in _rows(tables, "_struct_conn.")
        if row.get("conn_type_id", "").startswith(_COVALENT)
        and row.get("ptnr1_symmetry", "1_555") == row.get("ptnr2_symmetry", "1_555")
    ]


def _cell(tables: Mapping[str, list[str]]) -> tuple[float, ...] | None:
    names = [f"_cell.length_{axis}" for axis in "abc"]
    names += [f"_cell.angle_{angle}" for angle in ("alpha", "beta", "gamma")]
    try:
        # Standard deviations stand in parentheses.
        return tuple(float(tables[name][0].partition("(")[0]) for name in names)
    except (KeyError, ValueError, IndexError):
        return None
