"""Losses, noise schedules and sampling as pure functions on tensors; no files, no models, no configuration."""
