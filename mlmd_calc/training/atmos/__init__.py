"""Training of ATMOS propagators."""
