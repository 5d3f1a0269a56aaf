"""Export of a student as a stock diffusers pipeline folder, which can be used without this package."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.core.grid import Grid
from flashdmd_cli.families.base import View
from flashdmd_cli.families.family import Family


def export_diffusers(family: Family, student: View, steps: int, out: Path) -> None:
    """Write the student, the teacher's encoders and decoder, and the few-step scheduler as one pipeline folder.

    Use: `DiffusionPipeline.from_pretrained(out)(prompt, num_inference_steps=steps, guidance_scale=1)`, for a flow with
    the grid's `sigmas` in place of the number of steps.
    """
    grid = family.grid(steps)
    family.save_pipeline(student.merged(), out, grid)
    (out / "README.md").write_text(model_card(steps, Path(family.source).name, grid), encoding="utf-8")


def model_card(steps: int, teacher: str, grid: Grid) -> str:
    """README with instructions for using the folder."""
    call = grid.call or {"num_inference_steps": steps}
    words = ", ".join(f"{name}={value}" for name, value in call.items())
    return f"""# A student of {steps} {"step" if steps == 1 else "steps"}, distilled from {teacher}

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder")
picture = pipeline("a prompt", {words}, guidance_scale=1.0).images[0]
```

Called so, the scheduler in this folder returns exactly the timesteps that the student was trained on. Guidance is part
of the weights, so `guidance_scale` stays at 1. The teacher's licence holds for these weights too.
"""
