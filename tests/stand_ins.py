"""Small random weights in the file layouts of the published scorers, so that tests load through the real loaders.

Each function writes below `folder`, as `--weights-dir` expects it, and is seeded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import alexnet
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CLIP_H: dict[str, Any] = {
    "projection_dim": 64,
    "text_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_act": "gelu", "projection_dim": 64, "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 8, "image_size": 32, "hidden_act": "gelu", "projection_dim": 64,
    },
}  # fmt: skip
MED = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 64,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
    "num_hidden_layers": 2, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 124, "encoder_width": 64,
    "add_cross_attention": True,
}  # fmt: skip
WORDS = [chr(code) for code in range(33, 65)] + list("[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{letter}" for letter in WORDS[-30:-4])]


def stirred(net: nn.Module) -> nn.Module:
    """All parameters random, also those that start as zeros and ones, so that a confusion shows."""
    for name, parameter in net.named_parameters():
        if name != "logit_scale":
            start = 1.0 if "norm" in name.lower() or ".ln_" in name or name.startswith("ln_") else 0.0
            nn.init.normal_(parameter, start if name.endswith("weight") else 0.0, 0.1)
    return net


def write_clip(folder: Path) -> Path:
    """OpenAI's CLIP in open_clip's layout."""
    torch.manual_seed(1)
    out = folder / "timm" / "vit_base_patch32_clip_224.openai"
    out.mkdir(parents=True)
    net = stirred(open_clip.CLIP(**CLIP, quick_gelu=True))  # type: ignore[arg-type]
    save_file(net.state_dict(), out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    return out


def write_hps(folder: Path, version: str = "v2", config: dict[str, Any] = CLIP) -> Path:
    """HPSv2: half precision below the key `state_dict` of a pickle, and the size of the stand-in beside it."""
    torch.manual_seed(20 if version == "v2" else 21)
    out = folder / "xswu" / "HPSv2"
    out.mkdir(parents=True, exist_ok=True)
    net = stirred(open_clip.CLIP(**config))  # type: ignore[arg-type]
    path = out / f"HPS_{version}_compressed.pt"
    torch.save({"state_dict": {name: value.half() for name, value in net.state_dict().items()}}, path)
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return path


def write_pick_score(folder: Path) -> Path:
    """PickScore: a CLIP of transformers."""
    torch.manual_seed(3)
    out = folder / "yuvalkirstain" / "PickScore_v1"
    stirred(CLIPModel(CLIPConfig(**CLIP_H))).save_pretrained(out)  # type: ignore[operator]
    return out


def write_mps(folder: Path) -> Path:
    """MPS: a CLIP and the layers of cross attention in one file."""
    torch.manual_seed(4)
    out = folder / "RE-N-Y" / "mpsv1"
    out.mkdir(parents=True)
    width, heads = 64, 2
    tensors = {
        f"mps.model.{name}": value for name, value in stirred(CLIPModel(CLIPConfig(**CLIP_H))).state_dict().items()
    }
    shapes = {
        "0.fn.to_q.weight": (heads * 64, width), "0.fn.to_kv.weight": (128, width),
        "0.fn.to_out.weight": (width, heads * 64), "0.fn.ff.0.weight": (8 * width, width),
        "0.fn.ff.2.weight": (width, 4 * width), "1.fn.fused_attn_ff_proj.weight": (heads * 64 + 128 + 8 * width, width),
        "1.fn.attn_out.weight": (width, heads * 64), "1.fn.ff_out.1.weight": (width, 4 * width),
    }  # fmt: skip
    for layer in range(4):
        for name, shape in shapes.items():
            tensors[f"mps.cross_model.layers.{layer}.{name}"] = torch.randn(shape) * 0.1
        for part in "01":
            tensors[f"mps.cross_model.layers.{layer}.{part}.fn.norm.weight"] = 1 + torch.randn(width) * 0.1
            tensors[f"mps.cross_model.layers.{layer}.{part}.fn.norm.bias"] = torch.zeros(width)
        tensors[f"mps.cross_model.layers.{layer}.1.fn.rotary_emb.inv_freq"] = 10_000 ** -(torch.arange(0, 64, 2) / 64)
    save_file({name: value.contiguous() for name, value in tensors.items()}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(CLIP_H))
    return out


def write_image_reward(folder: Path, size: int = 32, width: int = 64, depth: int = 2) -> Path:
    """ImageReward: a BLIP with the names of its authors, its settings, and the vocabulary of BERT."""
    generator = torch.Generator().manual_seed(5)
    text, inner = MED["hidden_size"], MED["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, (size // 16) ** 2 + 1, width),
        "blip.visual_encoder.patch_embed.proj.weight": (width, 3, 16, 16),
        "blip.visual_encoder.patch_embed.proj.bias": (width,),
        "blip.vision_proj.weight": (256, width), "blip.vision_proj.bias": (256,),
        "blip.text_proj.weight": (256, text), "blip.text_proj.bias": (256,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (MED["vocab_size"], text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (512, text),
    }  # fmt: skip

    def layer(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    norm("blip.visual_encoder.norm", width)
    norm("blip.text_encoder.embeddings.LayerNorm", text)
    for i in range(depth):
        block = f"blip.visual_encoder.blocks.{i}"
        norm(f"{block}.norm1", width), norm(f"{block}.norm2", width)
        layer(f"{block}.attn.qkv", 3 * width, width), layer(f"{block}.attn.proj", width, width)
        layer(f"{block}.mlp.fc1", 4 * width, width), layer(f"{block}.mlp.fc2", width, 4 * width)
        bert = f"blip.text_encoder.encoder.layer.{i}"
        for kind, inputs in (("attention", text), ("crossattention", width)):
            layer(f"{bert}.{kind}.self.query", text, text)
            layer(f"{bert}.{kind}.self.key", text, inputs), layer(f"{bert}.{kind}.self.value", text, inputs)
            layer(f"{bert}.{kind}.output.dense", text, text), norm(f"{bert}.{kind}.output.LayerNorm", text)
        layer(f"{bert}.intermediate.dense", inner, text), layer(f"{bert}.output.dense", text, inner)
        norm(f"{bert}.output.LayerNorm", text)
    for i, (inputs, outputs) in {0: (text, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        layer(f"mlp.layers.{i}", outputs, inputs)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        start = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        tensors[name] = start + torch.randn(shape, generator=generator) * 0.1
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    out = folder / "zai-org" / "ImageReward"
    out.mkdir(parents=True)
    torch.save(tensors, out / "ImageReward.pt")
    (out / "med_config.json").write_text(json.dumps({**MED, "num_hidden_layers": depth, "encoder_width": width}))
    bert_folder = folder / "google-bert" / "bert-base-uncased"
    bert_folder.mkdir(parents=True, exist_ok=True)
    (bert_folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return out


class _Layers(nn.Module):
    """Takes Inception's input and gives as many features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 16, stride=16)
        self.second = nn.Conv2d(16, 2048, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(pixels))).mean(dim=(2, 3))


