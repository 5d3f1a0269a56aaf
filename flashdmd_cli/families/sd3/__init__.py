"""All code that is specific to Stable Diffusion 3."""
