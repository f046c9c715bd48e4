"""Networks this narrow are faster on one thread, and much faster where the cores are busy."""

from __future__ import annotations

from tests.reference.conftest import one_thread

__all__ = ["one_thread"]
