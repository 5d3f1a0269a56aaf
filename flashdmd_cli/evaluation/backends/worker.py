"""Runs inside the environment of `upstream`: the authors' packages, spoken to in JSON lines.

The first line on stdin says which metric and where its files are; each other one names an image file and its prompt,
and is answered by a line with its score. What the packages print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

Score = Callable[[str, str], float]


def image_reward(first: dict[str, Any]) -> Score:
    """`image-reward`'s `load` and `score`."""
    import torch

    # The package looks for its tokenizer under this name: in the current folder first, then on the hub.
    folder = tempfile.mkdtemp()
    os.symlink(first["vocabulary"], os.path.join(folder, "bert-base-uncased"))
    os.chdir(folder)
    import ImageReward
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer

    weights = torch.load(first["weights"], map_location="cpu")
    width, _, patch, _ = weights["blip.visual_encoder.patch_embed.proj.weight"].shape
    if width != 1024:  # not the published weights: the package builds no other size by itself
        num = weights["blip.visual_encoder.pos_embed"].shape[1] - 1
        depth = len({name.split(".")[3] for name in weights if name.startswith("blip.visual_encoder.blocks.")})
        net = VisionTransformer(
            img_size=patch * round(num**0.5), patch_size=patch, embed_dim=width, depth=depth, num_heads=width // 64
        )
        blip_pretrain.create_vit = lambda *_: (net, width)
    model = ImageReward.load(first["weights"], med_config=first["config"])
    if width != 1024:
        model.preprocess = sys.modules["ImageReward.ImageReward"]._transform(patch * round(num**0.5))
    return lambda image, prompt: float(model.score(prompt, image))


def hpsv2(first: dict[str, Any]) -> Score:
    """`hpsv2`'s `score`, which reads the weights from the disk at every call: they are kept in memory here, and the
    4 GB that it would fetch first, to overwrite them at once, are left out."""
    import torch
    from hpsv2 import img_score
    from hpsv2.src.open_clip import factory

    described = Path(first["weights"]).with_name("open_clip_config.json")
    if described.is_file():  # not the published size
        factory._MODEL_CONFIGS["ViT-H-14"] = json.loads(described.read_text())["model_cfg"]
    create = img_score.create_model_and_transforms
    img_score.create_model_and_transforms = lambda name, _, **settings: create(name, None, **settings)
    load = cache(lambda path, device: torch.load(path, map_location=device))

    class Torch:
        """torch, with a `load` that remembers."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def load(self, path: str, map_location: str) -> Any:
            return load(path, map_location)

    img_score.torch = Torch()
    return lambda image, prompt: float(img_score.score(image, prompt, cp=first["weights"])[0])


def main() -> None:
    """Answer all lines."""
    out, sys.stdout = sys.stdout, sys.stderr
    first = json.loads(sys.stdin.readline())
    score = image_reward(first) if first["metric"] == "image_reward" else hpsv2(first)
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            value = score(pair["image"], pair["prompt"])
        except Exception as error:
            print(f"{pair['image']}: {error}", file=sys.stderr)
            value = float("nan")
        print(json.dumps({"score": value}), file=out, flush=True)


if __name__ == "__main__":
    main()
