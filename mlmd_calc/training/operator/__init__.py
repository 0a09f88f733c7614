"""Training of the published ATOM operator."""
