"""A PyTorch dispatch-tracing profiler: run a model once without data, then ask what limits it."""