class _Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def write_inception(folder: Path) -> Path:
    """A TorchScript file whose part `layers` gives 2048 features."""
    torch.manual_seed(6)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "inception-2015-12-05.pt"
    torch.jit.script(_Base()).save(str(path))
    return path


def write_dino(folder: Path) -> Path:
    """DINOv2 of transformers."""
    torch.manual_seed(7)
    out = folder / "facebook" / "dinov2-large"
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=56)
    stirred(Dinov2Model(config)).save_pretrained(out)  # type: ignore[operator]
    return out


def write_lpips(folder: Path) -> None:
    """LPIPS's linear layers and torchvision's AlexNet (without its classifier, which is not read)."""
    torch.manual_seed(8)
    (folder / "lpips").mkdir(parents=True)
    widths = (64, 192, 384, 256, 256)
    torch.save(
        {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)},
        folder / "lpips" / "alex.pth",
    )
    torch.save(
        {f"features.{name}": value for name, value in alexnet(weights=None).features.state_dict().items()},
        folder / "alexnet-owt-7be5be79.pth",
    )


def write_all(folder: Path) -> Path:
    """Every scorer."""
    for version in ("v2", "v2.1"):
        write_hps(folder, version)
    for write in (
        write_clip,
        write_pick_score,
        write_mps,
        write_image_reward,
        write_inception,
        write_dino,
        write_lpips,
    ):
        write(folder)
    return folder
