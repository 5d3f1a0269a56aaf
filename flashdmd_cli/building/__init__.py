"""Trains the shipped assets of the embedded world, each from its recipe, by the same command again when interrupted."""
