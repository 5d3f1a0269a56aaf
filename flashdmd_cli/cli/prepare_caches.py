"""`prepare-data --cache`: forecast, refuse what does not fit, embed on every accelerator, note it in the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.cli.prepare_workers import Stop, Tick, run_tasks
from flashdmd_cli.data.chunks import Stopped
from flashdmd_cli.models.dimensions import Dimensions, read_dimensions
from flashdmd_cli.models.layout import Source
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import size, write_text_atomically
from flashdmd_cli.runs.manifest import (
    CacheRecord,
    FileRecord,
    Manifest,
    read_manifest,
    write_manifest,
)
from flashdmd_cli.workflows.encoders import encoders_hash
from flashdmd_cli.workflows.inputs.teachers import Parts, find_source

if TYPE_CHECKING:
    from flashdmd_cli.cli.prepare_run import Preparation

KINDS = ("latents", "text")
USES = "uses.json"
BF16 = 2
"""Bytes of a number."""


def forecast(dimensions: Dimensions, pictures: int, prompts: int, what: tuple[str, ...]) -> int:
    """Bytes that the caches take."""
    latents = pictures * dimensions.latent_numbers if "latents" in what else 0
    return BF16 * (latents + (prompts * dimensions.text_numbers if "text" in what else 0))


def dimensions_of(teacher: str, parts: Parts) -> Dimensions:
    """Of a teacher that is on this machine; InputError when it is not, or is no SDXL."""
    source = find_source(teacher, parts)
    try:
        return read_dimensions(source.folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--teacher {teacher}: is no SDXL pipeline: {error}") from None


def refuse_too_big(out: Path, dimensions: Dimensions, pictures: int, prompts: int, what: tuple[str, ...]) -> int:
    """The forecast in bytes; InputError when the disk of `out` has less than that."""
    needed = forecast(dimensions, pictures, prompts, what)
    at = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    if needed > (free := shutil.disk_usage(at).free):
        raise InputError(
            f"--cache {','.join(what)}: needs {size(needed)}, the disk of {out} has {size(free)}",
            hint="free some space, cache less, or prepare without --cache and add it later with the same command",
        )
    return needed


@dataclass
class CacheJob:
    """Shard k gets its caches."""

    shards: list[Path]
    work: Path
    teacher: Source
    identity: str
    what: tuple[str, ...]
    encoders: Any = None

    def start(self, number: int) -> None:
        """Load the teacher on accelerator `number`, round robin."""
        import torch

        from flashdmd_cli.data.caches import Encoders
        from flashdmd_cli.workflows.inputs.families import load_family

        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())
        family = load_family(self.teacher)

        def text(prompts: Any) -> Any:
            cond = family.encode(prompts)
            return cond.context, cond.pooled

        self.encoders = Encoders(self.identity, lambda x: family.encode_pictures(x.to(family.device)), text)

    def run(self, task: int, tick: Tick, stop: Stop) -> None:
        from flashdmd_cli.data.caches import write_caches

        write_caches(self.shards[task], self.work, self.encoders, self.what, tick=tick, stop=stop)
        if stop():
            raise Stopped


def add_caches(prep: Preparation, manifest: Manifest) -> Manifest | None:
    """Write the caches that are asked for and not there; the manifest with them, or None when others have work left.

    The shards stay as they are, and so does everything that is cached already.
    """
    from flashdmd_cli.data.caches import cache_files, first_uses

    request, collection = prep.request, manifest.collection
    assert collection is not None
    what = tuple(kind for kind in KINDS if kind in request.cache and (kind != "latents" or collection.pictures))
    if not what:
        return manifest
    teacher = find_source(request.teacher, request.parts)
    identity = encoders_hash(teacher)
    held = collection.cache
    if held is not None and held.encoders == identity and set(what) <= set(held.what):
        return manifest
    shards = [prep.out / record.path for record in manifest.files if record.path.endswith(".tar")]
    with prep.alone():
        note = prep.work / USES
        if not note.is_file():
            prep.observer.phase("looking for prompts that occur more than once")
            new_prompts, samples, pictures = first_uses(shards, prep.work)
            write_text_atomically(note, json.dumps([new_prompts, samples, pictures]))
    new_prompts, samples, pictures = json.loads(note.read_text(encoding="utf-8"))
    if "text" in what:
        tell_cut(prep, teacher.folder, [shards[task] for task in prep.share.of(len(shards))])
    needed = refuse_too_big(prep.out, dimensions_of(request.teacher, request.parts), pictures, sum(new_prompts), what)
    mine = list(prep.share.of(len(shards)))
    share = f", {len(mine)} of {len(shards)} shards here" if len(mine) < len(shards) else ""
    prep.observer.phase(
        f"caching {' and '.join(what)} of {samples} samples, {sum(new_prompts)} different prompts: "
        f"{size(needed)} in all{share}",
        "item",
    )
    per_shard = [("latents" in what) * pictures / len(shards) + ("text" in what) * count for count in new_prompts]
    job = CacheJob(shards, prep.work, teacher, identity, what)
    done_marks = [prep.work / f"{shard.stem}.{identity[:12]}.{'-'.join(what)}.done" for shard in shards]
    mine = [task for task in mine if not done_marks[task].is_file()]
    tick = prep.teller(round(sum(per_shard[task] for task in mine)))
    run_tasks(_Marked(job, done_marks), mine, prep.num_processes, tick, first=prep.share.local)
    if not prep.others_too(lambda: all(mark.is_file() for mark in done_marks) or _has(prep.out, identity, what)):
        return None
    with prep.alone():
        if _has(prep.out, identity, what):
            return read_manifest(prep.out)
        kept = set(held.what) if held is not None and held.encoders == identity else set()
        union = tuple(kind for kind in KINDS if kind in kept | set(what))
        files = [path for shard, count in zip(shards, new_prompts, strict=True)
                 for path in cache_files(shard, count, union)]  # fmt: skip
        record = CacheRecord(what=list(union), teacher=request.teacher, encoders=identity)
        listed = [each for each in manifest.files if not each.path.endswith(".safetensors")]
        return write_manifest(
            prep.out,
            manifest.model_copy(
                update={
                    "files": listed + [FileRecord(path=path.name) for path in files],
                    "collection": collection.model_copy(update={"cache": record}),
                }
            ),
        )


def tell_cut(prep: Preparation, teacher: Path, shards: list[Path]) -> None:
    """Warn when prompts of this share are longer than the teacher reads."""
    from flashdmd_cli.data.caches import new_prompts
    from flashdmd_cli.models.tokens import cut_short, load_tokenizers

    prompts = (prompt for shard in shards for prompt in new_prompts(prep.work, shard))
    if told := cut_short(load_tokenizers(teacher), prompts):
        prep.observer.output.say(told)


def _has(out: Path, identity: str, what: tuple[str, ...]) -> bool:
    collection = read_manifest(out).collection
    cache = collection.cache if collection is not None else None
    return cache is not None and cache.encoders == identity and set(what) <= set(cache.what)


@dataclass
class _Marked:
    """A job that notes each finished task in a file, for whoever waits."""

    job: CacheJob
    marks: list[Path]

    def start(self, number: int) -> None:
        self.job.start(number)

    def run(self, task: int, tick: Tick, stop: Stop) -> None:
        self.job.run(task, tick, stop)
        self.marks[task].touch()
