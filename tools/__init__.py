"""Around the benchmarks: `tools.gpu_check`, `tools.traffic` and `tools.report`, in a checkout."""

import bench  # noqa: F401  takes the checkout off sys.path, where it hides what is installed
