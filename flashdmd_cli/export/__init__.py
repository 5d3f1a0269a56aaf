"""Export of students, one file per format."""

FORMATS = ("diffusers",)
