"""LoRA adapters as PEFT writes them: which tensor of the base they change, and by what.

    delta = scaling * (B @ A)      scaling = lora_alpha / r, or lora_alpha / sqrt(r) under rsLoRA

Only what is understood wholly is accepted: a setting or a tensor of another kind is refused by
name, because leaving it out would give weights that nobody trained.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, Header, TensorRef, parse_config
from expo_ray.checkpoints.formats.index import read_file_header
from expo_ray.checkpoints.formats.layouts import INDEX_NAME, PICKLE_SINGLE_NAME, SINGLE_NAME
from expo_ray.checkpoints.storages.storage import FileFacts, Storage
from expo_ray.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?"
)
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
# Settings that change nothing about the meaning of the tensors, or that are followed here.
_UNDERSTOOD = {
    *("task_type", "peft_type", "peft_version", "auto_mapping", "inference_mode", "megatron_core"),
    *("base_model_name_or_path", "revision", "modules_to_save", "ensure_weight_tying", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config"),
    *("qalora_group_size",),
}
# Other ways to begin training (PiSSA, OLoRA, ...) change the weights of the base too.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)
BASE_HINT = "name it in the address: ADAPTER#base=PATH"
OTHER_BASE_HINT = (
    "the base must be the model that the adapter was trained on, with the same names in its files: "
    f"{BASE_HINT}"
)
_SAVE_HINT = "config and weights do not belong together: save or fetch both again"
MERGE_HINT = "merge the adapter into its model with peft first, and give the merged checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraTensor:
    """The change of one tensor of the base."""

    name: str
    a: TensorRef
    """(r, in)."""
    b: TensorRef
    """(out, r)."""
    scaling: float
    is_transposed: bool
    """Whether the base stores (in, out): embeddings, and the Conv1D of GPT-2."""
    stored: TensorRef | None
    """The adapter's own copy of the base tensor, where it has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter folder as its config and header describe it."""

    storage: Storage
    config: Mapping[str, Any]
    file: str
    """Name of its weight file."""
    files: Mapping[str, FileFacts]
    """All files of the folder."""
    facts: FileFacts
    """Of the weight file."""
    digest: str
    """sha256 over header and config: the scaling is part of what the weights are."""
    factors: Mapping[str, Mapping[str, TensorRef]]
    """Module -> A, B; of an embedding: embedding_A, embedding_B."""
    replaced: Mapping[str, TensorRef]
    """Whole tensors that take the place of the base's: modules_to_save, trained biases."""

    def change_of(self, ref: TensorRef) -> LoraTensor | None:
        """Return what the adapter adds to a tensor of the base, None where nothing.

        Raises:
            CheckpointError: The shapes do not belong together.
        """
        module = ref.name.removesuffix(".weight")
        factors = self.factors.get(module) if ref.name.endswith(".weight") else None
        if factors is None:
            return None
        is_embedding = "embedding_A" in factors
        sides = ("embedding_A", "embedding_B") if is_embedding else ("A", "B")
        if set(factors) != set(sides):
            found = sorted(factors)
            raise self._refusal("half of a LoRA pair is missing", module, found, _SAVE_HINT)
        a, b = (factors[side] for side in sides)
        rank = self._check_shapes(module, a, b, ref)
        alpha = float(_pattern_value(self.config, "alpha_pattern", "lora_alpha", module))
        direct = (b.shape[0], a.shape[1])
        # A square matrix looks the same either way.
        is_turned = bool(self.config.get("fan_in_fan_out")) if is_square(ref) else None
        return LoraTensor(
            name=ref.name,
            a=a,
            b=b,
            scaling=alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank),
            is_transposed=is_embedding or (ref.shape != direct if is_turned is None else is_turned),
            stored=self.replaced.get(ref.name),
        )

    def _check_shapes(self, module: str, a: TensorRef, b: TensorRef, ref: TensorRef) -> int:
        shapes = f"A {list(a.shape)}, B {list(b.shape)}, base {list(ref.shape)}"
        rank = a.shape[0] if a.shape else 0
        if len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != rank or not rank:
            raise self._refusal("only LoRA on matrices is supported", module, shapes)
        if rank != _pattern_value(self.config, "rank_pattern", "r", module):
            message = "the rank is not the one in the config"
            raise self._refusal(message, module, shapes, _SAVE_HINT)
        if ref.shape not in ((b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])):
            message = "the adapter does not fit the shape of the base"
            raise self._refusal(message, module, shapes, OTHER_BASE_HINT)
        if ref.dtype not in FLOAT_DTYPES - {"F64"} or not {a.dtype, b.dtype} <= FLOAT_DTYPES:
            dtypes = f"A {a.dtype}, B {b.dtype}, base {ref.dtype}"
            raise self._refusal("LoRA on weights of this dtype is not supported", module, dtypes)
        return rank

    def _refusal(
        self, message: str, module: str, got: object, hint: str | None = None
    ) -> CheckpointError:
        where = f"{self.storage.uri}, module {module!r}"
        return CheckpointError(message, where=where, got=got, hint=hint or MERGE_HINT)


