"""Audit of force fields and propagators: numbers with standard errors, limits and verdicts."""
