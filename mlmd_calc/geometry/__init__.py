"""Geometry that every part borrows: rotations, superposition, bonds, handedness."""
