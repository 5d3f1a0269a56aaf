"""Rebuilds the embedded world's models, which the package ships, part by part."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flashdmd_cli.building import PARTS
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.files import writing
from flashdmd_cli.runs.lock import hold, releasing
from flashdmd_cli.runs.nearest import nearest
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.workflows.inputs.kinds import SHAPES

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.names import Sampler

MEASURED: tuple[tuple[Sampler, int, float], ...] = (
    ("ddim", 30, 4.0), ("ddim", 30, 1.0), ("ddim", 30, 2.5), ("ddim", 30, 7.0), ("ddim", 8, 4.0), ("ddim", 4, 4.0),
    ("stochastic", 4, 4.0),
)  # fmt: skip
"""Sampler, steps and guidance that the flow-matching teacher is measured with; the first is its own."""
NUM_MEASURED = 512
"""Captions of the suite `shapes-val` that it is measured on."""
DRAWN_AT_ONCE = 356
"""Pictures of those that are drawn in one batch."""


class RewardPart(NamedTuple):
    """How the pairs of a reward model are made."""

    teacher: str
    place: str
    """Subfolder of `work`."""
    steps: int
    """Sampling steps of the teacher's pictures: few, so that errors like a student's occur."""


REWARDS = {
    "reward": RewardPart(SHAPES, "pairs", 4),
    # In 4 steps, most of shapes-sd3's pictures would be wrong.
    "sd3-reward": RewardPart("shapes-sd3", "sd3-pairs", 8),
}
ON_DEVICE = ("sd3", *REWARDS)
"""The parts that are built on an accelerator where there is one; the others are small."""


@releasing()
def build_part(
    part: str,
    out: Path,
    work: Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    device: str | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, float]:
    """Train one of `building.PARTS` and write it to `out`; returns its metrics.

    Checkpoints and logs are written to `work`, which all parts share; the same call again resumes. `steps` is the
    number of training steps (None: the part's default); `minutes` ends that of `sd3` early. `device` is for the parts
    in `ON_DEVICE`. Raises `UsageError` for an unknown part, or if another process is using `work`.
    """
    reporter = reporter or SilentReporter()
    if part not in PARTS:
        raise UsageError(f"PART {part}: unknown{nearest(part, PARTS)}", hint=f"known parts: {', '.join(PARTS)}")
    if minutes is not None and part != "sd3":
        raise UsageError(f"--minutes: {part} has no such setting", hint="it is for sd3 alone; --steps is for all")
    if device is not None and part not in ON_DEVICE:
        raise UsageError(f"--device: {part} has no such setting", hint=f"it is for {', '.join(ON_DEVICE)}")
    if minutes is not None and minutes <= 0:
        raise UsageError(f"--minutes {minutes:g}: must be above 0", hint="leave it out for the part's recipe")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: must be at least 1", hint="leave it out for the part's default")
    with writing(work, "--work"):
        work.mkdir(parents=True, exist_ok=True)
        hold(work, "--work")
    if part == "picture":
        from flashdmd_cli.workflows.known_picture import save_known

        save_known(asset(SHAPES), out)
        return {}
    if part in REWARDS:
        return build_reward(part, out, work, steps, device, seed, reporter)
    if part == "sd3":
        return build_flow_teacher(out, work, steps, minutes, device, seed, reporter)
    length = {} if steps is None else {"steps": steps}
    builder = getattr(importlib.import_module(f"flashdmd_cli.building.{part}"), f"build_{part}")
    # The autoencoder's builder expects its own folder inside the teacher's; the other builders choose subfolders.
    measured = builder(work, out / "vae" if part == "vae" else out, seed=seed, say=reporter.say, **length)
    return measured if isinstance(measured, dict) else {}


def build_reward(
    part: str, out: Path, work: Path, steps: int | None, device: str | None, seed: int, reporter: Reporter
) -> dict[str, float]:
    """Sample pairs with a shipped teacher, label them with the shipped inspector, train a reward model on them."""
    from flashdmd_cli.building.pairs import build_pairs
    from flashdmd_cli.evaluation.generate import generate
    from flashdmd_cli.runs.device import resolve
    from flashdmd_cli.shapes.inspector import load_inspector
    from flashdmd_cli.workflows.inputs.drawers import as_teacher
    from flashdmd_cli.workflows.inputs.families import load_family
    from flashdmd_cli.workflows.recipes import reward_recipe
    from flashdmd_cli.workflows.reward import REPORT, train_reward

    made = REWARDS[part]
    recipe = reward_recipe(teacher=made.teacher, iterations=steps, seed=seed, device=device)
    folder = asset(made.teacher)
    family = load_family(folder, resolve(device or "auto"))
    teacher = as_teacher(family, made.teacher, folder, "stochastic", made.steps)

    def draw(texts: Sequence[str], first: int) -> Tensor:
        return generate(family, teacher.net, texts, seed, "stochastic", made.steps, teacher.guidance,
                        first_index=first, batch=len(texts))  # fmt: skip

    pairs = build_pairs(draw, load_inspector(asset("inspector")), work / made.place, seed=seed, say=reporter.say)
    train_reward(recipe, pairs, out, half=True, reporter=reporter)
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    return {f"accuracy_{timestep}": value for timestep, value in report["accuracy"].items()}


def build_flow_teacher(
    out: Path, work: Path, steps: int | None, minutes: float | None, device: str | None, seed: int, reporter: Reporter
) -> dict[str, float]:
    """The teacher `shapes-sd3`, on the other parts of `shapes-sdxl`, and what it draws in a few settings.

    Pictures and measurements are written to `work`: `sd3.png` and `sd3.json`.
    """
    from flashdmd_cli.building.sd3 import build_sd3
    from flashdmd_cli.runs.device import resolve

    place = resolve(device or "auto")
    build_sd3(work, out, steps, seed, reporter.say, source=asset(SHAPES), place=place, minutes=minutes)
    return measure_teacher(out, work, place.device, reporter)


def measure_teacher(out: Path, work: Path, device: str, reporter: Reporter) -> dict[str, float]:
    """Measure the teacher in `out` with its own sampler and as few-step students draw, at several guidances."""
    from flashdmd_cli.core.pictures import as_bytes
    from flashdmd_cli.evaluation.generate import generate
    from flashdmd_cli.evaluation.measuring import Evaluator
    from flashdmd_cli.evaluation.suites.spec import read_suite
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.workflows.inputs.families import load_family

    family = load_family(out, Place(device, "fp32"))
    suite = read_suite("shapes-val", NUM_MEASURED)
    texts = [row.prompt for row in suite.rows]
    evaluator, table, shown = Evaluator(suite), [], None
    for sampler, num, guidance in MEASURED:
        pictures = generate(family, family.teacher, texts, 0, sampler, num, guidance, batch=DRAWN_AT_ONCE)
        measured = evaluator.evaluate([(as_bytes(pictures), suite.rows)]).as_dict()
        row = {"sampler": sampler, "steps": num, "guidance": guidance, **measured}
        reporter.say(f"sd3 {sampler} {num} guidance {guidance:g}: composition {measured['composition']:.3f}, "
                     f"Frechet {measured['frechet']:.1f}, high frequency {measured['high_frequency']:.2f}")  # fmt: skip
        table.append(row)
        if shown is None:
            shown = as_bytes(pictures[:64])
            save_sheet(shown, work / "sd3.png")
    (work / "sd3.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return {name: table[0][name] for name in ("composition", "frechet", "high_frequency")}


def save_sheet(pictures: Tensor, path: Path, columns: int = 8) -> None:
    """Write pictures (N, 3, H, W) uint8 side by side; those that fill no row are left out."""
    from PIL import Image

    pictures = pictures[: len(pictures) // columns * columns]
    rows = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # (rows, H, columns, W, 3)
    Image.fromarray(rows.flatten(2, 3).flatten(0, 1).contiguous().numpy()).save(path)
