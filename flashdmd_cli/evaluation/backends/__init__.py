"""The authors' own packages as a second opinion, each run in an environment that has the versions it needs."""
