"""Training of the shipped assets of the embedded world; the same command resumes an interrupted build."""

PARTS = ("inspector", "vae", "text", "unet", "sam", "reward", "picture", "sd3", "sd3-reward")
"""In build order; each may depend on those before it."""
