"""The benchmarks, in the order in which they are run and shown."""

from . import fanout

ALL = {benchmark.name: benchmark for benchmark in (
    fanout.Shared,
)}
