"""Everything that is true of Stable Diffusion XL."""
