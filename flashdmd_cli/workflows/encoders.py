"""Identifies the encoders whose outputs a cache of latents and embeddings contains."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flashdmd_cli.families.files import Source
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.runs.files import sha256_file
from flashdmd_cli.runs.manifest import hash_folder


def encoders_hash(teacher: Path | Source) -> str:
    """SHA-256 of a teacher's encoders (autoencoder and text encoders), by content."""
    source = teacher if isinstance(teacher, Source) else Source(teacher)
    total, hashes = hashlib.sha256(), {}
    facts = family_at(source.folder)
    for part in (*facts.encoders, *facts.extras(source.weights)):
        # A single-file teacher is hashed as a whole for each network, together with its separate configuration.
        alone = [source.vae] if part == "vae" and source.vae else [source.weights] if source.config else []
        for place in [*alone, *([source.folder / part] if source.config or not alone else [])]:
            if place not in hashes:
                hashes[place] = sha256_file(place) if place.is_file() else hash_folder(place)
            total.update(f"{part} {hashes[place]}\n".encode())
    return total.hexdigest()
