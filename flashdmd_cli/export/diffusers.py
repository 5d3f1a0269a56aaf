"""Export of a student as a stock diffusers pipeline folder, which can be used without this package."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers

from flashdmd_cli.families.base import View
from flashdmd_cli.families.family import Family
from flashdmd_cli.runs.files import write_text_atomically


def export_diffusers(family: Family, student: View, steps: int, out: Path) -> None:
    """Write the student, the teacher's encoders and decoder, and the few-step scheduler as one pipeline folder.

    Use: `DiffusionPipeline.from_pretrained(out)(prompt, num_inference_steps=steps, guidance_scale=1)`.
    """
    family.save_pipeline(student.merged(), out, family.grid(steps))
    card = model_card(steps, Path(family.source).name, absent_parts(out))
    write_text_atomically(out / "README.md", card)


def absent_parts(folder: Path) -> str:
    """Arguments of `from_pretrained` for the parts that a pipeline has not: ", text_encoder_3=None, tokenizer_3=None".

    Without them, stock pipelines refuse to load a folder without a part that their class does not call optional.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    optional = getattr(diffusers, index["_class_name"])._optional_components
    return "".join(f", {name}=None" for name, kind in index.items() if kind == [None, None] and name not in optional)


def model_card(steps: int, teacher: str, absent: str) -> str:
    """README with instructions for using the folder; `absent` are further arguments for loading it."""
    return f"""# A student of {steps} {"step" if steps == 1 else "steps"}, distilled from {teacher}

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("this folder"{absent})
picture = pipeline("a prompt", num_inference_steps={steps}, guidance_scale=1.0).images[0]
```

Called so, the scheduler in this folder returns exactly the timesteps that the student was trained on. Guidance is part
of the weights, so `guidance_scale` stays at 1. The teacher's licence holds for these weights too.
"""