def is_square(ref: TensorRef) -> bool:
    """Tell whether a matrix has as many rows as columns."""
    return ref.shape[0] == ref.shape[1]


def read_adapter(storage: Storage, files: Mapping[str, FileFacts]) -> Adapter:
    """Read the config and the header of an adapter folder.

    Raises:
        CheckpointError: It is malformed, or of a kind that is not supported.
    """
    where = f"{storage.uri}/{ADAPTER_CONFIG}"
    raw = storage.read_bytes(ADAPTER_CONFIG)
    config = parse_config(raw, file=where)
    _check_config(config, where)
    full = next((n for n in (SINGLE_NAME, INDEX_NAME, PICKLE_SINGLE_NAME) if n in files), None)
    if full is not None:
        raise CheckpointError(
            "the folder holds an adapter and a whole model: which one counts is unclear",
            where=storage.uri,
            got=f"{ADAPTER_CONFIG} and {full}",
            expected="one of the two",
        )
    file = next((name for name in ADAPTER_FILES if name in files), None)
    if file is None:
        raise CheckpointError(
            "the adapter has no weights",
            where=storage.uri,
            expected=" or ".join(ADAPTER_FILES),
            hint="fetch them, too",
        )
    header = read_file_header(storage, file)
    factors, replaced = _sort_tensors(header, f"{storage.uri}/{file}")
    return Adapter(
        storage=storage,
        config=config,
        file=file,
        files=files,
        facts=files[file],
        digest=hashlib.sha256(header.sha256.encode() + raw).hexdigest(),
        factors=factors,
        replaced=replaced,
    )


def _check_config(config: Mapping[str, Any], where: str) -> None:
    for key, value in config.items():
        if value and key not in _UNDERSTOOD:
            raise _unsupported(where, key, value)
    if config.get("peft_type") != "LORA":
        raise _unsupported(where, "peft_type", config.get("peft_type"))
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise _unsupported(where, "init_lora_weights", config["init_lora_weights"])
    fine = (
        type(config.get("r")) is int
        and _is_number(config.get("lora_alpha"))
        and _are_numbers(config.get("rank_pattern"))
        and _are_numbers(config.get("alpha_pattern"))
    )
    if not fine:
        raise CheckpointError("the adapter's rank and scaling cannot be read", where=where)


def _unsupported(where: str, key: str, value: object) -> CheckpointError:
    return CheckpointError(
        "adapters of this kind are not supported",
        where=where,
        got=f"{key} = {value}"[:200],
        expected="plain LoRA",
        hint=MERGE_HINT,
    )


def _sort_tensors(
    header: Header, where: str
) -> tuple[dict[str, dict[str, TensorRef]], dict[str, TensorRef]]:
    factors: dict[str, dict[str, TensorRef]] = {}
    replaced: dict[str, TensorRef] = {}
    for ref in header.tensors:
        name = ref.name.removeprefix(_PREFIX)
        match = _LORA.fullmatch(name)
        if match and name != ref.name:
            side = (match["kind"] or "") + match["side"]
            is_new = factors.setdefault(match["module"], {}).setdefault(side, ref) is ref
        elif "lora_" in name or name == ref.name:
            raise CheckpointError(
                "the adapter holds a tensor that is no plain LoRA",
                where=f"{where}, tensor {ref.name!r}",
                hint=MERGE_HINT,
            )
        else:
            is_new = replaced.setdefault(_WRAPPERS.sub("", name), ref) is ref
        if not is_new:
            raise CheckpointError(
                "the adapter holds a tensor twice", where=f"{where}, tensor {ref.name!r}"
            )
    if not factors and not replaced:
        raise CheckpointError("the adapter holds no tensors", where=where)
    return factors, replaced


def _are_numbers(patterns: object) -> bool:
    if not patterns:
        return True
    return isinstance(patterns, dict) and all(map(_is_number, patterns.values()))


def _is_number(value: object) -> bool:
    # Python reads NaN and Infinity, and whole numbers that no float can hold.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _pattern_value(config: Mapping[str, Any], patterns: str, default: str, module: str) -> Any:
    """Return the setting of a module: the first pattern that matches the end of its name."""
    for pattern, value in (config.get(patterns) or {}).items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        except re.error as error:
            raise CheckpointError(
                "a pattern of the adapter is no regular expression", where=patterns, got=pattern
            ) from error
    return config[default]
