"""The metrics with networks, on small random weights in the published layouts, against the plain recipes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.metric import Metric, Row
from flashdmd_cli.evaluation.metrics.mps import MpsScore
from flashdmd_cli.evaluation.metrics.registry import METRICS, OF_PROMPTS, OF_SETS
from flashdmd_cli.evaluation.scorers.texts import clip_tokenizer
from flashdmd_cli.evaluation.scorers.weights import WeightsMissing
from flashdmd_cli.runs.errors import InputError, NumericalError
from tests import stand_ins
from tests.fake_hub import FakeHub, serving

PROMPTS = [
    "A baseball field with players and a crowd of spectators.",
    "",
    "two\nlines  and a\ttab",
    "an emoji 🦄 and café, naïve, Übergröße",
    "a very long prompt, " * 500,
    "it's the dog's 3rd bone (of 10)!",
]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`--weights-dir` with a stand-in of every scorer."""
    return stand_ins.write_all(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def instruments(weights: Path) -> Instruments:
    return Instruments(weights, download=False)


def pictures_of(num: int, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Smooth random colour fields with some noise, (num, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(num, 3, 5, 5, generator=generator), (height, width), mode="bicubic")
    return (coarse * 255 + torch.randn(num, 3, height, width, generator=generator) * 12).clamp(0, 255).byte()


def rows_of(num: int) -> list[Row]:
    return [Row(i, PROMPTS[i % len(PROMPTS)]) for i in range(num)]


def pil(pictures: Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures.permute(0, 2, 3, 1).numpy()]


SIZES = [(64, 64), (48, 75), (101, 64), (16, 16), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clip_score_is_the_plain_recipe_of_open_clip(
    instruments: Instruments, weights: Path, height: int, width: int
) -> None:
    folder = weights / "timm" / "vit_base_patch32_clip_224.openai"
    net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", force_quick_gelu=True)
    pictures, rows = pictures_of(6, height, width), rows_of(6)
    with torch.no_grad():
        images = net.eval().encode_image(torch.stack([preprocess(each) for each in pil(pictures)]))
        texts = net.encode_text(open_clip.tokenize([row.prompt for row in rows]))
    wanted = F.cosine_similarity(images, texts)
    assert (METRICS["clip"](instruments).measure(pictures, rows) - wanted).abs().max() < 1e-5


def test_clip_score_as_dmd2_prepares_it(instruments: Instruments, weights: Path) -> None:
    """Centre square, Lanczos to 256, the prefix as tokens before the caption's own."""
    folder = weights / "timm" / "vit_base_patch32_clip_224.openai"
    net, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", force_quick_gelu=True)
    pictures, rows = pictures_of(6, 60, 90), [row for row in rows_of(6)]
    squares = [each.crop((15, 0, 75, 60)).resize((256, 256), Image.Resampling.LANCZOS) for each in pil(pictures)]
    tokens = open_clip.tokenize([row.prompt for row in rows])
    prefix = open_clip.tokenize("A photo depicts ")[:, 1:4].expand(6, -1)
    tokens = torch.cat([tokens[:, :1], prefix, tokens[:, 1:]], dim=1)[:, :77]
    tokens[:, 76] = torch.where(tokens[:, 76] > 0, 49407, 0)
    with torch.no_grad():
        images = net.eval().encode_image(torch.stack([preprocess(each) for each in squares]))
        wanted = F.cosine_similarity(images, net.encode_text(tokens))
    metric = METRICS["clip"](instruments, {"prefix": True, "crop": True})
    found = metric.measure(pictures, rows)
    assert (found - wanted).abs().max() < 1e-5
    assert (found - METRICS["clip"](instruments).measure(pictures, rows)).abs().max() > 1e-4
    assert metric.provenance()["options"] == {"prefix": True, "crop": True}


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pick_score_is_the_plain_recipe_of_transformers(
    instruments: Instruments, weights: Path, height: int, width: int
) -> None:
    net = CLIPModel.from_pretrained(weights / "yuvalkirstain" / "PickScore_v1").eval()
    process = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pictures, rows = pictures_of(6, height, width), rows_of(6)
    pixels = torch.cat([torch.as_tensor(np.array(process(each)["pixel_values"])) for each in pil(pictures)])
    tokens = clip_tokenizer()([row.prompt for row in rows], padding=True, truncation=True, max_length=77)
    with torch.no_grad():
        images = net.get_image_features(pixel_values=pixels).pooler_output
        texts = net.get_text_features(input_ids=torch.tensor(tokens["input_ids"])).pooler_output
    wanted = F.cosine_similarity(images, texts)
    assert (METRICS["pickscore"](instruments).measure(pictures, rows) - wanted).abs().max() < 1e-5


def test_the_tokenizers_of_open_clip_and_transformers_agree_on_plain_prompts() -> None:
    """So the vocabulary that one of them installs is that of the other's downloads, in its order."""
    plain = [prompt for prompt in PROMPTS if prompt.isascii()]
    theirs = open_clip.tokenize(plain)
    ours = torch.tensor(clip_tokenizer()(plain, padding="max_length", truncation=True, max_length=77)["input_ids"])
    ends = theirs.argmax(dim=1)
    for mine, other, end in zip(ours, theirs, ends, strict=True):
        assert mine[: end + 1].tolist() == other[: end + 1].tolist() and set(mine[end:].tolist()) == {49407}


@pytest.mark.parametrize("version", ["v2", "v2.1"])
def test_hpsv2_is_the_plain_recipe_and_its_versions_are_apart(
    instruments: Instruments, weights: Path, version: str
) -> None:
    net = open_clip.CLIP(**stand_ins.CLIP)  # type: ignore[arg-type]
    state = torch.load(weights / "xswu" / "HPSv2" / f"HPS_{version}_compressed.pt")["state_dict"]
    net.load_state_dict({name: value.float() for name, value in state.items()})
    pictures, rows = pictures_of(6, 48, 75), rows_of(6)
    values = pictures.float() / 255  # to a longest edge of 32, black borders above and below
    small = F.interpolate(values, (20, 32), mode="bicubic", antialias=True)
    pixels = torch.zeros(6, 3, 32, 32)
    pixels[:, :, 6:26] = small
    mean, std = (
        torch.tensor(each).view(-1, 1, 1) for each in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        images = net.eval().encode_image((pixels - mean) / std)
        wanted = F.cosine_similarity(images, net.encode_text(open_clip.tokenize([row.prompt for row in rows])))
    metric = METRICS["hpsv2" if version == "v2" else "hpsv21"](instruments)
    assert (metric.measure(pictures, rows) - wanted).abs().max() < 1e-4
    other = METRICS["hpsv21" if version == "v2" else "hpsv2"](instruments)
    assert (metric.measure(pictures, rows) - other.measure(pictures, rows)).abs().max() > 1e-3


def mps_by_the_formula(weights: Path, picture: Tensor, prompt: str, threshold: float) -> float:
    """MPS of one picture, written down from the published formula, head by head and token by token."""
    folder = weights / "RE-N-Y" / "mpsv1"
    tensors = load_file(folder / "model.safetensors")
    net = CLIPModel(CLIPModel.config_class(**stand_ins.CLIP_H)).eval()
    net.load_state_dict({k.removeprefix("mps.model."): v for k, v in tensors.items() if k.startswith("mps.model.")})
    cross = {k.removeprefix("mps.cross_model.layers."): v for k, v in tensors.items() if "cross_model" in k}
    process = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = torch.as_tensor(np.array(process(pil(picture[None])[0])["pixel_values"]))
    condition = (
        "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
        "texture, quantity, attributes, position, number, location, word, things."
    )

    def text(words: str) -> tuple[Tensor, Tensor]:
        tokens = clip_tokenizer()([words], padding="max_length", truncation=True, max_length=77)["input_ids"]
        hidden = net.text_model(torch.tensor(tokens)).last_hidden_state[0]
        projected = hidden @ net.text_projection.weight.T
        return projected, projected[tokens[0].index(49407)]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * cross[f"{name}.norm.weight"]

    def swiglu(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x[:, :half] * x[:, half:] * torch.sigmoid(x[:, half:])

    def turn(x: Tensor) -> Tensor:
        pairs = torch.complex(x[:, :32].double(), x[:, 32:].double())
        angles = torch.arange(len(x))[:, None] * 10_000.0 ** -(torch.arange(32) / 32)
        turned = pairs * torch.polar(torch.ones_like(angles), angles).to(pairs.dtype)
        return torch.cat([turned.real, turned.imag], dim=1).float()

    with torch.no_grad():
        words, whole = text(prompt)
        about, _ = text(condition)
        x = net.vision_model(pixels).last_hidden_state[0] @ net.visual_projection.weight.T
        likeness = torch.stack([max(a @ w for a in about) for w in words])  # type: ignore[type-var]
        kept = likeness / likeness.max() > threshold
        for layer in range(4):
            name, y = f"{layer}.0.fn", norm(x, f"{layer}.0.fn")
            q, kv = y @ cross[f"{name}.to_q.weight"].T, words[kept] @ cross[f"{name}.to_kv.weight"].T
            heads = [(q[:, i : i + 64] @ kv[:, :64].T / 8).softmax(-1) @ kv[:, 64:] for i in (0, 64)]
            wide = swiglu(y @ cross[f"{name}.ff.0.weight"].T) @ cross[f"{name}.ff.2.weight"].T
            x = x + torch.cat(heads, -1) @ cross[f"{name}.to_out.weight"].T + wide
            name, y = f"{layer}.1.fn", norm(x, f"{layer}.1.fn")
            all_in_one = y @ cross[f"{name}.fused_attn_ff_proj.weight"].T
            q, k, v, wide = all_in_one.split([128, 64, 64, 512], dim=-1)
            heads = [(turn(q[:, i : i + 64]) @ turn(k).T / 8).softmax(-1) @ v for i in (0, 64)]
            x = x + torch.cat(heads, -1) @ cross[f"{name}.attn_out.weight"].T
            x = x + swiglu(wide) @ cross[f"{name}.ff_out.1.weight"].T
        return float(net.logit_scale.exp() * (x[0] @ whole) / (x[0].norm() * whole.norm()))


@pytest.mark.parametrize("threshold", [0.3, 0.01, 0.9, 0.95, 0.99])
def test_mps_is_its_published_formula_for_each_picture_by_itself(
    instruments: Instruments, weights: Path, threshold: float
) -> None:
    pictures, rows = pictures_of(4, 40, 64), rows_of(4)
    found = MpsScore(instruments, {"threshold": threshold}).measure(pictures, rows)
    wanted = [
        mps_by_the_formula(weights, each, row.prompt, threshold) for each, row in zip(pictures, rows, strict=True)
    ]
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert MpsScore(instruments).options.threshold == 0.3


def test_the_threshold_of_mps_matters(instruments: Instruments) -> None:
    pictures, rows = pictures_of(2), [Row(0, "a red cube"), Row(1, PROMPTS[0])]
    high, low = (MpsScore(instruments, {"threshold": t}).measure(pictures, rows) for t in (0.95, 0.0))
    assert (high - low).abs().min() > 1e-4


def by_prompt(instruments: Instruments) -> list[Metric]:
    return [each(instruments) for each in OF_PROMPTS]


def test_a_score_is_that_of_its_picture_and_prompt_alone(instruments: Instruments) -> None:
    """In any batch, in any order, with other prompts beside; a prompt that comes twice counts as itself."""
    pictures, rows = pictures_of(8), rows_of(8)
    order = torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    for metric in by_prompt(instruments):
        together = metric.measure(pictures, rows)
        assert together.shape == (8,) and together.isfinite().all() and together.unique().numel() == 8
        alone = torch.cat([metric.measure(pictures[i : i + 1], [rows[i]]) for i in range(8)])
        shuffled = metric.measure(pictures[order], [rows[i] for i in order.tolist()])
        tolerance = {"mps": 1e-4, "image_reward": 1e-5}.get(metric.name, 1e-6)
        assert (together - alone).abs().max() < tolerance, metric.name
        assert (together[order] - shuffled).abs().max() < tolerance, metric.name
        assert metric.scores(together).tolist() == together.double().tolist()  # type: ignore[union-attr]


def test_a_prompt_is_encoded_once(instruments: Instruments, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = METRICS["clip"](instruments)
    metric.measure(pictures_of(1), [Row(0, "first")])
    net = instruments.network(metric.folder, lambda: None)  # type: ignore[attr-defined]
    calls: list[Sequence[str]] = []
    encode = net.texts.encode
    monkeypatch.setattr(net.texts, "encode", lambda prompts: calls.append(prompts) or encode(prompts))
    metric.measure(pictures_of(4), [Row(i, prompt) for i, prompt in enumerate(["a", "b", "a", "first"])])
    assert calls == [["a", "b"]]


def test_every_metric_says_what_decides_its_value(instruments: Instruments) -> None:
    for kind in (*OF_PROMPTS, *OF_SETS):
        found = json.loads(json.dumps(kind(instruments).provenance()))
        assert found["preprocessing"] and "torch" in found["versions"]
        assert all(len(each["sha256"]) == 64 and each["file"] for each in found["weights"].values())
    with pytest.raises(ValueError, match="prefiks"):
        METRICS["clip"](instruments, {"prefiks": True})
    with pytest.raises(ValueError, match="threshold"):
        METRICS["mps"](instruments, {"threshold": 1.5})


@pytest.mark.parametrize("kind", [*OF_PROMPTS, *OF_SETS], ids=lambda kind: kind.name)
def test_missing_weights_are_named_in_one_line(
    kind: type[Metric], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashdmd_cli.evaluation.scorers.lpips.find_spec", lambda name: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(WeightsMissing) as caught:
        kind(Instruments(tmp_path, download=False))
    message, hint = caught.value.message, caught.value.hint
    assert "\n" not in message + hint and "is not on this machine" in message
    assert (
        any(unit in message for unit in ("GB", "MB", "kB")) and "--weights-dir DIR takes a local copy as DIR/" in hint
    )


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("clip", "timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors", b"no tensors"),
        ("clip", "timm/vit_base_patch32_clip_224.openai/open_clip_config.json", b"{"),
        ("hpsv2", "xswu/HPSv2/HPS_v2_compressed.pt", b""),
        ("pickscore", "yuvalkirstain/PickScore_v1/model.safetensors", b""),
        ("mps", "RE-N-Y/mpsv1/model.safetensors", b"\0" * 100),
        ("image_reward", "zai-org/ImageReward/ImageReward.pt", b"\x80"),
        ("image_reward", "zai-org/ImageReward/med_config.json", b"[]"),
        ("fid", "inception-2015-12-05.pt", b"nothing"),
        ("fd_dinov2", "facebook/dinov2-large/model.safetensors", b""),
    ],
)
def test_damaged_weights_are_an_error_of_one_line(
    weights: Path, tmp_path: Path, name: str, file: str, content: bytes
) -> None:
    for path in weights.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(weights)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(weights)).symlink_to(path)
    (tmp_path / file).unlink()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        METRICS[name](Instruments(tmp_path, download=False)).measure(pictures_of(2), rows_of(2))
    assert str(tmp_path / file) in caught.value.message and "\n" not in caught.value.message


def test_weights_with_a_tensor_too_few_are_refused(weights: Path, tmp_path: Path) -> None:
    tensors = torch.load(weights / "zai-org" / "ImageReward" / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps(stand_ins.MED))
    del tensors["blip.visual_encoder.blocks.1.attn.qkv.bias"]
    torch.save(tensors, tmp_path / "ImageReward.pt")
    (tmp_path / "bert-base-uncased").mkdir()
    (tmp_path / "bert-base-uncased" / "vocab.txt").write_text("\n".join(stand_ins.VOCABULARY))
    metric = METRICS["image_reward"](Instruments(tmp_path, download=False))
    with pytest.raises(InputError, match=r"layers.1.self_attn.qkv.bias is missing"):
        metric.measure(pictures_of(1), rows_of(1))


def test_values_that_are_not_finite_are_counted_and_left_out(instruments: Instruments) -> None:
    metric = METRICS["clip"](instruments)
    found = metric.result(torch.tensor([0.1, math.nan, 0.3, math.inf]), torch.empty(0))
    assert found["clip"].value == pytest.approx(0.2) and found["not_finite.clip"].value == 2
    assert "not_finite.clip" not in metric.result(torch.tensor([0.1, 0.3]), torch.empty(0))
    with pytest.raises(NumericalError, match="none of 2 pictures"):
        metric.result(torch.tensor([math.nan, math.nan]), torch.empty(0))


def test_weights_come_from_the_hub_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the files that are needed, in whatever order metrics ask; then none, also without a connection."""
    hub = {
        "timm/vit_base_patch32_clip_224.openai": "clip",
        "xswu/HPSv2": "hpsv2",
        "zai-org/ImageReward": "image_reward",
    }
    repos = {name: weights / name for name in [*hub, "google-bert/bert-base-uncased", "RE-N-Y/mpsv1"]}
    constants = huggingface_hub.constants
    with serving(FakeHub(repos)) as served:
        for name, value in {
            "ENDPOINT": served.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_ASSETS_CACHE": str(tmp_path / "assets"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name in hub.values():
            METRICS[name](Instruments())
        assert sorted(served.sent()) == [
            "HPS_v2_compressed.pt",
            "ImageReward.pt",
            "med_config.json",
            "open_clip_config.json",
            "open_clip_model.safetensors",
            "vocab.txt",
        ]
        served.asked.clear()
        METRICS["clip"](Instruments(download=False)).measure(pictures_of(1), rows_of(1))
        METRICS["mps"](Instruments())  # takes its `config.json` where there is one
        assert sorted(served.sent()) == ["config.json", "model.safetensors"]
        with pytest.raises(WeightsMissing, match="pickscore: .*yuvalkirstain/PickScore_v1"):
            METRICS["pickscore"](Instruments())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert METRICS["image_reward"](Instruments()).measure(pictures_of(1), rows_of(1)).isfinite().all()
    with pytest.raises(WeightsMissing, match=r"hpsv21: .*HPS_v2.1_compressed.pt, 1.97 GB.*HF_HUB_OFFLINE"):
        METRICS["hpsv21"](Instruments())


def test_half_precision_around_a_scorer_does_not_reach_it(instruments: Instruments) -> None:
    """A judge may be asked in the middle of a training in bfloat16; what is set there is as it was afterwards."""
    pictures, rows = pictures_of(3), rows_of(3)
    metrics = [METRICS[name](instruments) for name in ("clip", "pickscore", "mps", "image_reward", "fid", "fd_dinov2")]
    wanted = [metric.measure(pictures, rows) for metric in metrics]
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with torch.autocast("cpu", torch.bfloat16):
        found = [metric.measure(pictures.clone(), rows) for metric in metrics]
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert all(torch.equal(*pair) for pair in zip(wanted, found, strict=True))
    assert before == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
