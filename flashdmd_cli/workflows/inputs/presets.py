"""Presets of other authors' models: their files from the hub, and the drawer that runs them with stock diffusers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.evaluation.baselines.preset import Preset, Weights
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.hub import Choose, Wanted, fetch, files_below, network_weights, parse_id, pipeline_files
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.runs.teacher import TeacherRecord, record
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.families import drawing_place, hush
from flashdmd_cli.workflows.inputs.kinds import SHAPES, is_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.baselines.loading import Files
    from flashdmd_cli.evaluation.generate import NoiseKey
    from flashdmd_cli.runs.device import Place

FAMILY_NAMES = {"StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3"}


@dataclass(frozen=True)
class PresetDrawer(Drawer):
    """A stock pipeline of diffusers with the settings of a preset."""

    preset: Preset
    pipeline: Any
    folder: Path
    """The pipeline folder of the base."""
    record: TeacherRecord
    _place: Place

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.preset.name

    @property
    def steps(self) -> int:  # type: ignore[override]
        return self.preset.steps

    @property
    def family_name(self) -> str:
        return FAMILY_NAMES[self.preset.pipeline]

    @property
    def place(self) -> Place:
        return self._place

    @property
    def tokenizers(self) -> Sequence[Any]:
        named = (getattr(self.pipeline, name) for name in self.preset.settings if name.startswith("tokenizer"))
        return [tokenizer for tokenizer in named if tokenizer is not None]

    @property
    def draws_shapes(self) -> bool:
        return is_shapes(self.folder)

    @property
    def batch(self) -> int:
        from flashdmd_cli.evaluation.baselines.draw import default_batch

        return 1 if self.place.device == "cpu" else default_batch(self.preset)

    def with_steps(self, steps: int) -> PresetDrawer:
        if steps != self.steps:
            raise UsageError(f"--steps {steps}: the preset {self.name} has {self.steps}")
        return self

    def compile(self) -> None:
        getattr(self.pipeline, self.preset.part).compile_repeated_blocks()

    def draw_from(
        self,
        seed: int,
        captions: Sequence[str],
        first: int,
        progress: Callable[[int, int], None] | None = None,
        step: Callable[[int], None] | None = None,
        keys: Sequence[NoiseKey] | None = None,
        batch: int | None = None,
    ) -> Tensor:
        from flashdmd_cli.evaluation.baselines.draw import draw

        return draw(
            self.pipeline, self.preset, captions, seed, first, keys=keys, batch=batch or self.batch, progress=progress,
            step=step,
        )  # fmt: skip

    def identity(self) -> dict[str, object]:
        import diffusers

        from flashdmd_cli import __version__

        words = {"name", "about", "licence", "published", "sources", "notes", "base_download", "gated"}
        settings = self.preset.model_dump_json(exclude=words | {"base", "denoiser", "lora"})
        scale = None if self.preset.lora is None else self.preset.lora.scale
        return {
            "flashdmd": __version__,
            "diffusers": diffusers.__version__,
            "loaded": self.record.hash,
            "preset": hashlib.sha256(f"{settings} {scale}".encode()).hexdigest(),
            "device": self.place.device,
            "precision": self.place.precision,
        }

    @property
    def is_guided(self) -> bool:
        """Whether guidance takes a second evaluation at each step, by the rule of diffusers' pipelines: not where the
        network takes the guidance as an input, as that of LCM-SDXL does."""
        config = getattr(self.pipeline, self.preset.part).config
        return self.preset.guidance > 1 and getattr(config, "time_cond_proj_dim", None) is None

    def facts(self) -> dict[str, object]:
        return {
            "model": self.name,
            "teacher": self.preset.base,
            "sampler": type(self.pipeline.scheduler).__name__,
            "steps": self.steps,
            "nfe": self.steps * (2 if self.is_guided else 1),
            "guidance": self.preset.guidance,
            "licence": self.preset.licence,
            "preset": self.preset.model_dump(mode="json", exclude_none=True),
        }


def load_preset(name: str, preset: Preset, device: str | None, reporter: Reporter) -> PresetDrawer:
    """The model of a preset, downloaded if needed, on `device`.

    Raises `InputError` for files that are missing, gated or do not fit, in one line that starts with `--model` and
    `name`, the name or path that the user gave.
    """
    from safetensors import SafetensorError

    from flashdmd_cli.core.unfit import Unfit
    from flashdmd_cli.evaluation.baselines.loading import load_pipeline

    place = drawing_place(device)
    files, hub = find_files(preset, name, reporter)
    hush()
    try:
        pipeline = load_pipeline(preset, files)
    except Unfit as error:
        raise InputError(f"--model {name}: {error}", hint=error.hint) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        hint = "a file that is damaged is downloaded again once it is deleted"
        raise InputError(f"--model {name}: cannot be loaded: {first}", hint=hint) from error
    beside = {"denoiser": files.denoiser, "lora": files.lora}
    loaded = record(name, files.base, preset.networks, preset.settings, hub, beside)
    return PresetDrawer(preset, pipeline.to(place.device), files.base, loaded, place)


def find_files(preset: Preset, name: str, reporter: Reporter) -> tuple[Files, str | None]:
    """The files of a preset, downloaded if they are not in the cache, and the base's hub id if it has one.

    InputError, in one line that starts with `--model`, for what cannot be had.
    """
    from flashdmd_cli.evaluation.baselines.loading import Files

    option = f"--model {name}"
    base, hub = find_base(preset, option, reporter)
    denoiser = lora = None
    if (wanted := preset.denoiser) is not None:
        choose = one_file(wanted.file) if wanted.file else network_folder(wanted.folder or ".")
        denoiser = find(wanted, choose, option, reporter, wanted.file or "them") / (wanted.file or wanted.folder or ".")
    if preset.lora is not None:
        beside = [str(Path(preset.lora.file).with_name("adapter_config.json"))] if preset.lora.is_peft else []
        lora = find(preset.lora, one_file(preset.lora.file, *beside), option, reporter, preset.lora.file)
        lora = lora / preset.lora.file
    return Files(base, denoiser, lora), hub


def find_base(preset: Preset, option: str, reporter: Reporter) -> tuple[Path, str | None]:
    """The pipeline folder of the base with all parts that are used, and its hub id if it has one."""
    if preset.base == SHAPES:
        from flashdmd_cli.workflows.inputs.teachers import find_teacher

        return find_teacher(SHAPES, option), None
    config = [f"{preset.part}/config.json"] if preset.denoiser is not None else []

    def choose(names: Iterable[str]) -> tuple[list[str], list[str]]:
        present = set(names)
        files, lacking = pipeline_files(present, preset.networks, preset.settings, half_first=True)
        missing = [name for name in config if name not in present]
        return files + [name for name in config if name in present], lacking + missing

    where = Weights(repo=preset.base, download=preset.base_download)
    terms = f"gated: accept its terms on the page of {preset.base} and run `hf auth login`; " if preset.gated else ""
    folder = find(where, choose, option, reporter, note=terms)
    return folder, None if Path(preset.base).is_dir() else preset.base.partition("@")[0]


def find(weights: Weights, choose: Choose, option: str, reporter: Reporter, file: str = "them", note: str = "") -> Path:
    """The folder of a repository that holds all files that `choose` selects; a local folder, or one from the hub.

    `file` and `note` are for the hint of an error.
    """
    local = Path(weights.repo)
    if local.is_dir():
        if lacking := choose(files_below(local))[1]:
            raise InputError(f"{option}: {local} has no {', '.join(lacking)}")
        return local
    if (asked := parse_id(weights.repo)) is None:
        raise InputError(f"{option}: {weights.repo}: no such folder", hint="a folder, or a hub id owner/name")
    hint = f"{note}the same command downloads {file} where there is a network; HF_HOME can be copied from there"
    return fetch(Wanted(option, *asked, size=weights.download, hint=hint), choose, reporter.say, reporter.draws_bars)


def one_file(*files: str) -> Choose:
    """Selects exactly these files."""

    def choose(names: Iterable[str]) -> tuple[list[str], list[str]]:
        present = set(names)
        return [file for file in files if file in present], [file for file in files if file not in present]

    return choose


def network_folder(folder: str) -> Choose:
    """Selects configuration and one set of weights of the network in a folder of a repository."""
    root = "" if folder in (".", "") else f"{folder}/"

    def choose(names: Iterable[str]) -> tuple[list[str], list[str]]:
        inside = {name.removeprefix(root) for name in names if name.startswith(root)}
        weights = network_weights(inside, half_first=True)
        lacking = [f"{root}config.json"] if "config.json" not in inside else []
        lacking += [] if weights else [f"{root}diffusion_pytorch_model.safetensors"]
        return [f"{root}{name}" for name in ("config.json", *weights) if name in inside], lacking

    return choose
