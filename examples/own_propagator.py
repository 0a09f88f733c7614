"""Your own propagator in 30 lines: hydrogen chloride by an accurate integrator, 20 fs at once."""

import numpy as np
from ase import Atoms, units
from scipy.integrate import solve_ivp

from mlmd_calc.md import JumpNVE
from mlmd_calc.propagation import Frames, Propagator, Strides

DEPTH, WIDTH, LENGTH = 4.6, 1.87, 1.275  # Morse potential: eV, 1/Å, Å


class MorsePropagator(Propagator):
    """Solves Newton's equations for two atoms."""

    strides = Strides(longest=100.0)  # fs

    def propagate(self, states, times_fs, generator):
        """Answer with a frame of each state at each time."""
        return [self.solve(state, np.array(times_fs)) for state in states]

    def solve(self, state, times):
        """Positions in Å and velocities in Å/fs of one state."""

        def slope(_, xv):
            x, v = xv.reshape(2, -1, 3)
            bond = x[1] - x[0]
            r = np.linalg.norm(bond)
            decay = np.exp(-WIDTH * (r - LENGTH))
            pull = 2 * DEPTH * WIDTH * decay * (1 - decay) * bond / r  # eV/Å
            forces = np.stack([pull, -pull])
            return np.stack([v, forces / state.masses[:, None] * units.fs**2]).ravel()

        start = np.stack([state.positions, state.velocities]).ravel()
        path = solve_ivp(slope, (0, times[-1]), start, "DOP853", times, rtol=1e-10, atol=1e-12)
        x, v = path.y.T.reshape(len(times), 2, -1, 3).swapaxes(0, 1)
        return Frames(times, x, v)


atoms = Atoms("ClH", [[0, 0, 0], [LENGTH + 0.1, 0, 0]])
atoms.set_momenta([[0, 0.5, 0], [0, -0.5, 0]])
dyn = JumpNVE(atoms, 20 * units.fs, MorsePropagator())


def report():
    r = atoms.get_distance(0, 1)
    energy = DEPTH * (1 - np.exp(-WIDTH * (r - LENGTH))) ** 2 + atoms.get_kinetic_energy()
    print(f"{dyn.get_time() / units.fs:6.0f} fs   bond {r:.3f} Å   energy {energy:.10f} eV")


dyn.attach(report, interval=5)
dyn.run(25)
