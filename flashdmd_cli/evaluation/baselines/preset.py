"""Presets as YAML files: their fields, and the functions that list and read them, shipped or a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.nearest import nearest
from flashdmd_cli.runs.tables import Config, Count, NonNegative
from flashdmd_cli.runs.yaml_text import parse_yaml

FOLDER = Path(__file__).parent
PIPELINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "StableDiffusionXLPipeline": (
        ("unet", "vae", "text_encoder", "text_encoder_2"),
        ("tokenizer", "tokenizer_2", "scheduler"),
    ),
    "StableDiffusion3Pipeline": (
        ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
        ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"),
    ),
}
"""Class name in diffusers -> subfolders with weights, the denoiser first, and subfolders without weights."""


class Weights(Config):
    """Where a denoiser or a LoRA is."""

    repo: str
    """Hub id, `owner/name[@revision]`; in a preset of your own also a local folder, relative to the preset."""
    download: str = ""
    """Size of the download where it is known, for messages."""


class Denoiser(Weights):
    """A denoiser that replaces that of the base: one file, or a diffusers folder with its own `config.json`."""

    file: str | None = None
    """A safetensors file with all tensors of the base's denoiser, which also gives its configuration."""
    folder: str | None = None
    """A folder inside the repository, `.` for its root."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Denoiser:
        if (self.file is None) == (self.folder is None):
            raise ValueError("exactly one of file and folder is needed")
        return self


class Lora(Weights):
    """A LoRA that is merged into the denoiser, in float32."""

    file: str
    """A safetensors file. `adapter_model.safetensors` is in the layout of peft, with `adapter_config.json` beside it;
    any other is in one of the layouts that `load_lora_weights` of diffusers reads (kohya, diffusers, peft names)."""
    scale: float = 1.0
    """Factor on the LoRA's product."""

    @property
    def is_peft(self) -> bool:
        """Whether it was saved by peft itself."""
        return Path(self.file).name == "adapter_model.safetensors"


class Scheduler(Config):
    """A scheduler of diffusers."""

    name: str
    """Class name."""
    config: dict[str, Any] = {}
    """Values that differ from the configuration of the base's scheduler."""

    @field_validator("name")
    @classmethod
    def _a_scheduler(cls, name: str) -> str:
        if not name.isidentifier() or not name.endswith("Scheduler"):
            raise ValueError(f"{name} is not a class name such as EulerDiscreteScheduler")
        return name


