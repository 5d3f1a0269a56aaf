"""Pictures per second of our scorers and of the authors' own entry points, on the same pictures, machine and run.

From the top of the repository: `python docs/experiments/speed.py [--num N]`. Random weights of the size of a ViT-B, in
the published layouts. Processor time on one thread, so that other work on the machine does not count. Loading is part
of neither side, except where the entry point loads at every call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import open_clip
import torch
from PIL import Image

sys.path.insert(0, ".")
from cleanfid import fid as cleanfid  # noqa: E402
from cleanfid.inception_torchscript import InceptionV3W  # noqa: E402

from flashdmd_cli.evaluation.backends.package import WORKER  # noqa: E402
from flashdmd_cli.evaluation.backends.upstream import build  # noqa: E402
from flashdmd_cli.evaluation.metrics.instruments import Instruments  # noqa: E402
from flashdmd_cli.evaluation.metrics.registry import METRICS  # noqa: E402
from flashdmd_cli.runs.reporter import SilentReporter  # noqa: E402
from tests import stand_ins  # noqa: E402
from tests.test_scorers import pictures_of, rows_of  # noqa: E402

TIMED = """
import json, runpy, sys, time
first, pairs = json.loads(sys.argv[2]), json.loads(sys.argv[3])
worker = runpy.run_path(sys.argv[1])
import torch
torch.set_num_threads(1)
score = worker["image_reward" if first["metric"] == "image_reward" else "hpsv2"](first)
if first["metric"] != "image_reward":
    from hpsv2 import img_score
    score(*pairs[0])  # builds the network
    img_score.torch = torch  # as it comes: the weights are read at every call
started = time.process_time()
for pair in pairs:
    score(*pair)
print("SECONDS", time.process_time() - started)
"""


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=32)
    num = parser.parse_args().num
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    base = open_clip.get_model_config("ViT-B-32")
    assert base is not None
    stand_ins.write_hps(folder, config=base)
    stand_ins.write_image_reward(folder, 224, 768, 12)
    stand_ins.write_inception(folder)
    pictures, rows = pictures_of(num, 512, 512), rows_of(num)
    (folder / "pictures").mkdir()
    paths = [folder / "pictures" / f"{i:04d}.png" for i in range(num)]
    for path, picture in zip(paths, pictures.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(picture).save(path)
    instruments = Instruments(folder, download=False)
    print(f"{num} pictures of 512 x 512; processor milliseconds per picture, one thread")
    for name in ("image_reward", "hpsv2", "fid"):
        metric = METRICS[name](instruments)
        metric.measure(pictures[:1], rows[:1])
        started = time.process_time()
        for i in range(0, num, 16):
            # From the files, as the others do.
            read = torch.stack([torch.frombuffer(Image.open(p).tobytes(), dtype=torch.uint8).view(512, 512, 3)
                                for p in paths[i : i + 16]])  # fmt: skip
            metric.measure(read.permute(0, 3, 1, 2).contiguous(), rows[i : i + 16])
        ours = time.process_time() - started
        if name == "fid":
            net = InceptionV3W(str(folder), download=False).eval()
            started = time.process_time()
            cleanfid.get_folder_features(
                str(folder / "pictures"), model=net, num_workers=0, device=torch.device("cpu"), verbose=False
            )
            theirs = time.process_time() - started
        else:
            files = {"hpsv2": "xswu/HPSv2/HPS_v2_compressed.pt", "image_reward": "zai-org/ImageReward/ImageReward.pt"}
            first = {"metric": name, "weights": str(folder / files[name])}
            first |= {"config": str(Path(first["weights"]).with_name("med_config.json"))}
            first |= {"vocabulary": str(folder / "google-bert" / "bert-base-uncased")}
            pairs = [(str(path), row.prompt) for path, row in zip(paths, rows, strict=True)]
            python = build(SilentReporter())
            command = [str(python), "-E", "-s", "-c", TIMED, str(WORKER), json.dumps(first), json.dumps(pairs)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            theirs = float(printed.rsplit("SECONDS", 1)[1])
        print(f"{name:14} ours {1000 * ours / num:8.1f}   upstream {1000 * theirs / num:8.1f}", flush=True)


if __name__ == "__main__":
    main()
