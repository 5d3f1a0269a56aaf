"""`image-reward` and `hpsv2` themselves, in an environment of their own that is built on first use.

Both pin versions that this package cannot share (timm 0.6.13, transformers before 4.56). The environment holds only
those pins, about 100 MB, and sees the torch of this one through a `.pth` file. It is spoken to in JSON lines.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashdmd_cli.evaluation.backends.package import OPTION, Package
from flashdmd_cli.evaluation.metrics.hps import HpsV2, HpsV21
from flashdmd_cli.evaluation.metrics.image_reward import FILES as IMAGE_REWARD
from flashdmd_cli.evaluation.metrics.image_reward import VOCABULARY
from flashdmd_cli.evaluation.scorers.weights import Weights, locate
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.reporter import Reporter, SilentReporter

METRICS: Mapping[str, Weights] = {"image_reward": IMAGE_REWARD, "hpsv2": HpsV2.files, "hpsv21": HpsV21.files}
"""The metrics that have a package of their authors, with the weights that it reads."""
PINS = (
    "image-reward==1.5", "hpsv2==1.2.0", "timm==0.6.13", "transformers==4.49.0", "tokenizers==0.21.4",
    "huggingface-hub==0.36.2", "datasets==3.2.0", "multiprocess==0.70.16", "dill==0.3.8", "xxhash==4.1.0",
    "aiohttp==3.14.5", "aiohappyeyeballs==2.7.1", "aiosignal==1.4.0", "attrs==26.1.0", "frozenlist==1.8.0",
    "multidict==7.2.1", "propcache==0.5.4", "yarl==1.25.1", "peft==0.14.0", "accelerate==1.2.1", "diffusers==0.32.2",
    "fairscale==0.4.13", "clip-anytorch==2.6.0", "clint==0.5.1", "args==0.1.0",
)  # fmt: skip
"""All of them, for they are installed without their dependencies, which would bring another torch."""
VOCABULARY_OF_CLIP = "bpe_simple_vocab_16e6.txt.gz"
_READY = "ready"


def environment() -> Path:
    """Where the environment for these pins and this Python lies, built or not."""
    from huggingface_hub import cached_assets_path

    stamp = hashlib.sha256("\n".join([*PINS, sys.version, sysconfig.get_path("purelib")]).encode()).hexdigest()[:16]
    try:
        return cached_assets_path("flashdmd", namespace="upstream", subfolder=stamp)
    except (OSError, ValueError, RuntimeError) as error:
        hint = "HF_ASSETS_CACHE=DIR names one"
        raise InputError(f"{OPTION}: there is no place for its environment: {error}", hint) from None


def is_built(folder: Path) -> bool:
    """Whether the environment is complete."""
    return (folder / _READY).is_file()


def status() -> str:
    """For `flashdmd doctor`: the pinned packages and where they are."""
    names = " and ".join(PINS[:2])
    try:
        folder = environment()
    except InputError as error:
        return error.message
    return f"{names} in {folder}" if is_built(folder) else f"{names} are installed when {OPTION} first asks for them"


def build(reporter: Reporter) -> Path:
    """The Python of the environment, which is built if it is not there; InputError if that fails."""
    from huggingface_hub.utils import WeakFileLock

    folder = environment()
    if not is_built(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(folder.with_suffix(".lock")):  # another process may be building it
                if not is_built(folder):
                    reporter.say(f"building an environment for {' and '.join(PINS[:2])} in {folder} (about 100 MB)")
                    _fill(folder)
        except OSError as error:
            raise _not_built(str(error)) from None
    return folder / "bin" / "python"


def _fill(folder: Path) -> None:
    """Build the environment, in place of what an interrupted call left of it."""
    python = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *PINS])
    [site] = folder.glob("lib/python*/site-packages")
    # Appended to the path after the environment's own packages, so the pins come first.
    parents = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "zz_parent.pth").write_text("".join(f"{path}\n" for path in parents))
    # hpsv2's wheel lacks its vocabulary, which is that of every CLIP.
    import open_clip

    own = site / "hpsv2" / "src" / "open_clip" / VOCABULARY_OF_CLIP
    shutil.copyfile(Path(open_clip.__file__).with_name(VOCABULARY_OF_CLIP), own)
    (folder / _READY).write_text("\n".join(PINS) + "\n")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no reason given"]
        errors = [line for line in lines if "ERROR" in line] or lines
        raise _not_built(errors[0].strip())


def _not_built(why: str) -> InputError:
    return InputError(
        f"{OPTION}: its environment cannot be built: {why}",
        "nothing was drawn or measured yet; pip installs it once from its registry, and then it needs no network",
    )


def first_line(metric: str, weights: Path, vocabulary: Path | None = None) -> dict[str, Any]:
    """The first line for the process of a package: the metric, its weights, and for ImageReward the folder of the
    vocabulary. Absolute paths, for the process changes its folder."""
    files = {"weights": weights}
    if vocabulary is not None:
        files |= {"config": weights.with_name("med_config.json"), "vocabulary": vocabulary}
    return {"metric": metric} | {name: str(path.absolute()) for name, path in files.items()}


def versions_of_pins() -> dict[str, str]:
    """Versions of the packages that decide a value, and of torch, which is this environment's."""
    pins = dict(pin.split("==") for pin in PINS)
    return {name: pins[name] for name in ("image-reward", "hpsv2", "timm", "transformers", "tokenizers")}


def upstream_scores(
    metric: str,
    images: Sequence[Path],
    prompts: Sequence[str],
    weights_dir: Path | None = None,
    reporter: Reporter | None = None,
    download: bool = True,
) -> list[float]:
    """What the authors' package gives for each image file and its prompt; NaN where it fails on a picture.

    `metric` is one of `METRICS`. InputError if the environment cannot be built, the weights are missing, or the package
    ends with an error.
    """
    reporter = reporter or SilentReporter()
    if metric not in METRICS:
        raise InputError(f"{OPTION}: {metric} has no package of its authors", f"one of {', '.join(METRICS)}")
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
    files = METRICS[metric]
    weights = locate(files, weights_dir, reporter, download) / files.files[0]
    vocabulary = None
    if metric == "image_reward":
        vocabulary = locate(VOCABULARY, weights_dir, reporter, download)
    package = Package(build(reporter), first_line(metric, weights, vocabulary))
    scores = []
    try:
        for image, prompt in zip(images, prompts, strict=True):
            scores.append(package.score(image, prompt))
            reporter.progress(len(scores), len(images))
    finally:
        package.close()
    return scores
