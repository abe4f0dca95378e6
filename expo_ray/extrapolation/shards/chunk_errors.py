"""What the values of a chunk can be refused for."""

from __future__ import annotations

from collections.abc import Iterable

from expo_ray.errors import ShardError, argument
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.planning.alpha import format_alpha
from expo_ray.extrapolation.shards.tasks import ShardOutput


def nonfinite_input(pair: TensorPair, count: int, uris: Iterable[str]) -> ShardError:
    """Return the refusal of an input that holds NaN or infinity; `uris` are the sides."""
    return ShardError(
        "an input holds values that are not finite",
        where=f"tensor {pair.name!r} of {' or '.join(uris)}",
        got=f"{count} or more NaN or infinite elements",
        expected="finite values",
        hint=f"{argument('allow_nonfinite', True)} goes on all the same",
    )


def overflow(pair: TensorPair, output: ShardOutput, count: int) -> ShardError:
    """Return the refusal of finite values that the output dtype cannot hold."""
    made_by = "copied"  # which needs no alpha, and rules give it none
    if pair.num_extrapolated:
        made_by = f"alpha {format_alpha(output.alpha_of(pair.name))}"
    return ShardError(
        "the result does not fit the output dtype",
        where=f"tensor {pair.name!r}, {made_by}",
        got=f"{count} or more elements become infinite in {pair.output_dtype}",
        expected="finite values",
        hint=f"choose a smaller alpha or a wider {argument('output_dtype')}; "
        f"{argument('allow_overflow', True)} goes on",
    )
