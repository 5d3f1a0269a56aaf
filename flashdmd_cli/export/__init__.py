"""Export of students, one file per format."""

FORMATS = {"diffusers": "flashdmd_cli.export.diffusers:export_diffusers"}
"""Name of a format -> module and function `(family, student, steps, out)` that writes it."""
