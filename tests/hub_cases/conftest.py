"""Cases that need a Hub of their own process: collected there alone."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "GLMLIKE_TEST_HUB" in os.environ else ["*.py"]
