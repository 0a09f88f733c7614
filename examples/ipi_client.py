"""Quantum nuclei: i-PI moves the beads of a path integral, MD-ET gives them their forces.

i-PI (`pip install ipi`) is the server and does the dynamics; this script starts it and answers its
questions through ASE's socket client, for which the lines with `client` are all that is needed. Any
other input of i-PI works in the same way.

Usage: python ipi_client.py [STEPS]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import units
from ase.build import molecule
from ase.calculators.socketio import SocketClient

from mlmd_calc import MDETCalculator

INPUT = """
<simulation verbosity="quiet">
  <output prefix="ethanol">
    <properties stride="1" filename="out">
      [step, conserved{electronvolt}, kinetic_cv{electronvolt}, temperature{kelvin}]
    </properties>
    <trajectory stride="10" filename="pos" format="xyz">positions{angstrom}</trajectory>
  </output>
  <total_steps>STEPS</total_steps>
  <prng><seed>1</seed></prng>
  <ffsocket name="mdet" mode="unix" pbc="false"><address>ADDRESS</address></ffsocket>
  <system>
    <initialize nbeads="8">
      <file mode="xyz">ethanol.xyz</file>
      <velocities mode="thermal" units="kelvin">300</velocities>
    </initialize>
    <forces><force forcefield="mdet"/></forces>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <timestep units="femtosecond">0.25</timestep>
        <thermostat mode="pile_g"><tau units="femtosecond">100</tau></thermostat>
      </dynamics>
    </motion>
    <ensemble><temperature units="kelvin">300</temperature></ensemble>
  </system>
</simulation>
"""


def main(steps: int = 200) -> None:
    """Run path-integral dynamics of ethanol with 8 beads."""
    atoms = molecule("CH3CH2OH")
    atoms.calc = MDETCalculator()
    # i-PI wants a cell; without periodic images it is only a number in a file.
    rows = [
        f"{symbol} {x:.6f} {y:.6f} {z:.6f}"
        for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
    ]
    header = "# CELL(abcABC): 50 50 50 90 90 90 cell{angstrom} positions{angstrom}"
    Path("ethanol.xyz").write_text("\n".join([str(len(atoms)), header, *rows]) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        # A name that no other run uses; i-PI puts the socket into /tmp.
        address = f"mlmd-{Path(folder).name}"
        Path("input.xml").write_text(INPUT.replace("STEPS", str(steps)).replace("ADDRESS", address))
        with subprocess.Popen(["i-pi", "input.xml"]) as server:
            try:
                while not Path(f"/tmp/ipi_{address}").exists():
                    if server.poll() is not None:
                        sys.exit(f"i-pi ended with status {server.returncode}")
                    time.sleep(0.1)
                client = SocketClient(unixsocket=address)
                client.run(atoms, use_stress=False)
                client.close()
            except BaseException:
                server.terminate()  # else it waits for another client
                raise
    _, conserved, kinetic, temperature = np.loadtxt("ethanol.out", unpack=True)
    classical = 1.5 * len(atoms) * units.kB * 300
    print(f"conserved quantity: changes by {np.ptp(conserved) * 1e3:.2f} meV")
    print(f"kinetic energy of the nuclei: {kinetic.mean():.2f} eV, classical {classical:.2f} eV")
    print(f"temperature of the beads: {temperature.mean():.0f} K")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
