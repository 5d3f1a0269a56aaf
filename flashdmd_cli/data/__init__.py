"""Captioned pictures: preparation, webdataset shards, random access for training, prompt files."""
