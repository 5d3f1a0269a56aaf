#!/usr/bin/env bash
# Follows docs/tutorial.md literally in a fresh clone, and prints the seconds of every command.
#
#     docs/experiments/tutorial.sh [FOLDER]      FOLDER: where the clone goes (default: a temporary folder)
#
# Blocks with `<!-- not run: ... -->` above them are left out.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
git clone --quiet "$here" "$folder/flashdmd"
cd "$folder/flashdmd"

# One shell for all commands, since the installation activates an environment in it.
script=$(python3 - docs/tutorial.md <<'PYTHON'
import re
import shlex
import sys

text = open(sys.argv[1], encoding="utf-8").read()
blocks = re.findall(r"(<!-- not run: [^>]*-->\n)?```(\w*)\n(.*?)```", text, re.DOTALL)
for skipped, kind, block in blocks:
    if skipped:
        continue
    lines = ["python - <<'END'\n" + block + "END"] if kind == "python" else block.replace("\\\n", " ").splitlines()
    for line in lines:
        print(f"begin=$SECONDS\n{line}")
        name = shlex.quote(line.splitlines()[0] if kind != "python" else block.splitlines()[2])
        print(f'printf "%5d s  %s\\n" $((SECONDS - begin)) {name} >> seconds.txt')
PYTHON
)
: > seconds.txt
bash -euo pipefail -c "$script"
awk '{ total += $1 } END { printf "%5d s  all\n", total }' seconds.txt >> seconds.txt
cat seconds.txt
