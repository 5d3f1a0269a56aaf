"""Captioned pictures on disk: webdataset shards, the reading order of a training run, prompt files."""
