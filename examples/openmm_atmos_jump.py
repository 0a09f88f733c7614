"""Alanine dipeptide in implicit solvent: jumps of an ATMOS model, relaxed by forces.

    python openmm_atmos_jump.py [JUMPS [MODEL]]

Each step is a jump, a minimisation, and 0.5 ps of Langevin dynamics with the forces of Amber14 and
OBC2; a jump that the guard rejects is drawn again, and in the end replaced by dynamics of the same
length. Then plain Langevin dynamics, with 2 fs steps and constraints on bonds to hydrogen, runs for
as long on the clock. Prints of both how often each basin of (φ, ψ) was visited, how often the basin
changed, and how much the histograms differ. MODEL is a name or a file; by default the first ATMOS
model that is shipped.
"""

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from rich.progress import track
from scipy.spatial.distance import jensenshannon

from mlmd_calc import list_models, load_propagator
from mlmd_calc.biomolecules import build_system
from mlmd_calc.geometry.stereochemistry import dihedrals
from mlmd_calc.propagation import Guard
from openmm_bridge import JumpNVTIntegrator, structure_from_topology

jumps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
shipped = [card.name for card in list_models() if card.kind == "atmos"]
name = sys.argv[2] if len(sys.argv) > 2 else next(iter(shipped), None)
if name is None:
    sys.exit(print("No ATMOS model is shipped yet; give the file of one as second argument."))

pdb = app.PDBFile(str(Path(__file__).parent / "alanine_dipeptide.pdb"))
field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")


def make_system(constraints: object) -> openmm.System:
    """Make the system, with OpenMM's own force for OBC2: like a CustomGBForce, but faster."""
    made = field.createSystem(pdb.topology, constraints=constraints)
    forces = enumerate(made.getForces())
    index = next(i for i, force in forces if isinstance(force, openmm.CustomGBForce))
    custom, solvent = made.getForce(index), openmm.GBSAOBCForce()
    for particle in range(made.getNumParticles()):
        charge, radius, scaled_radius = custom.getParticleParameters(particle)
        solvent.addParticle(charge, radius + 0.009, scaled_radius / radius)  # OBC's offset in nm
    made.removeForce(index)
    made.addForce(solvent)
    return made


system = make_system(None)
molecule = build_system(structure_from_topology(pdb.topology, pdb.positions))
propagator = load_propagator(name, structure=molecule)
temperature = (propagator.temperature_K or 300.0) * unit.kelvin
integrator = JumpNVTIntegrator(
    propagator,
    pdb.topology,
    temperature,
    5 / unit.picosecond,
    propagator.strides.longest * unit.femtosecond,
    guard=Guard(redraws=5),
    rng=np.random.default_rng(1),
)
platform = openmm.Platform.getPlatformByName("Reference")  # no overhead for so few particles
langevin = openmm.LangevinMiddleIntegrator(temperature, 5 / unit.picosecond, 0.0005)
equilibration = app.Simulation(pdb.topology, system, langevin, platform)
equilibration.context.setPositions(pdb.positions)
equilibration.minimizeEnergy()
equilibration.step(4000)

simulation = app.Simulation(pdb.topology, system, integrator, platform)
simulation.context.setPositions(equilibration.context.getState(positions=True).getPositions())
simulation.context.setVelocitiesToTemperature(temperature, 1)


def torsions(running: app.Simulation) -> tuple[float, float]:
    """Torsions (φ, ψ) in degrees."""
    state = running.context.getState(positions=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    phi, psi = np.degrees(dihedrals(molecule.select(positions)[None], molecule.phi_psi)[0, 0])
    return float(phi), float(psi)


def report(label: str, seen: list[tuple[float, float]], every_ps: float, seconds: float) -> None:
    """Print the basins of (φ, ψ) and how often they changed."""
    basins = [
        "left-handed" if phi > 0.0 else "helical" if -120.0 <= psi < 60.0 else "extended"
        for phi, psi in seen
    ]
    print(f"{label}: {every_ps * len(seen):g} ps in {seconds:.0f} s")
    for basin in ("extended", "helical", "left-handed"):
        print(f"  {basin:<12}{100.0 * basins.count(basin) / len(basins):5.1f} %")
    changes = sum(a != b for a, b in itertools.pairwise(basins))
    print(f"  {changes} changes of basin, {60.0 * changes / seconds:.1f} per minute")


def histogram(seen: list[tuple[float, float]]) -> np.ndarray:
    """Histogram of (φ, ψ) in boxes of 30 degrees, with a total of one."""
    edges = np.linspace(-180.0, 180.0, 13)
    counts = np.histogram2d(*np.array(seen).T, bins=[edges, edges])[0]
    return (counts / counts.sum()).ravel()


by_jumps, begin = [], time.perf_counter()
for _ in track(range(jumps), description="jumps"):
    simulation.step(1)
    by_jumps.append(torsions(simulation))
spent = time.perf_counter() - begin

langevin = openmm.LangevinMiddleIntegrator(temperature, 5 / unit.picosecond, 0.002)
plain = app.Simulation(pdb.topology, make_system(app.HBonds), langevin, platform)
plain.context.setPositions(pdb.positions)
plain.minimizeEnergy()
plain.step(5000)
by_steps, begin = [], time.perf_counter()
stride_ps = propagator.strides.longest / 1000.0
while time.perf_counter() - begin < spent:
    plain.step(round(stride_ps / 0.002))
    by_steps.append(torsions(plain))

report(f"jumps of {name}", by_jumps, stride_ps, spent)
print(f"  interventions: {dict(integrator.events.counts())}")
report("Langevin", by_steps, stride_ps, time.perf_counter() - begin)
divergence = jensenshannon(histogram(by_jumps), histogram(by_steps), base=2) ** 2
print(f"Jensen-Shannon divergence of the histograms: {divergence:.3f} bits")
