"""Trains the shipped assets of the embedded world, each from its recipe, by the same command again when interrupted."""

PARTS = ("inspector", "vae", "text", "unet", "sam", "reward", "picture")
"""In the order in which they are built: each may need those before it."""
