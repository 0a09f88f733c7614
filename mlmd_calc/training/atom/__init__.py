"""Training of ATOM propagators."""
