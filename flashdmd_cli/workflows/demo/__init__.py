"""Stage 1 on the embedded world from data to evaluation, with explanations for newcomers.

Read in this order: `run.py` -> `rows.py` -> `forecast.py` -> `page.py`.
"""

from flashdmd_cli.workflows.demo.run import demo

__all__ = ["demo"]
