"""The model card of an output: both parents, alpha, the formula, the citation, the digests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from expo_ray.checkpoints.storages.storage import split_address
from expo_ray.extrapolation.planning.alpha import format_alpha
from expo_ray.extrapolation.planning.path import FITTED, step_name
from expo_ray.extrapolation.planning.plan import FORMULA, Plan
from expo_ray.printable import markdown_code, markdown_text

_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[0-9a-f]{40}$")

_FIT_WORDS = {
    "line": "a least squares line over the steps",
    "rank1": "the first direction of each tensor's changes (RELEX, arXiv:2605.21468)",
    "wsm": "an average that stands for a decay of the learning rate (WSM)",
    "ema": "an exponential moving average",
    "bema": "a bias-corrected moving average (BEMA)",
    "weights": "given weights",
}

_BODY = """
# {title}

Weights extrapolated beyond alignment training (ExPO) with {alpha}{path}:

    {equation}

| | model |
|---|---|
{parents}

No training was involved. Every floating-point tensor is, bit for bit,
`{formula}`; tokenizer, templates and configuration are those of the {source}.
Extrapolation amplifies what the alignment training did, for better and for worse: measure the
result (reward, length, truncation, knowledge tasks) before relying on it.

| | |
|---|---|
| parameters | {num_parameters:,} |
| dtype | {dtype} |
| weights digest | `{weights_digest}` |

Inputs, receipts of all files and statistics of all tensors are in `expo_ray.json`;
`expo-ray verify` recomputes the weights from the inputs and compares them bit for bit.

## Citation

    @article{{zheng2024weak,
      title={{Weak-to-Strong Extrapolation Expedites Alignment}},
      author={{Zheng, Chujie and Wang, Ziqi and Ji, Heng and Huang, Minlie and Peng, Nanyun}},
      journal={{arXiv preprint arXiv:2404.16792}},
      year={{2024}}
    }}
"""


def render_card(
    *,
    alpha: float | None,
    initial_uri: str,
    aligned_uri: str,
    onto_uri: str | None = None,
    path_words: str = "",
    between: Mapping[str, str] | None = None,
    end_labels: tuple[str, str] = ("initial", "aligned"),
    formula: str = FORMULA,
    weights_digest: str,
    num_parameters: int,
    dtype: str,
    folder_name: str,
    alpha_range: tuple[float, float] | None = None,
) -> str:
    """Return the README.md of an output checkpoint.

    Args:
        alpha: The alpha, None under rules.
        initial_uri: Where initial was read from.
        aligned_uri: Where aligned was read from.
        onto_uri: Where the base was read from, if it is not aligned.
        path_words: Of a trajectory, what took the place of theta1 - theta0, in words.
        between: Of a trajectory, the checkpoints between the two, by "step 200".
        end_labels: Of a trajectory, what the two are called.
        formula: What was computed, in the words of torch.
        weights_digest: Digest of the output weights.
        num_parameters: Elements of all tensors.
        dtype: The dtype most parameters have.
        folder_name: Name of the output folder, for the title.
        alpha_range: Under rules, the smallest and the largest alpha of a tensor.
    """
    first, last = end_labels
    parents = {f"{first} (theta0)": initial_uri, **(between or {}), f"{last} (theta1)": aligned_uri}
    delta = "direction" if path_words else "(theta1 - theta0)"
    equation = f"theta2 = theta1 + alpha * {delta}"
    if onto_uri is not None:
        parents["base"] = onto_uri
        equation = f"theta2 = base + alpha * {delta}"
    # The Hub takes any name here for a model of its own: a folder's would point at a stranger.
    ids = [public_name(uri) for uri in reversed(parents.values()) if is_on_hub(uri)]
    from huggingface_hub import ModelCard, ModelCardData  # half a second to import

    data = ModelCardData(
        base_model=ids or None,
        base_model_relation="merge" if ids else None,
        library_name="transformers",
        tags=["expo", "model-extrapolation", "merge", "arxiv:2404.16792"],
    )
    body = _BODY.format(
        title=markdown_text(folder_name),
        alpha=_alpha_words(alpha, alpha_range),
        path=f", {path_words}" if path_words else "",
        equation=equation,
        parents="\n".join(
            f"| {role} | {markdown_code(public_name(uri))} |" for role, uri in parents.items()
        ),
        source="aligned model" if onto_uri is None else "base",
        formula=formula,
        num_parameters=num_parameters,
        dtype=dtype,
        weights_digest=weights_digest,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}"))


def path_words(plan: Plan, at_step: float | None) -> str:
    """Return what a direction is, in the words of a card; nothing for a pair."""
    path = plan.path
    if path is None or path.is_pair:
        return ""
    steps = f"{len(path.steps)} checkpoints (steps {step_name(path.steps[0])} to "
    steps += f"{step_name(path.steps[-1])})"
    fit = _FIT_WORDS.get(path.fit, path.fit)
    if path.start == FITTED:
        at = "" if at_step is None else f" at step {step_name(at_step)}"
        return f"where direction leads from the last of {steps} to the model fitted{at} by {fit}"
    asked = "" if at_step is None else f"; alpha stands for step {step_name(at_step)}"
    return f"where direction is the change over {steps}, fitted by {fit}{asked}"


def _alpha_words(alpha: float | None, alpha_range: tuple[float, float] | None) -> str:
    if alpha is not None:
        return f"alpha = {format_alpha(alpha)}"
    if alpha_range is None:
        return "an alpha of its own per tensor"
    low, high = map(format_alpha, alpha_range)
    return f"an alpha of its own per tensor, from {low} to {high} (rules in `expo_ray.json`)"


def is_on_hub(uri: str) -> bool:
    """Tell whether a parent is a model of the Hub, read there or from its cache."""
    address = split_address(uri)[0]
    return address.startswith("hf://") or bool(_HUB_CACHE.search(address))


def public_name(uri: str) -> str:
    """Return the name of a parent that means something elsewhere too.

    The Hub id where the path is one of the Hub's cache, otherwise the last part of the path: a
    card is published, and the folders of the machine that wrote it concern nobody.
    """
    uri = split_address(uri)[0]
    match = _HUB_CACHE.search(uri)
    if match:
        return f"{match[1]}/{match[2]}"
    if uri.startswith("hf://"):
        return uri.removeprefix("hf://").split("@")[0]
    scheme, is_remote, key = uri.rstrip("/").partition("://")
    if is_remote and "/" not in key:
        return f"a bucket on {scheme}"
    return Path(uri).name
