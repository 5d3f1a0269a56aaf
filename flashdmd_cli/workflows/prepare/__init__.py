"""Conversion of captioned pictures or prompts to shards with a manifest, and the same for the embedded world.

Read in this order: `collection.py` -> `request.py` -> `run.py` -> `caches.py`.
"""

from flashdmd_cli.workflows.prepare.collection import prepare
from flashdmd_cli.workflows.prepare.suite import prepare_suite
from flashdmd_cli.workflows.prepare.world import NUM_SHAPES, prepare_shapes

__all__ = ["NUM_SHAPES", "prepare", "prepare_shapes", "prepare_suite"]
