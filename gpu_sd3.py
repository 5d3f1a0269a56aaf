"""Trains and measures shapes-sd3; argument: minutes of training. Not part of the project."""
import os, sys, time
began = time.monotonic()
from pathlib import Path
import torch
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.shapes import build_part

class Prints(SilentReporter):
    def say(self, text, *args, **kwargs):
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

print(torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name(), flush=True)
print(build_part("sd3", Path(sys.argv[2]), Path(sys.argv[3]), minutes=float(sys.argv[1]), reporter=Prints()), flush=True)
print(f"done in {time.monotonic() - began:.1f} s", "peak GB", torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0)
