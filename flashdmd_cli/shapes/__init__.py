"""The embedded world: procedural pictures, their captions, the network that reads them back, and the shipped assets."""
