"""The loops: what trains, in which order, on what."""
