"""Programs of a checkout: `tools.gpu_check`, `tools.traffic` and `tools.report`."""

import bench  # noqa: F401  takes the checkout off sys.path, where it hides what is installed
