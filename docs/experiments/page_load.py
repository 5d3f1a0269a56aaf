"""How long the page of a long run takes to write and to load in a headless browser.

    python docs/experiments/page_load.py [ITERATIONS] [FOLDER]      needs playwright, and Chromium on the PATH

Writes the metrics of an invented alignment (100,000 logged iterations), its page, and screenshots of the page at 390
and 1280 pixels, light and dark. Prints seconds, bytes, and everything that the browser requested.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from flashdmd_cli.evaluation.pictures import save_strip
from flashdmd_cli.evaluation.run_page import RunPage
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.teacher import TeacherRecord

ROLES = ("student", "fake", "discriminator", "preference")
STATISTICS = ("reward", "held_out", "brightness", "saturation", "contrast", "colourfulness", "clipped", "laplacian",
              "high_frequency", "entropy", "diversity")  # fmt: skip
NUM_PREVIEWS = 40


def row(step: int, total: int, draw: random.Random) -> dict[str, float]:
    """Invented metrics of one iteration."""
    done = step / total
    found = {"step": step, "fake": 0.3 * math.exp(-3 * done) + 0.02 * draw.random(), "dm": 0.5 + 0.1 * draw.random()}
    found |= {"gan": draw.gauss(0, 0.3), "discriminator": 1.5 + draw.gauss(0, 0.3), "preference": 0.69 - 0.1 * done}
    found |= {"output_grad/dm": 10 ** draw.gauss(-2, 0.5), "output_grad/gan": 0.02 * draw.random()}
    found |= {f"grad_norm/{name}": 10 ** draw.gauss(0, 0.4) for name in ROLES}
    found |= {f"updates/{name}": float(step) for name in ROLES}
    found |= {"kl": 0.001 * done, "accuracy": 0.5 + 0.2 * done, "margin": draw.gauss(0, 0.001), "pairs": 4.0}
    found |= {"kept_pairs": draw.random(), "reward/mean": 2 * done + draw.gauss(0, 0.3), "reward/spread": 0.3}
    found |= {"reward/gap": 0.4, "tripwires": 0.0, "brightness/student": draw.gauss(0, 0.1), "brightness/real": 0.0}
    found["brightness/drift"] = 0.05 * math.sin(9 * done)
    if step % max(1, total // 100) == 0:
        for name in STATISTICS:
            change = draw.gauss(0, 0.05) - (0.3 * done if name == "diversity" else 0)
            outside = float(name == "diversity" and change < -0.1)
            found |= {f"probe/{name}": 1 + change, f"probe_change/{name}": change, f"probe_outside/{name}": outside}
    return found


def pictures(noise: float, generator: torch.Generator) -> torch.Tensor:
    """Eight invented pictures (8, 3, 64, 64) on [-1, 1]."""
    line = torch.linspace(-1, 1, 64)
    waves = [torch.sin(3 * line[:, None] * (i + 1) + 3 * line[None]) for i in range(8)]
    stack = torch.stack([torch.stack([wave, wave.T, -wave]) for wave in waves])
    return (stack + noise * torch.randn(stack.shape, generator=generator)).clamp(-1, 1)


def write_run(out: Path, total: int) -> None:
    """The files that a run leaves."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    with (out / "metrics.jsonl").open("w") as metrics, (out / "costs.jsonl").open("w") as costs:
        for step in range(total):
            metrics.write(json.dumps(row(step, total, draw)) + "\n")
            costs.write(json.dumps({"step": step, "seconds_per_kimg": 60 + draw.random(), "memory_gb": 19.2}) + "\n")
    folder = out / "previews"
    folder.mkdir()
    labels = ("teacher 30 steps", "teacher 4 steps", "student 4 steps iteration 0")
    fixed = {label: save_strip(pictures(0.1, generator), folder, f"fixed-{i}").name for i, label in enumerate(labels)}
    for i in range(1, NUM_PREVIEWS + 1):
        save_strip(
            pictures(0.8 - 0.7 * i / NUM_PREVIEWS, generator), folder, f"iteration-{total * i // NUM_PREVIEWS:07d}"
        )
    captions = [f"a striped red ring to the left of plain blue square {i}" for i in range(8)]
    (folder / "index.json").write_text(json.dumps({"captions": captions, "fixed": fixed}))
    (out / "teacher.json").write_text(TeacherRecord(id="shapes-sdxl", hash="ab" * 32).model_dump_json())


def main() -> None:
    """Write, load, print."""
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    out = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    write_run(out, total)
    page = RunPage(load_recipe("align/shapes", flags={"train.iterations": total * 5 // 4}), out)
    for what in ("first page, which reads all rows", "every later page"):
        began, clock = time.process_time(), time.monotonic()
        page.write(total, ["collapse at iteration 80000: diversity -25%; lower align.lr"])
        print(f"{what}: {time.process_time() - began:.2f} s of the processor, {time.monotonic() - clock:.2f} s")
    url = (out / "page.html").as_uri()
    print(f"{total:,} iterations: {(out / 'page.html').stat().st_size:,} bytes")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                tab = context.new_page()
                log: list[str] = []
                tab.on("request", lambda request: log.append(request.url[:60]))  # noqa: B023
                tab.on("console", lambda message: log.append(message.text))  # noqa: B023
                tab.on("pageerror", lambda error: log.append(str(error)))  # noqa: B023
                tab.goto(url)
                timing = "performance.getEntriesByType('navigation')[0]"
                loaded = tab.evaluate(f"{timing}.loadEventEnd")
                overflow = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
                tab.screenshot(path=out / f"page-{width}-{scheme}.png", full_page=True)
                others = [each for each in log if each != url[:60] and not each.startswith("data:")]
                print(
                    f"{width} px, {scheme}: loaded in {loaded:.0f} ms, overflow {overflow} px, other requests {others}"
                )
        browser.close()
    print(out)


if __name__ == "__main__":
    main()
