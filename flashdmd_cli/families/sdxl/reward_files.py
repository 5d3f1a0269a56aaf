"""Loading and saving of reward models: the published LRM folders, and the smaller ones that this package writes.

LRM:   unet/ (config and weights), text_encoder/, for SDXL text_encoder_2/, state_dict.pt (projections, scale).
Here:  the same, with reward.json (`RewardConfig`) and projections.safetensors instead of the pickle. Text encoders and
       trunk weights that were not trained are omitted and loaded from the teacher, `RewardConfig.base`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.weights import read_pickle
from flashdmd_cli.families.files import weight_files
from flashdmd_cli.families.noise import SDXL_NOISE, noise_schedule
from flashdmd_cli.families.reading import fill, new_network, read_network, save_text_encoder
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import LatentRewardModel, RewardConfig
from flashdmd_cli.families.unet import encoder_half

DECODER_HALF = ("up_blocks.", "conv_norm_out.", "conv_out.")
CONFIG, PROJECTIONS, PUBLISHED = "reward.json", "projections.safetensors", "state_dict.pt"
ENCODERS: tuple[tuple[str, Any], ...] = (
    ("text_encoder", CLIPTextModel),
    ("text_encoder_2", CLIPTextModelWithProjection),
)


@dataclass(frozen=True)
class RewardBase:
    """Parts of the teacher that a reward model reuses: always the tokenizers, others if they were not trained."""

    tokenizers: Sequence[Any]
    text_encoders: Sequence[nn.Module] = ()
    denoiser: nn.Module | None = None
    content: str | None = None
    alphas_cumprod: Tensor | None = None

    @classmethod
    def of(cls, family: SDXLFamily) -> RewardBase:
        """The parts of a teacher."""
        parts = family.pipeline
        return cls(
            (parts.tokenizer, parts.tokenizer_2),
            (parts.text_encoder, parts.text_encoder_2),
            family.base.net,
            family.content_hash(),
            family.schedule.alphas_cumprod,
        )


def load_reward(folder: Path, base: RewardBase, dtype: torch.dtype = torch.float32) -> LatentRewardModel:
    """Load a reward model, frozen, in eval mode, on the CPU; trunk and text encoders in `dtype`.

    Raises FileNotFoundError for missing files, ValueError for unsuitable ones, OSError for unreadable ones.
    """
    if not (folder / "unet" / "config.json").is_file():
        raise FileNotFoundError("has no unet/config.json, which a reward model of SDXL or SD1.5 has")
    config = RewardConfig()
    if (folder / CONFIG).is_file():
        values = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        config = RewardConfig(**values | {"timesteps": tuple(values["timesteps"])})
    if config.base is not None and config.base != base.content:
        raise ValueError("was trained on another teacher and does not contain that teacher's weights")
    alphas_cumprod = noise_schedule(config.noise or SDXL_NOISE).alphas_cumprod
    if base.alphas_cumprod is not None and not torch.allclose(alphas_cumprod, base.alphas_cumprod, atol=1e-5):
        # The same timestep would mean another noise level than in its training.
        raise ValueError("was trained on another noise schedule than this teacher's")
    trunk = _load_trunk(folder / "unet", base.denoiser if config.base is not None else None)
    sdxl = trunk.config.addition_embed_type == "text_time"
    encoders = _load_encoders(folder, base, ENCODERS if sdxl else ENCODERS[:1], dtype)
    model = LatentRewardModel(trunk, base.tokenizers[: len(encoders)], encoders, config)
    # Trunk and encoders are loaded completely; only the projections remain, and `_projections` returns all of them.
    model.load_state_dict(_projections(folder, model), strict=False)
    model.trunk.to(dtype)
    return model.eval().requires_grad_(False)


def new_reward(family: SDXLFamily, config: RewardConfig) -> LatentRewardModel:
    """An untrained reward model initialised from a teacher's encoder half and text encoders, float32."""
    with torch.device("meta"):
        trunk = encoder_half(UNet2DConditionModel.from_config(dict(family.pipeline.unet.config)))
    values = family.teacher.weights()
    trunk.load_state_dict({key: values[key].float().clone() for key in trunk.state_dict()}, assign=True)
    base = RewardBase.of(family)
    encoders = []
    for (_, kind), encoder in zip(ENCODERS, base.text_encoders, strict=True):
        copied = kind(encoder.config)
        copied.load_state_dict(encoder.state_dict())
        encoders.append(copied.float())
    return LatentRewardModel(trunk, base.tokenizers, encoders, replace(config, noise=family.scheduler_config)).eval()


