"""The model card of an export, from the manifests of its lineage and the newest evaluation of its student."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli import __version__
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import sha256_file
from flashdmd_cli.runs.folder import RUNS
from flashdmd_cli.runs.manifest import MANIFEST, Manifest, read_manifest
from flashdmd_cli.workflows.inputs.kinds import is_shapes

if TYPE_CHECKING:
    from flashdmd_cli.export.card import Use
    from flashdmd_cli.export.job import Job

CARD, PREVIEW = "README.md", "preview.png"


def card(manifest: Manifest, job: Job, checkpoint: Path, uses: Sequence[Use], on_hub: bool, in_comfyui: bool) -> str:
    """The text of `README.md` for the export with this manifest.

    The lines of `uses` load it from the hub, or run in the folder of the card. `in_comfyui`: ComfyUI reads one of its
    files.
    """
    from flashdmd_cli.export.card import license_facts, render

    assert manifest.export is not None
    formats = manifest.export.formats
    only_lora = all(name.startswith("lora") for name in formats)
    chain = ancestors(checkpoint)
    return render(
        {
            "title": job.title,
            "base_model": manifest.teacher.hub if manifest.teacher else None,
            "relation": "adapter" if only_lora else "finetune",
            "license": license_facts(manifest.license),
            "has_lora": any(name.startswith("lora") for name in formats),
            "in_comfyui": in_comfyui,
            "is_small": is_shapes(job.source.folder),
            "has_preview": (checkpoint / PREVIEW).is_file(),
            "steps": job.steps,
            "teacher": job.teacher,
            "version": __version__,
            "uses": uses,
            "runs_here": not on_hub and any(use.code for use in uses),
            "needs_package": any("flashdmd_cli" in use.code for use in uses),
            "timesteps": ", ".join(f"{value:g}" for value in timesteps(job)),
            "scheduler": job.scheduler,
            "formats": formats,
            "metrics": metrics_of(checkpoint),
            "lineage": [trained_as(each) for _, each in chain if each.kind in ("distill", "align")],
            "data": described_data(chain),
            "time": training_time(chain),
        }
    )


def timesteps(job: Job) -> list[float]:
    """The timesteps that the student's scheduler returns."""
    import diffusers

    scheduler = getattr(diffusers, job.scheduler).from_config(dict(job.scheduler_config))
    scheduler.set_timesteps(job.steps)
    return [round(value, 2) for value in scheduler.timesteps.tolist()]


def ancestors(folder: Path) -> list[tuple[Path, Manifest]]:
    """A result and those it was computed from, as far as they still exist unchanged, nearest first."""
    found = [(folder, read_manifest(folder))]
    for parent in found[0][1].parents:
        at = Path(os.path.normpath(folder / parent.path))
        if (at / MANIFEST).is_file() and sha256_file(at / MANIFEST) == parent.sha256:
            found += ancestors(at)
    return found


def trained_as(manifest: Manifest) -> str:
    """One line on a stage of training."""
    recipe = manifest.recipe
    form = "adapters" if recipe.get("model", {}).get("form") == "lora" else "all weights"
    updates = ", ".join(f"{count} of {role}" for role, count in manifest.updates.model_dump().items() if count)
    average = ", averaged" if manifest.weights and manifest.weights.average == "ema" else ""
    return (
        f"{manifest.kind}: recipe `{recipe.get('name', 'unnamed')}`, {form}{average}, {manifest.step} iterations, "
        f"{manifest.images_seen} pictures seen, updates: {updates or 'none'}"
    )


def described_data(chain: Sequence[tuple[Path, Manifest]]) -> str:
    """One line on the training data."""
    made = next((each for _, each in chain if each.kind == "data"), None)
    if made is None:
        return "its folder is gone or has changed"
    collection = made.collection
    if collection is None:  # `prepare-data shapes`
        return f"{made.recipe.get('num', '?')} rendered pictures of the embedded world with captions"
    what = "pictures with captions" if collection.pictures else "prompts"
    return f"{collection.kept} {what} of {collection.seen}"


def training_time(chain: Sequence[tuple[Path, Manifest]]) -> str:
    """GPU-hours of all stages, or hours on a CPU."""
    parts = []
    for _, each in chain:
        if each.kind not in ("distill", "align"):
            continue
        hours = each.wall_seconds / 3600
        if "accelerator" in each.hardware:
            num = int(each.hardware.get("num_accelerators", 1))
            parts.append(f"{each.kind} {hours * num:.2f} GPU-hours on {each.hardware['accelerator']}")
        else:
            parts.append(f"{each.kind} {hours:.2f} hours on a CPU with {each.hardware.get('cores', '?')} cores")
    return "; ".join(parts)


def metrics_of(checkpoint: Path) -> dict[str, Any] | None:
    """The newest evaluation of this student under ./runs or beside its folder, for the card; None if there is none."""
    from flashdmd_cli.evaluation.results import read_results

    own, found = sha256_file(checkpoint / MANIFEST), []
    places = {path.resolve() for root in (RUNS, checkpoint.resolve().parent) for path in root.glob(f"*/{MANIFEST}")}
    for path in places:
        try:
            manifest = read_manifest(path.parent)
            if manifest.kind == "eval" and any(parent.sha256 == own for parent in manifest.parents):
                found.append((path.stat().st_mtime_ns, read_results(path.parent)))
        except (InputError, OSError):
            continue
    if not found:
        return None
    document = max(found, key=lambda row: row[0])[1]
    rows = [{"name": name, **{key: values[key] for key in ("value", "low", "high")}}
            for name, values in document["metrics"].items() if values.get("value") is not None]  # fmt: skip
    suite = document.get("suite") or {}
    return {"suite": suite.get("name", "pictures"), "num_pictures": document.get("num_pictures"), "rows": rows}