class Preset(Config):
    """One model with the settings that its authors publish for it."""

    name: str
    """In commands, results and names of folders; the file's name unless the file says otherwise."""
    about: str
    """One sentence."""
    pipeline: Literal["StableDiffusionXLPipeline", "StableDiffusion3Pipeline"] = "StableDiffusionXLPipeline"
    """Class in diffusers that draws."""
    base: str
    """Pipeline with encoders, autoencoder and scheduler: hub id, `shapes-sdxl`, or a local folder."""
    base_download: str = ""
    """Size of the download where it is known, for messages."""
    gated: bool = False
    """Whether the base's terms have to be accepted on its page first."""
    without: tuple[str, ...] = ()
    """Optional parts of the base that are left out."""
    denoiser: Denoiser | None = None
    """None: the base's own."""
    lora: Lora | None = None
    """Merged into the denoiser."""
    scheduler: Scheduler | None = None
    """None: the base's own."""
    timestep_shift: Annotated[int, Field(ge=1, le=1000)] | None = None
    """For LCMScheduler: the denoiser is evaluated at t * shift / 1000 instead of t (NitroFusion)."""
    steps: Count
    """Sampling steps; with guidance above 1 each evaluates the denoiser twice."""
    timesteps: tuple[int, ...] | None = None
    """Passed to the pipeline; None: those of the scheduler."""
    sigmas: tuple[float, ...] | None = None
    """Passed to the pipeline; None: those of the scheduler."""
    guidance: NonNegative
    """`guidance_scale` of the pipeline; up to 1 means none."""
    negative: str | None = None
    """Negative prompt."""
    size: Annotated[int, Field(ge=8)]
    """Side of the pictures in pixels."""
    licence: str
    """Of the weights, as the model card names it."""
    published: dict[int, str] = {}
    """Number of a table of the Flash-DMD paper -> name of its row."""
    sources: tuple[str, ...] = ()
    """Where these settings are published."""
    notes: tuple[str, ...] = ()
    """Traps, and what could not be established."""

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        for key in ("timesteps", "sigmas"):
            if (values := getattr(self, key)) is not None and len(values) != self.steps:
                raise ValueError(f"{key} has {len(values)} entries, steps is {self.steps}")
        if self.timesteps is not None and self.sigmas is not None:
            raise ValueError("timesteps and sigmas exclude each other")
        if self.timesteps is not None and self.pipeline == "StableDiffusion3Pipeline":
            raise ValueError("timesteps: StableDiffusion3Pipeline takes sigmas instead")
        if self.timestep_shift is not None and (self.scheduler is None or self.scheduler.name != "LCMScheduler"):
            raise ValueError("timestep_shift is for scheduler.name LCMScheduler")
        if unknown := set(self.without) - {part for parts in PIPELINES[self.pipeline] for part in parts}:
            raise ValueError(f"without: {self.pipeline} has no {', '.join(sorted(unknown))}")
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        """Subfolders of the base with weights that are used, without the denoiser if it is replaced."""
        names = PIPELINES[self.pipeline][0]
        return tuple(part for part in names[self.denoiser is not None :] if part not in self.without)

    @property
    def settings(self) -> tuple[str, ...]:
        """Subfolders of the base without weights that are used."""
        return tuple(part for part in PIPELINES[self.pipeline][1] if part not in self.without)

    @property
    def part(self) -> str:
        """Subfolder of the denoiser."""
        return PIPELINES[self.pipeline][0][0]


def list_presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """A shipped preset by its name, or one by the path of its YAML file.

    Raises `UsageError` for an unknown name or a wrong key, `InputError` for a file that cannot be read, each in one
    line that starts with `--model`.
    """
    option = f"--model {name}"
    path = preset_path(name)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: cannot be read: {error}", hint="a preset is a YAML text file") from None
    except ValueError as error:
        raise UsageError(f"{option}: not YAML: {error}", hint="check the quotes") from None
    if not isinstance(values, dict):
        raise UsageError(f"{option}: holds no table of keys", hint=f"compare with {FOLDER / 'sdxl.yaml'}")
    try:
        preset = Preset.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        first = error.errors()[0]
        key, text = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            text = "no such key"
        message = f"{option}: {key + ': ' if key else ''}{text[0].lower()}{text[1:]}"
        raise UsageError(message, hint=f"compare with {FOLDER / 'sdxl.yaml'}") from None
    return preset if path.parent == FOLDER else located(preset, path.parent)


def preset_path(name: str) -> Path:
    """The file of a preset; UsageError for an unknown name, InputError for a path without a file."""
    if name in list_presets():
        return FOLDER / f"{name}.yaml"
    path = expanded(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"--model {name}: no such preset{nearest(name, list_presets())}",
            hint="`flashdmd sample --list-models` shows all; a YAML file of your own works too",
        )
    if not path.is_file():
        raise InputError(f"--model {name}: no such file", hint="`flashdmd sample --list-models` shows what ships")
    return path


def located(preset: Preset, folder: Path) -> Preset:
    """`preset` with its local paths, which are relative to `folder`, made absolute; hub ids stay as they are."""

    def there(name: str) -> str:
        path = folder / expanded(name)
        return str(path.absolute()) if path.exists() else name

    changes: dict[str, Any] = {"base": there(preset.base)}
    for key in ("denoiser", "lora"):
        if (weights := getattr(preset, key)) is not None:
            changes[key] = weights.model_copy(update={"repo": there(weights.repo)})
    return preset.model_copy(update=changes)
