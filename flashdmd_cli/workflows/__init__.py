"""What each verb does on disk: recipe and paths in, result out. Prints nothing, exits nowhere; the Python API.

A function bears the name of its verb: `from flashdmd_cli.workflows.distill import distill`; `recipes.py` makes the
recipes. Long work tells a `Reporter` how far it is, and asks it whether to stop; the default says nothing.
"""
