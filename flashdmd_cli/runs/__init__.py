"""What the commands share on disk: recipes, manifests, checkpoints, metrics; and errors, signals and seeds."""
