"""Training and fine-tuning of the networks on labelled frames."""
