"""For all tests."""

from __future__ import annotations

import os

# Prefect warns when a task outside a flow logs to the API; here a warning is an error.
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"
