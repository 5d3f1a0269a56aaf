"""The Python API: one function per command, which takes a recipe and paths and writes a result folder.

The function has the name of the command: `from flashdmd_cli.workflows.distill import distill`; `recipes.py` makes the
recipes. Functions print nothing and do not exit: they raise exceptions, report progress to a `Reporter`, and check
there whether a stop was requested. The default `Reporter` is silent.
"""
