"""Which encoders a cache of latents and embeddings stands in for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flashdmd_cli.families.files import Source
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.runs.files import sha256_file
from flashdmd_cli.runs.manifest import hash_folder


def encoders_hash(teacher: Path | Source) -> str:
    """Content hash of the parts of a teacher that a cache stands in for."""
    source = teacher if isinstance(teacher, Source) else Source(teacher)
    total, hashes = hashlib.sha256(), {}
    for part in family_at(source.folder).encoders:
        # Of a single file, all of it stands for each network in it, with the configuration from elsewhere.
        alone = [source.vae] if part == "vae" and source.vae else [source.weights] if source.config else []
        for place in [*alone, *([source.folder / part] if source.config or not alone else [])]:
            if place not in hashes:
                hashes[place] = sha256_file(place) if place.is_file() else hash_folder(place)
            total.update(f"{part} {hashes[place]}\n".encode())
    return total.hexdigest()
