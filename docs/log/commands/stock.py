"""Stock diffusers alone draws with a shipped teacher and with an exported student; nothing of this package is imported.

stock.py TEACHER EXPORTED OUT.png      first row: teacher, 30 steps, guidance 4; second row: student, 4 steps

    flashdmd export --from runs/demo/student --format diffusers --out exported
    stock.py "$(python -c 'from flashdmd_cli.shapes.assets import asset; print(asset("shapes-sdxl"))')" exported OUT.png
"""

import sys

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

CAPTIONS = [
    "a striped red ring above a plain blue square",
    "a dotted green triangle to the left of a plain white circle",
    "a plain yellow square to the left of a striped purple ring",
    "a dotted cyan circle over a plain orange triangle",
    "a plain green ring on top of a dotted red square",
    "a striped blue triangle on the left of a plain yellow circle",
]

teacher, exported, out = sys.argv[1:]
rows = []
for folder, steps, guidance in ((teacher, 30, 4.0), (exported, 4, 1.0)):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    rows.append(pipeline(CAPTIONS, num_inference_steps=steps, guidance_scale=guidance, generator=seed).images)
    print(folder, type(pipeline.scheduler).__name__, [int(t) for t in pipeline.scheduler.timesteps])
side = 128
sheet = Image.new("RGB", (side * len(CAPTIONS), side * len(rows)))
for y, row in enumerate(rows):
    for x, picture in enumerate(row):
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x * side, y * side))
sheet.save(out)
