"""A page on this machine that draws what is typed into it, with several models side by side.

`studio` draws, one picture at a time; `web` is the HTTP server; `page.html` is all that a browser loads; `run` starts
them.
"""

from flashdmd_cli.workflows.serve.run import serve

__all__ = ["serve"]
