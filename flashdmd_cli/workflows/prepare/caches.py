"""Caches of latents and text embeddings: predict the size, encode on all accelerators, record them in the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.files import Source
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import size, write_text_atomically
from flashdmd_cli.runs.manifest import CacheRecord, FileRecord, Manifest, read_manifest, write_manifest
from flashdmd_cli.runs.workers import Stop, Tick, run_tasks
from flashdmd_cli.workflows.encoders import encoders_hash
from flashdmd_cli.workflows.inputs.teachers import find_source
from flashdmd_cli.workflows.prepare.request import CACHES, Request, dimensions_of
from flashdmd_cli.workflows.prepare.workplace import Workplace

USES = "uses.json"
BF16 = 2
"""Bytes per number in bfloat16."""


def forecast(dimensions: Dimensions, pictures: int, prompts: int, what: tuple[str, ...]) -> int:
    """Size of the caches in bytes."""
    latents = pictures * dimensions.latent_numbers if "latents" in what else 0
    return BF16 * (latents + (prompts * dimensions.text_numbers if "text" in what else 0))


def refuse_too_big(out: Path, dimensions: Dimensions, pictures: int, prompts: int, what: tuple[str, ...]) -> int:
    """The predicted size in bytes; InputError if the disk of `out` has less free space."""
    needed = forecast(dimensions, pictures, prompts, what)
    at = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    if needed > (free := shutil.disk_usage(at).free):
        raise InputError(
            f"--cache {','.join(what)}: needs {size(needed)}, the disk of {out} has {size(free)}",
            hint="free some space, cache less, or prepare without --cache and add it later to the same command",
        )
    return needed


@dataclass
class CacheJob:
    """The task of worker processes: write the caches of one shard, and a marker file that shows it is finished."""

    shards: list[Path]
    work: Path
    teacher: Source
    identity: str
    what: tuple[str, ...]
    marks: list[Path]
    encoders: Any = None

    def start(self, number: int) -> None:
        """Load the teacher in worker `number`; the workers are distributed over the accelerators."""
        import torch

        from flashdmd_cli.data.caches import Encoders
        from flashdmd_cli.workflows.inputs.families import load_family

        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())
        family = load_family(self.teacher, weights="bf16")  # only its encoders are used

        self.encoders = Encoders(self.identity, lambda x: family.encode_pictures(x.to(family.device)), family.embed)

    def run(self, task: int, tick: Tick, stop: Stop) -> None:
        from flashdmd_cli.data.caches import write_caches

        write_caches(self.shards[task], self.work, self.encoders, self.what, tick=tick, stop=stop)
        if not stop():
            self.marks[task].touch()


def add_caches(request: Request, at: Workplace, manifest: Manifest) -> Manifest | None:
    """Write the requested caches that are missing; returns the new manifest, or None if other shares are unfinished.

    Shards and existing caches are not changed.
    """
    from flashdmd_cli.data.caches import LATENTS, TEXT, cache_files, first_uses, prompts_of
    from flashdmd_cli.data.index import PROMPT_INDEX, build_prompt_index, sizes_of_files, write_index

    collection = manifest.collection
    assert collection is not None
    what = tuple(kind for kind in CACHES if kind in request.cache and (kind != "latents" or collection.pictures))
    if not what:
        return manifest
    teacher = find_source(request.teacher, request.parts, at.reporter)
    identity = encoders_hash(teacher)
    existing = collection.cache
    if existing is not None and existing.encoders == identity and set(what) <= set(existing.what):
        return manifest
    shards = [at.out / record.path for record in manifest.files if record.path.endswith(".tar")]
    with at.alone():
        note = at.work / USES
        if not note.is_file():
            at.reporter.phase("looking for prompts that occur more than once")
            new_prompts, samples, pictures = first_uses(shards, at.work)
            write_text_atomically(note, json.dumps([new_prompts, samples, pictures]))
    new_prompts, samples, pictures = json.loads(note.read_text(encoding="utf-8"))
    if "text" in what:
        warn_truncated(at, teacher.folder, [shards[task] for task in at.share.of(len(shards))])
    needed = refuse_too_big(at.out, dimensions_of(request, at.reporter), pictures, sum(new_prompts), what)
    mine = list(at.share.of(len(shards)))
    share = f", {len(mine)} of {len(shards)} shards here" if len(mine) < len(shards) else ""
    at.reporter.phase(
        f"caching {' and '.join(what)} of {samples} samples, {sum(new_prompts)} different prompts: "
        f"{size(needed)} in all{share}",
        "item",
    )
    per_shard = [("latents" in what) * pictures / len(shards) + ("text" in what) * count for count in new_prompts]
    done_marks = [at.work / f"{shard.stem}.{identity[:12]}.{'-'.join(what)}.done" for shard in shards]
    job = CacheJob(shards, at.work, teacher, identity, what, done_marks)
    mine = [task for task in mine if not done_marks[task].is_file()]
    tick = at.counter(round(sum(per_shard[task] for task in mine)))
    run_tasks(job, mine, at.num_processes, tick, first=at.share.local)
    if not at.others_too(lambda: all(mark.is_file() for mark in done_marks) or _has(at.out, identity, what)):
        return None
    with at.alone():
        if _has(at.out, identity, what):
            return read_manifest(at.out)
        kept = set(existing.what) if existing is not None and existing.encoders == identity else set()
        union = tuple(kind for kind in CACHES if kind in kept | set(what))
        files = [path for shard, count in zip(shards, new_prompts, strict=True)
                 for path in cache_files(shard, count, union)]  # fmt: skip
        record = CacheRecord(what=list(union), teacher=request.teacher, encoders=identity)
        if texts := sorted(path for path in files if path.name.endswith(TEXT)):
            index = build_prompt_index(texts, prompts_of)
            write_index(at.out / PROMPT_INDEX, sizes_of_files(texts), index)
            files.append(at.out / PROMPT_INDEX)
        listed = [each for each in manifest.files if not each.path.endswith((LATENTS, TEXT, PROMPT_INDEX))]
        return write_manifest(
            at.out,
            manifest.model_copy(
                update={
                    "files": listed + [FileRecord(path=path.name) for path in files],
                    "collection": collection.model_copy(update={"cache": record}),
                }
            ),
        )


def warn_truncated(at: Workplace, teacher: Path, shards: list[Path]) -> None:
    """Warn if prompts of this share exceed the teacher's token limit."""
    from flashdmd_cli.data.caches import new_prompts
    from flashdmd_cli.families.registry import family_at
    from flashdmd_cli.families.tokens import cut_short, load_tokenizers

    prompts = (prompt for shard in shards for prompt in new_prompts(at.work, shard))
    if message := cut_short(load_tokenizers(teacher, family_at(teacher).tokenizers), prompts):
        at.reporter.say(message)


def _has(out: Path, identity: str, what: tuple[str, ...]) -> bool:
    collection = read_manifest(out).collection
    cache = collection.cache if collection is not None else None
    return cache is not None and cache.encoders == identity and set(what) <= set(cache.what)
