"""Nothing of a test's may outlive it: no host process of a gang, no fleet."""

from __future__ import annotations
