"""A chip and constants with round numbers, and shapes for hypothesis."""

from hypothesis import strategies as st

from tracer.machine.kernels import (
    Collective,
    Decode,
    Elementwise,
    Gemm,
    GemmFp8,
    Grouped,
    Power,
    Prefill,
    Rates,
)

# 1 PFLOP/s over 100 SMs of 1 GHz, 1 TB/s, links of 100 GB/s.
RATES = Rates(matrix=1e15, memory=1e12, sms=100.0, clock=1e9, link=1e11)
STEADY = Power(sag=0.0, settle=1e-3, reach=0.8)

GEMM = Gemm(launch=1e-6, memory=0.5, matrix=0.5, prologue=64.0, serial=0.0)
FP8 = GemmFp8(launch=1e-6, memory=0.5, matrix=0.5, prologue=64.0, split=1.0, quantise=2.0)
PREFILL = Prefill(launch=1e-6, matrix=0.5, exposed=0.5, rows=10.0, tail=0.0, portable=0.5)
DECODE = Decode(launch=1e-6, memory=0.5, matrix=0.5, reduce=1e-6, rows=10.0)
GROUPED = Grouped(launch=1e-6, memory=0.5, matrix=0.5, rows=0.5)
ELEMENTWISE = Elementwise(launch=1e-6, memory=0.5, scalar=1.0, gather=0.5, reduce=2.0)
COLLECTIVE = Collective(launch=1e-6, hop=1e-6, link=0.5, fill=0.0, reduce=1.0, copy=0.0)

sizes = st.integers(1, 1 << 16)
small = st.integers(1, 512)
