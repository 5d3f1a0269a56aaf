"""Checks of the options of `export` that need neither torch nor the teacher, so that a mistake is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from flashdmd_cli.export import FORMATS, ONNX_PACKAGES
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.hub import parse_id
from flashdmd_cli.runs.nearest import unknown
from flashdmd_cli.workflows.training import ADAPTER

WRITTEN = ("fp32", "fp16", "bf16", "fp8")
"""Number formats that an export is written in."""
INTEGERS = ("int8", "uint8", "int4")
QUANTIZED_LATER = (
    'write --format diffusers without it: torchao quantizes the folder while it is loaded (docs/export.md, "8 bits")'
)
"""Hint for number formats that are not written, since they are made on loading."""


def check_options(forms: Sequence[str], dtypes: Sequence[str], rank: int | None, push: str | None) -> None:
    """Raise `UsageError` for unknown values, and for options that do not go together."""
    for name in forms:
        if name not in FORMATS:
            raise unknown("--format", name, FORMATS)
    if not forms:
        raise UsageError("--format: names no format", hint=f"one or several of {','.join(FORMATS)}")
    if "onnx" in forms and (missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]):
        raise UsageError(f"--format onnx: needs {', '.join(missing)}", hint="pip install 'flashdmd[onnx]'")
    for name in dtypes:
        if name in INTEGERS:
            raise UsageError(f"--dtype {name}: no format is written in integers", hint=QUANTIZED_LATER)
        if name not in WRITTEN:
            raise unknown("--dtype", name, WRITTEN)
    if "fp8" in dtypes and (list(dtypes), list(forms)) != (["fp8"], ["single-file"]):
        other = QUANTIZED_LATER if "diffusers" in forms else "export the other formats in a second call"
        raise UsageError("--dtype fp8: is for --format single-file alone", hint=other)
    if len(dtypes) > 1 and "diffusers" not in forms:
        raise UsageError(
            f"--dtype {','.join(dtypes)}: only --format diffusers is written in several number formats",
            hint=f"name one, for example --dtype {dtypes[0]}",
        )
    if "onnx" in forms and dtypes and "fp32" not in dtypes:
        hint = "leave out --dtype, and convert it with the tools of your runtime"
        raise UsageError("--format onnx: is written in fp32", hint=hint)
    if rank is not None and rank < 1:
        raise UsageError(f"--rank {rank}: must be at least 1")
    if rank is not None and not {"lora", "lora-kohya"} & set(forms):
        raise UsageError(f"--rank {rank}: is the rank of a LoRA", hint="add --format lora, or leave it out")
    if push is not None and (parse_id(push) is None or "@" in push):
        raise UsageError(f"--push {push}: is not the name of a repository", hint="owner/name, such as ada/my-student")


def check_student(checkpoint: Path, rank: int | None) -> None:
    """Raise `UsageError` for a rank of adapters that are exported as they are."""
    if rank is not None and (checkpoint / ADAPTER).is_file():
        raise UsageError(
            f"--rank {rank}: {checkpoint} was trained with adapters, which keep their rank", hint="leave it out"
        )
