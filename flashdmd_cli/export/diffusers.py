"""A distilled student as a stock diffusers pipeline folder: nothing of this package is needed to draw with it."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.models.sdxl import SDXLFamily


def export_diffusers(student: Path, teacher: Path, steps: int, out: Path) -> list[Path]:
    """Write the student, the teacher's encoders and decoder, and the few-step scheduler as one pipeline folder.

    `student` is a UNet folder, `teacher` a pipeline folder, `steps` the student's; returns the files.
    Drawing takes `StableDiffusionXLPipeline.from_pretrained(out)(prompt, num_inference_steps=steps, guidance_scale=1)`.
    Raises `OSError` where weights are missing.
    """
    family = SDXLFamily.load(teacher)
    family.save_pipeline(family.load_network(student), out, family.grid(steps))
    (out / "README.md").write_text(model_card(steps, teacher.name), encoding="utf-8")
    return sorted(path for path in out.rglob("*") if path.is_file())


def model_card(steps: int, teacher: str) -> str:
    """What a person needs to know to draw with the folder."""
    return f"""# A student of {steps} {"step" if steps == 1 else "steps"}, distilled from {teacher}

```python
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("this folder")
picture = pipeline("a prompt", num_inference_steps={steps}, guidance_scale=1.0).images[0]
```

The scheduler in this folder returns exactly the timesteps that the student was trained on. Guidance is part of the
weights, so `guidance_scale` stays at 1. The teacher's licence holds for these weights too.
"""
