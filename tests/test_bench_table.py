"""The table of everything: what it leaves out, and how it says that cost grows."""

import pytest

pytest.importorskip("openmm", reason="openmm is not installed")


@pytest.fixture(scope="module")
def bench(benchmark):
    return benchmark("bench_table")


def test_exponents_are_those_of_the_two_largest_sizes(bench):
    rows = [
        {"what": "a", "dtype": "float64", "n_atoms": n, "cpu_s": 1.0 + 2.0 * n**3}
        for n in (200, 9, 100)
    ]
    rows.append({"what": "b", "dtype": "float64", "n_atoms": 9, "cpu_s": 1.0})
    assert bench.exponents(rows, "cpu") == {"a, float64": pytest.approx(3.0, abs=1e-5)}


def test_what_takes_too_long_or_is_missing_is_left_out_with_the_reason(bench, monkeypatch):
    timed = []

    def measure(subject, atoms, seconds, device):
        timed.append((subject.name, len(atoms)))
        return {"wall_s": 1e-3 * len(atoms), "cpu_s": 1.0, "memory_bytes": None, "calls": 1}

    found = [
        bench.Subject("ours", "float64", lambda atoms: None),
        bench.Subject("small only", "float64", lambda atoms: None, 20),
        bench.Subject("absent", "float64", lambda atoms: None, needs="no_such_package"),
    ]
    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "subjects", lambda device: found)
    rows = list(bench.rows([9, 21, 100], "cpu", 0.1, longest=1.0))
    assert timed == [("ours", 9), ("ours", 21), ("small only", 9)]
    reasons = [row.get("skipped", "") for row in rows]
    assert "--longest 1" in reasons[2]
    assert "beyond 20 atoms" in reasons[4]
    assert "no_such_package is not installed" in reasons[8]
    only = list(bench.rows([9], "cpu", 0.1, longest=1.0, only=["small"]))
    assert [row["what"] for row in only] == ["small only"]
    where = {"cpu": "", "cores": 1, "load_average_1min": 0.0, "torch": ""}
    report = {
        "device": "cpu",
        "environment": where,
        "rows": rows,
        "exponents": bench.exponents(rows, "cpu"),
        "atmos_frame": {"heavy_atoms": 10, "wall_s": 0.1, "cpu_s": 0.1},
    }
    assert bench.result_table(report).row_count == 3


def test_every_call_can_be_made(bench):
    """The force calls of all kinds are those of the potential; others have tests of their own."""
    atoms = bench.chain_molecule(9)
    for subject in bench.subjects("cpu"):
        if subject.name.startswith("force call, direct"):
            row = bench.measure(subject, atoms, 0.0, "cpu")
            assert row["calls"] == 1
            assert row["memory_bytes"] > 5 * 9**2 * 64 * 4
        elif subject.name == "pass of the published ATOM":
            # Scores of 9 atoms at 15 time differences with 3 streams of as many, in 8 heads.
            row = bench.measure(subject, atoms, 0.0, "cpu")
            assert row["memory_bytes"] > 8 * 15 * 9 * 3 * 9 * 4
