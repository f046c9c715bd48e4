"""Lower precision: passes over a graph that convert it to fp16, bf16, int8 or fp8."""
