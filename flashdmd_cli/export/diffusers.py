"""Export of a student as a stock diffusers pipeline folder, which can be used without this package."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.families.base import View
from flashdmd_cli.families.family import Family


def export_diffusers(family: Family, student: View, steps: int, out: Path) -> None:
    """Write the student, the teacher's encoders and decoder, and the few-step scheduler as one pipeline folder.

    Use: `StableDiffusionXLPipeline.from_pretrained(out)(prompt, num_inference_steps=steps, guidance_scale=1)`.
    """
    family.save_pipeline(student.merged(), out, family.grid(steps))
    (out / "README.md").write_text(model_card(steps, Path(family.source).name), encoding="utf-8")


def model_card(steps: int, teacher: str) -> str:
    """README with instructions for using the folder."""
    return f"""# A student of {steps} {"step" if steps == 1 else "steps"}, distilled from {teacher}

```python
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("this folder")
picture = pipeline("a prompt", num_inference_steps={steps}, guidance_scale=1.0).images[0]
```

The scheduler in this folder returns exactly the timesteps that the student was trained on. Guidance is part of the
weights, so `guidance_scale` stays at 1. The teacher's licence holds for these weights too.
"""
