"""Recipes, manifests, checkpoints and metrics on disk; errors, signals and seeds."""
