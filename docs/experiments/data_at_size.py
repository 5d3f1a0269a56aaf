"""Open a data folder of 10 million samples with cached latents and text, and read the first batch of 64.

    python docs/experiments/data_at_size.py OUT [--shards 10000]

OUT has 10,000 shards of 1000 pictures (hard links to one file, whose samples are real), as many files of latents, and
an index of 10 million prompts. Opening is measured in a process of its own: seconds, bytes read by system calls,
resident memory. Then the time to build an index of samples from the headers of shards, which data of an earlier version
need.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from flashdmd_cli.data.caches import LATENTS, PROMPTS, TEXT, digest
from flashdmd_cli.data.index import (
    INDEX,
    PROMPT_INDEX,
    build_sample_index,
    key_of,
    sizes_of_files,
    write_index,
)
from flashdmd_cli.data.shards import ShardDataset, write_shards
from flashdmd_cli.runs.manifest import MANIFEST, FileRecord, Manifest, read_manifest
from flashdmd_cli.shapes.samples import shapes_samples

PER_SHARD, BATCH = 1000, 64


def make(out: Path, num: int) -> None:
    """Write the folder, unless it is there."""
    if (out / MANIFEST).is_file():
        return
    out.mkdir(parents=True)
    write_shards(shapes_samples(PER_SHARD, seed=0), out, PER_SHARD, "one")
    first = out / "one-000000.tar"
    captions = list(dict.fromkeys(sample["txt"] for sample in shapes_samples(PER_SHARD, seed=0)))
    random = torch.Generator().manual_seed(0)
    latents, texts = out / f"one{LATENTS}", out / f"pictures-000000{TEXT}"
    save_file({"latents": torch.randn(PER_SHARD, 4, 16, 16, generator=random).bfloat16()}, latents)
    digests = torch.tensor([list(digest(caption)) for caption in captions], dtype=torch.uint8)
    embeddings = {"context": torch.randn(len(captions), 24, 32), "pooled": torch.randn(len(captions), 16)}
    save_file(embeddings | {PROMPTS: digests}, texts)
    shards = [out / f"pictures-{number:06d}.tar" for number in range(num)]
    for shard in shards:
        os.link(first, shard)
        os.link(latents, shard.with_name(shard.stem + LATENTS))
    one = build_sample_index([first])
    arrays = {"firsts": np.arange(num + 1) * PER_SHARD, "offsets": np.tile(one["offsets"], num)}
    write_index(out / INDEX, sizes_of_files(shards), arrays)
    first.unlink()
    latents.unlink()
    others = np.random.default_rng(0).integers(-(2**63), 2**63, num * PER_SHARD - len(captions))
    keys = np.concatenate([key_of(digests.numpy()), others])
    rows = np.concatenate([np.arange(len(captions)), np.zeros(len(others))]).astype(np.int32)
    order = np.argsort(keys)
    index = {"keys": keys[order], "files": np.zeros(len(keys), dtype=np.int32), "rows": rows[order]}
    write_index(out / PROMPT_INDEX, sizes_of_files([texts]), index)
    records = [FileRecord(path=path.name, size=path.stat().st_size, sha256="0" * 64) for path in sorted(out.iterdir())]
    (out / MANIFEST).write_text(Manifest(kind="data", files=records).model_dump_json())


def counters() -> dict[str, float]:
    """Seconds, megabytes read by system calls, and megabytes of resident memory: the process's own, and pages of files,
    which belong to the system's cache."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": time.perf_counter(),
        "processor seconds": time.process_time(),
        "MB read": int(Path("/proc/self/io").read_text().split()[1]) / 1e6,
        "MB of its own": int(status["RssAnon"].split()[0]) / 1e3,
        "MB of mapped files": int(status["RssFile"].split()[0]) / 1e3,
    }


def measure(out: Path) -> None:
    """Open the folder and read two batches; prints one document, each row counted from the start."""
    torch.randperm(10)
    rows, start = {}, counters()

    def note(name: str) -> None:
        rows[name] = {key: round(value - start[key], 3) for key, value in counters().items()}

    files = [record.model_dump() for record in read_manifest(out).files]
    note("manifest read")
    data = ShardDataset(out, files, ("latents", "text"))
    note("opened")
    batch = data.batch(range(BATCH))
    note("first batch")
    data.batch(range(BATCH, 2 * BATCH))
    note("second batch")
    assert batch.latents is not None and batch.text is not None
    rows["samples"], rows["files"] = len(data), len(files)
    print(json.dumps(rows, indent=1))


def build(out: Path, num: int = 20) -> None:
    """Processor seconds to build an index from the headers of shards, for each million samples."""
    shards = sorted(out.glob("*.tar"))[:num]
    began = time.process_time()
    build_sample_index(shards)
    seconds = (time.process_time() - began) / len(shards) / PER_SHARD * 1e6
    print(json.dumps({"processor seconds to index a million samples": round(seconds, 1)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--measure", choices=("open", "build"))
    options = parser.parse_args()
    if options.measure == "open":
        measure(options.out)
    elif options.measure == "build":
        build(options.out)
    else:
        make(options.out, options.shards)
        for what in ("open", "build"):
            subprocess.run([sys.executable, __file__, str(options.out), "--measure", what], check=True)
