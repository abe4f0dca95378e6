"""The vLLM replica: the server of `ray.serve.llm`, with rows in bulk and weights that change."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from vllm import SamplingParams as VLLMSamplingParams
from vllm.sampling_params import RequestOutputKind

from expo_ray.checkpoints.local_files import local_folder
from expo_ray.errors import (
    CheckpointError,
    ConfigError,
    ExpoError,
    PairError,
    ServingError,
    ShardError,
)
from expo_ray.rewards.pretrained import ChatTokenizer, load_tokenizer
from expo_ray.serve_internals import skip_model_download, vllm_client
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.engines.vllm_config import source_fields
from expo_ray.serving.engines.vllm_noise import take_seed
from expo_ray.serving.loaded import NOTHING_LOADED, Answered, ChatRow, Loaded
from expo_ray.serving.row_fitting import fit_rows
from expo_ray.serving.source import ModelSource
from expo_ray.serving.text_stream import response_text, special_ids
from expo_ray.serving.thought_reader import ThoughtReader
from expo_ray.serving.weights_gate import WeightsGate

_ERRORS = {kind.kind: kind for kind in (CheckpointError, ConfigError, PairError, ShardError)}


class VLLMGenerator(LLMServer):  # type: ignore[misc]
    """One replica with one vLLM engine.

    Args:
        llm_config: Of `engines.vllm_config.llm_config`.
        source: The weights that it names.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, *, source: ModelSource
    ) -> None:
        self._gate = WeightsGate()
        self._turn = asyncio.Lock()
        self._source: ModelSource | None = None
        self._loaded = NOTHING_LOADED
        checkpoint = source.open()
        self._tokenizer = load_tokenizer(checkpoint)
        self._special = special_ids(self._tokenizer)
        self._chats = ChatTokenizer(self._tokenizer, where=source.model)
        self._thoughts = ThoughtReader(self._tokenizer, self._chats)
        # The folder that the driver named may be on another machine.
        llm_config.get_engine_config().hf_model_id = str(local_folder(checkpoint))
        skip_model_download(llm_config)
        await super().__init__(llm_config)
        self._take_seeds()
        digests = await self.collective_rpc("expo_ray_digest")
        self._hold(source, digests)

    async def load(self, source: ModelSource) -> Loaded:
        """Put other weights in place, unless they are there; requests inside finish first."""
        async with self._turn:
            return await self._load(source)

    async def describe(self) -> Loaded:
        """Return what is loaded."""
        return self._loaded

    async def answer(self, source: ModelSource, rows: Sequence[ChatRow]) -> Answered:
        """Answer a chunk of rows by the weights of `source`, loading them first where needed."""
        async with AsyncExitStack() as stack:
            async with self._turn:
                loaded = await self._load(source)
                if loaded.error is not None:
                    return Answered(loaded=loaded, responses=[])
                # Entered before the turn ends: nobody replaces the weights in between.
                await stack.enter_async_context(self._gate.reading())
            fitting, responses = fit_rows(
                rows,
                encode=lambda chat: self._chats.ids(chat, add_generation_prompt=True),
                max_model_len=loaded.max_model_len,
            )
            made = await asyncio.gather(*map(self._generate, fitting.values()))
            for (i, row), response in zip(fitting.items(), made, strict=True):
                responses[i] = self._thoughts.tell_apart(
                    response, row, messages=rows[i].messages, reasoning=rows[i].reasoning
                )
        return Answered(loaded=loaded, responses=[responses[i] for i in range(len(rows))])

    async def _load(self, source: ModelSource) -> Loaded:
        if source == self._source:
            return self._loaded
        await self._gate.close()
        try:
            return await self.replace(source)
        finally:
            self._gate.open()

    async def replace(self, source: ModelSource) -> Loaded:
        """Put other weights in place while nobody is inside the gate."""
        self._source, self._loaded = None, NOTHING_LOADED
        await self._abort_abandoned()
        results = await self.collective_rpc("expo_ray_load", args=(source_fields(source),))
        for result in results:
            if "error" in result:
                self._loaded = Loaded(
                    weights_digest=None, max_model_len=0, error=_rebuilt(result["error"])
                )
                return self._loaded
        # What the cache holds was computed by the old weights. Not by `LLMServer`: it tells nobody
        # whether vLLM has done it.
        if not await self._client.reset_prefix_cache():
            error = ServingError(
                "vLLM did not empty its prefix cache of what other weights had computed",
                where=source.name,
            )
            self._loaded = Loaded(weights_digest=None, max_model_len=0, error=error)
            return self._loaded
        return self._hold(source, [result["digest"] for result in results])

    async def _abort_abandoned(self) -> None:
        """End what clients have left behind, for nobody is inside the gate any more.

        Its generators are closed one by one, some only as garbage; until then their blocks are
        in use, and vLLM would go on with them under the new weights.
        """
        await self._client.abort([*self._client.output_processor.request_states], internal=True)

    def _hold(self, source: ModelSource, digests: Sequence[str | None]) -> Loaded:
        if len({*digests}) != 1 or digests[0] is None:
            error = ServingError(
                "the workers of a replica hold different weights", where=source.name, got=digests
            )
            self._loaded = Loaded(weights_digest=None, max_model_len=0, error=error)
            return self._loaded
        self._source = source
        config = self._client.model_config
        self._loaded = Loaded(
            weights_digest=digests[0], max_model_len=config.max_model_len, model=source.name
        )
        return self._loaded

    def _take_seeds(self) -> None:
        """Keep seeds from vLLM, see `vllm_noise`.

        On the last step before a request leaves for the engine's process: there every request
        passes, and those for several answers have a seed for each.
        """
        core = self._client.engine_core
        send = core.add_request_async

        async def send_without_seed(request: Any) -> None:
            if request.sampling_params is not None:
                take_seed(request.sampling_params)
            await send(request)

        core.add_request_async = send_without_seed

    @property
    def _client(self) -> Any:
        return vllm_client(self)

    async def _generate(self, row: Row) -> Generated:
        params = VLLMSamplingParams(
            temperature=row.params.temperature,
            top_p=row.params.top_p,
            top_k=row.params.top_k,
            max_tokens=row.max_tokens,
            stop=list(row.params.stop),
            presence_penalty=row.params.presence_penalty,
            frequency_penalty=row.params.frequency_penalty,
            seed=row.seed,
            skip_special_tokens=not row.keep_special_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = {"prompt_token_ids": row.prompt_ids}
        async for output in self._client.generate(prompt, params, secrets.token_hex(12)):
            made = output.outputs[0]
        return Generated(
            text=self._text(made, keeps_special=row.keep_special_tokens),
            finish_reason="stop" if made.finish_reason == "stop" else "length",
            prompt_tokens=len(row.prompt_ids),
            completion_tokens=len(made.token_ids),
            error=None if made.finish_reason in ("stop", "length") else made.finish_reason,
            token_ids=tuple(made.token_ids),
        )

    def _text(self, made: Any, *, keeps_special: bool) -> str:
        if isinstance(made.stop_reason, str):
            return str(made.text)
        # vLLM drops a character that the limit on tokens has cut, the other engine does not.
        return response_text(
            self._tokenizer,
            made.token_ids,
            ended=made.finish_reason == "stop",
            kept=self._special if keeps_special else None,
        )


def _rebuilt(fields: dict[str, str | None]) -> ExpoError:
    kind = _ERRORS.get(str(fields.pop("kind")), ServingError)
    return kind(str(fields.pop("message")), **fields)
