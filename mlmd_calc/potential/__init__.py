"""Engine-neutral force evaluation: structures in, energies and forces out."""