def save_reward(model: LatentRewardModel, folder: Path, base: RewardBase | None = None, half: bool = False) -> None:
    """Save a reward model; with `base`, without the weights and text encoders that are equal to those of the base.

    `half` stores weights in float16.
    """
    trunk = model.trunk.state_dict()
    encoders = list(model.text_encoders)
    if base is not None:
        assert base.denoiser is not None
        values = base.denoiser.state_dict()
        trunk = {key: value for key, value in trunk.items() if not torch.equal(value.cpu(), values[key].cpu().float())}
        encoders = [e for e, old in zip(encoders, base.text_encoders, strict=True) if not _equal(e, old)]
        # Both or none, because loading expects either all text encoders or none.
        encoders = list(model.text_encoders) if encoders else []
    folder.mkdir(parents=True, exist_ok=True)
    model.trunk.save_config(folder / "unet")
    stored = torch.float16 if half else torch.float32
    weights = {key: value.detach().cpu().to(stored).contiguous() for key, value in trunk.items()}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    for (name, _), encoder in zip(ENCODERS, encoders, strict=False):
        save_text_encoder(encoder, folder / name)
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(("trunk.", "text_encoders."))}
    save_file({key: value.detach().cpu().clone() for key, value in own.items()}, folder / PROJECTIONS)
    config = asdict(model.config) | {"base": None if base is None else base.content}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _equal(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key].cpu(), b[key].cpu().float()) for key in a)


def _load_trunk(folder: Path, base: nn.Module | None) -> UNet2DConditionModel:
    trunk = encoder_half(new_network(UNet2DConditionModel, folder))
    wanted = trunk.state_dict().keys()
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= load_file(path)
    inherited = base.state_dict() if base is not None else {}
    # The folder may contain a whole denoiser; only its encoder half is used.
    weights = {key: value for key, value in tensors.items() if not key.startswith(DECODER_HALF)}
    weights |= {key: value.cpu().clone() for key, value in inherited.items() if key in wanted and key not in weights}
    return fill(trunk, weights, f"{folder.name}/")


def _load_encoders(
    folder: Path, base: RewardBase, kinds: Sequence[tuple[str, Any]], dtype: torch.dtype
) -> list[nn.Module]:
    """The text encoders of the folder in `dtype`, or those of the base, unchanged, if it has none."""
    if not (folder / kinds[0][0]).is_dir():
        if len(base.text_encoders) < len(kinds):
            raise FileNotFoundError(f"has no {kinds[0][0]}/")
        return list(base.text_encoders[: len(kinds)])
    for name, _ in kinds:
        if not (folder / name).is_dir():
            raise FileNotFoundError(f"has no {name}/")
    return [read_network(kind, folder / name, dtype) for name, kind in kinds]


def _projections(folder: Path, model: LatentRewardModel) -> dict[str, Tensor]:
    wanted = {key: value for key, value in model.state_dict().items() if "." not in key or "_projection." in key}
    wanted = {key: value for key, value in wanted.items() if not key.startswith(("trunk.", "text_encoders."))}
    if (folder / PROJECTIONS).is_file():
        values = load_file(folder / PROJECTIONS)
        if extra := sorted(values.keys() - wanted.keys()):
            raise ValueError(f"{extra[0]} is not part of the model that {CONFIG} describes")
    elif (folder / PUBLISHED).is_file():
        nested = read_pickle(folder / PUBLISHED)  # nested by module, the scale as a number or a tensor
        if not isinstance(nested, dict):
            raise ValueError(f"{PUBLISHED} holds no table of tensors")
        values = {f"{name}.weight": part["weight"] for name, part in nested.items() if isinstance(part, dict)}
        values["logit_scale"] = torch.as_tensor(nested["logit_scale"]).float().reshape(())
    else:
        raise FileNotFoundError(f"has neither {PROJECTIONS} nor {PUBLISHED}")
    for key, value in wanted.items():
        if key not in values:
            raise FileNotFoundError(f"has no {key}")
        if values[key].shape != value.shape:
            raise ValueError(f"{key} is {tuple(values[key].shape)}, but the trunk needs {tuple(value.shape)}")
    return {key: values[key].float() for key in wanted}
