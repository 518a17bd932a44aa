"""What tests of compiled kernels share."""

import pytest

from services.common.native import best_level

needs_kernels = pytest.mark.skipif(best_level() is None, reason="no compiled kernels for this processor")
