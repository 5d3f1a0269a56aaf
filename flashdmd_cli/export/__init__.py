"""Export of students, one file per format."""

FORMATS = {
    "diffusers": "flashdmd_cli.export.diffusers",
    "lora": "flashdmd_cli.export.lora",
    "lora-kohya": "flashdmd_cli.export.kohya",
    "single-file": "flashdmd_cli.export.single_file",
    "onnx": "flashdmd_cli.export.onnx",
}
"""Name of a format -> module that implements `export.job.Format`; they are written in this order."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the format `onnx` needs beside the package's own dependencies."""
