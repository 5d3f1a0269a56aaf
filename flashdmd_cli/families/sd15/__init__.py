"""All code that is specific to Stable Diffusion 1 and 2."""
