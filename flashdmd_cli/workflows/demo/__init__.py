"""The whole of stage 1 on the embedded world, told to a newcomer.

Read in this order: `run.py` -> `rows.py` -> `forecast.py` -> `page.py`.
"""

from flashdmd_cli.workflows.demo.run import demo

__all__ = ["demo"]
