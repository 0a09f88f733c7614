"""Importing this skips the test module where the extra of the trainer is not installed."""

import pytest

pytest.importorskip("lightning", reason="lightning, which trains models, is not installed")
