"""`python -m flashdmd_cli`, and the script `flashdmd`."""

from __future__ import annotations

from flashdmd_cli.runs.process import begin_process


def main() -> None:
    """Run the command line; the exit code is the process's."""
    begin_process()  # the imports below take a while
    from flashdmd_cli.cli.app import app

    app()


if __name__ == "__main__":
    main()
