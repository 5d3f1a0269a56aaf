"""`python -m flashdmd_cli`, and the script `flashdmd`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

from flashdmd_cli.runs.launcher import is_rank
from flashdmd_cli.runs.process import begin_process


def main() -> None:
    """Run the command line; the exit code is the process's."""
    begin_process()  # the imports below take a while
    from flashdmd_cli.cli.app import app

    try:
        app()
    except OSError as error:  # help and version are printed outside of the commands, which tell this themselves
        from flashdmd_cli.cli.output import hush_stdout

        hush_stdout()
        print(f"stdout: cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(3)
    except SystemExit as end:
        # Taking the libraries down takes seconds after a signal, and may wait for processes that are gone.
        if isinstance(end.code, int) and (end.code > 128 or end.code and is_rank()):
            atexit._run_exitfuncs()
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(end.code)
        raise


if __name__ == "__main__":
    main()
