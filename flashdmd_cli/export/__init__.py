"""A student leaves the project: one file per format."""

FORMATS = ("diffusers",)
