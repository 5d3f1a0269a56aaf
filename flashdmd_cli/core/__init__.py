"""The mathematics: tensors in, tensors out; no files, no models, no configuration."""
