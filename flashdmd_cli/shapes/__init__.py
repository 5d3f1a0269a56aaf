"""The embedded toy data set: procedural pictures, captions, an attribute classifier, and the shipped assets."""
