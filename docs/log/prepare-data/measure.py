"""The figures of docs/log/2026-11-21-prepare-data.md: counts, kills, processes, memory.

    python docs/log/prepare-data/measure.py WORK counts|kills|processes|memory

Run from the repository, with the test extra installed: the collections are those of `tests/messy.py`. WORK is where to
write.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmark import files  # noqa: E402

from tests.messy import messy_folder  # noqa: E402

COMMAND = [sys.executable, "-m", "flashdmd_cli.cli.app"]


def prepare(source: Path, out: Path, *words: object) -> dict[str, object]:
    """Run the command; its result, its seconds, and the peak memory of its largest process in MB."""
    began = time.monotonic()
    command = [*COMMAND, "prepare-data", str(source), "--out", str(out), "--json", *(str(word) for word in words)]
    with (out.parent / f"{out.name}.log").open("w") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert running.stdout is not None
        told = running.stdout.read()
        _, status, usage = os.wait4(running.pid, 0)
    assert status == 0, log.name
    return json.loads(told) | {"seconds": time.monotonic() - began, "peak_mb": usage.ru_maxrss / 1024}


def hashes(out: Path) -> str:
    """One hash over all shards."""
    total = hashlib.sha256()
    for path in sorted(out.glob("*.tar")):
        total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def collection(work: Path, num: int) -> Path:
    """`num` messy pictures of 96 x 80 pixels, made once."""
    folder = work / f"messy-{num}" / "pictures"
    if not folder.exists():
        print("made:", dict(messy_folder(folder, num)))
    return folder


def counts(work: Path) -> None:
    """2,000 pictures, 5% of them broken; inspect; a second run."""
    source, out = collection(work, 2000), work / "counts"
    print(json.dumps(prepare(source, out, "--resolution", 64), indent=1))
    shown = subprocess.run([*COMMAND, "inspect", str(out)], capture_output=True, text=True, check=True).stdout
    print(shown.splitlines()[-1])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare(source, out, "--resolution", 64)
    unchanged = before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    print(f"second run: {again['seconds']:.1f} s, nothing written: {unchanged}")


def kills(work: Path) -> None:
    """SIGKILL at ten random moments, alternately with one and with two processes."""
    source, rng = collection(work, 4000), random.Random(0)
    words = ["--resolution", 64, "--shard-size", 50]
    whole = prepare(source, work / "undisturbed", *words)
    out, log = work / "killed", (work / "killed.log").open("w")
    done = 0
    while done < 10:
        nproc = 1 + done % 2
        command = [*COMMAND, "prepare-data", str(source), "--out", str(out), *map(str, words), "--nproc", str(nproc)]
        running = subprocess.Popen(command, stdout=log, stderr=log)
        time.sleep(rng.uniform(0.3, 1.0) * (1 + 0.5 * (nproc - 1)))
        if running.poll() is None:
            running.kill()
            running.wait()
            finished = len(list((out / ".work").glob("records-*")))
            print(f"kill {done + 1}, {nproc} processes: {finished} of 80 shards done")
        else:
            print("came too late: the run had ended")
            break
        done += 1
    prepare(source, out, *words)
    print("undisturbed", hashes(work / "undisturbed"), f"{whole['seconds']:.1f} s")
    print("killed     ", hashes(out))


def processes(work: Path) -> None:
    """600 JPEG pictures of 1200 x 900 pixels, to 512, with one to four processes; the best of two rounds."""
    source = work / "photos"
    if not source.exists():
        source.mkdir()
        for index, data in enumerate(files("jpg", 1200, 900, 60)):
            for copy in range(10):
                (source / f"{index}-{copy}.jpg").write_bytes(data)
                (source / f"{index}-{copy}.txt").write_text("a photograph")
    words = ["--resolution", 512, "--shard-size", 50, "--duplicates", "keep"]
    for nproc in (1, 2, 4):
        rounds = [prepare(source, work / f"nproc-{nproc}-{turn}", *words, "--nproc", nproc) for turn in (0, 1)]
        seconds = min(float(str(told["seconds"])) for told in rounds)
        print(
            f"{nproc} processes: {seconds:.1f} s, {600 / seconds:.0f} pictures/s, {hashes(work / f'nproc-{nproc}-0')}"
        )


def memory(work: Path) -> None:
    """Peak memory at 2,000 and at 20,000 pictures, all duplicates looked for."""
    for num in (2000, 20_000):
        told = prepare(collection(work, num), work / f"memory-{num}", "--resolution", 64, "--duplicates", "near")
        print(f"{num} pictures: {told['peak_mb']:.1f} MB, {told['seconds']:.0f} s, kept {told['kept']}")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        print(f"== {name}")
        {"counts": counts, "kills": kills, "processes": processes, "memory": memory}[name](folder)
