#!/usr/bin/env bash
# A wrong `--from`, and a wrong reward model, of `align`: what was typed, its exit code, and all that it said on stderr.
#
#   bad_from.sh > bad_from.txt
set -uo pipefail
root=$(mktemp -d)
cd "$root"
trap 'rm -rf "$root"' EXIT

try() {
    echo "\$ flashdmd align $*"
    flashdmd align "$@" --quiet >stdout.txt 2>stderr.txt
    echo "exit $?, $(wc -l <stderr.txt) line(s) on stderr, $(wc -l <stdout.txt) on stdout"
    sed "s#$root#.#g" stderr.txt
    echo
}
edit() { python3 -c "import json, sys; p, k, v = sys.argv[1:]; d = json.load(open(p)); d[k] = json.loads(v); json.dump(d, open(p, 'w'))" "$@"; }
flip() { python3 -c "import sys; p = sys.argv[1]; d = bytearray(open(p, 'rb').read()); d[len(d) // 2] ^= 1; open(p, 'wb').write(d)" "$1"; }
damaged() { rm -rf "$1" && cp -r student "$1"; }

flashdmd prepare-data shapes --num 200 --out data --quiet >/dev/null
flashdmd distill --teacher shapes-sdxl --data data --out student --iterations 1 --quiet >/dev/null
flashdmd eval --suite shapes1k --limit 8 --from student --out measured --quiet >/dev/null

try --from nowhere
damaged bare && rm bare/manifest.json && try --from bare
try --from measured
damaged newer && edit newer/manifest.json schema_version 99 && try --from newer
damaged torn && echo '{' >torn/manifest.json && try --from torn
damaged less && rm less/student/config.json && try --from less
damaged flipped && flip flipped/student/diffusion_pytorch_model.safetensors && try --from flipped
reward=$(python3 -c "from flashdmd_cli.shapes.assets import asset; print(asset('shapes-reward'))")
cp -r "$reward" other && rm -f other/manifest.json && python3 - <<'END'
import json
path = "other/unet/config.json"
config = json.load(open(path))
config["in_channels"] = 4
json.dump(config, open(path, "w"))
END
try --from student --reward other
try --from student --reward measured
echo "what the refused runs left:"
find runs -type f 2>/dev/null
