"""The benchmarks, in the order in which they are run and shown."""

from . import buses, fanout, insert, latency, registry, rights, throughput

ALL = {benchmark.name: benchmark for benchmark in (
    fanout.Shared,
    fanout.Own,
    fanout.Filters,
    rights.RowSecurity,
    insert.Insert,
    latency.Latency,
    latency.EmptyCall,
    throughput.Single,
    throughput.Batch,
    throughput.Many,
    registry.Memory,
    registry.Calls,
    registry.Beside,
    buses.BusLatency,
    buses.BusRate,
    buses.BusInsert,
    buses.BusBacklog,
)}
