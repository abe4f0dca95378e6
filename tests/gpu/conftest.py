"""Every test of this folder runs on the CPU, and under the mark `gpu` on a GPU where there is one.

They need neither Ray nor vLLM. `python -m pytest -m gpu tests/gpu` runs those of the GPU alone.
"""

from __future__ import annotations

import pytest
import torch

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request: pytest.FixtureRequest) -> str:
    """Where a test computes: "cpu" or "cuda"."""
    return str(request.param)
