"""One file per metric: plain functions on tensors, and a class that fits `metric.Metric`; `registry` lists them.

A metric first turns every picture into a few numbers (`measure`, batch by batch), then all numbers into values with
95% intervals (`result`). All pictures are never in memory at once.
"""
