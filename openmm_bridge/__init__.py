"""Learned force fields and propagators inside OpenMM."""
