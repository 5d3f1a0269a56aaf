"""Suites: which prompts are drawn and what is measured on the pictures. The shipped ones are the YAML files here.

`spec.read_suite` reads one, shipped or not; `suite.Suite` is what the rest of the package sees of it.
"""
