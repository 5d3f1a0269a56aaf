#!/usr/bin/env bash
# Bad input of stage 1, one after the other: what was typed, its exit code, and all that it said on stderr.
#
#   bad_input.sh > bad_input.txt        (Linux, as root: a full disk is a tmpfs of 3 MB)
set -uo pipefail
root=$(mktemp -d)
cd "$root"
mkdir small && mount -t tmpfs -o size=3m tmpfs small
trap 'umount "$root/small"; rm -rf "$root"' EXIT

try() {
    echo "\$ $*"
    "$@" >stdout.txt 2>stderr.txt
    echo "exit $?, $(wc -l <stderr.txt) line(s) on stderr, $(wc -l <stdout.txt) on stdout"
    sed "s#$root#.#g" stderr.txt
    echo
}
flip() { python3 -c "import sys; p = sys.argv[1]; d = bytearray(open(p, 'rb').read()); d[len(d) // 2] ^= 1; open(p, 'wb').write(d)" "$1"; }

flashdmd prepare-data shapes --num 200 --out data --quiet
flashdmd distill --teacher shapes-sdxl --data data --out student --iterations 1 --quiet
run="flashdmd distill --teacher shapes-sdxl --iterations 1 --quiet"
teacher=$(python3 -c "from flashdmd_cli.shapes.assets import asset; print(asset('shapes-sdxl'))")

echo "## unknown key, steps 0, TTUR 0"
try $run --data data --out a --set gan.wieght=0.5
try $run --data data --out a --steps 0
try $run --data data --out a --ttur 0
echo "## no weights of SDXL on this machine"
try env HF_HUB_OFFLINE=1 flashdmd distill --teacher sdxl --steps 4 --ttur 1 --data data
echo "## a byte flipped in the student's weights, in a manifest"
cp -r student flipped && flip flipped/student/diffusion_pytorch_model.safetensors
try flashdmd sample --from flipped --prompt "a plain red ring above a plain blue square" --out b
cp -r student torn && sed -i 's/"kind"/"kinf"/' torn/manifest.json
try flashdmd inspect torn
echo "## a truncated shard"
cp -r data short && truncate -s 1000 "$(ls short/*.tar | head -1)"
try $run --data short --out a
echo "## a teacher without its VAE"
cp -r "$teacher" half && rm -r half/vae
try flashdmd distill --teacher half --recipe shapes-4step --data data --out a --iterations 1 --quiet
echo "## a full disk while the checkpoint is written; what was there is still whole"
try $run --data data --out small/student
try flashdmd inspect student --quiet
echo "## places that cannot be written: a file, a read-only file system"
touch file
try $run --data data --out file
mount -o remount,ro small
try $run --data data --out small/other
ls -d a b 2>/dev/null || echo "none of the refused runs left a folder"
