"""The transformers engine: `generate` over one left-padded batch, every row on its own terms.

Shapes: B rows, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation import LogitsProcessorList

from expo_ray.rewards.pretrained import ChatTokenizer
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.engines.loading import LoadedModel, load_model, refill
from expo_ray.serving.row_sampling import RowSampler
from expo_ray.serving.source import ModelSource
from expo_ray.serving.text_stream import TextStream, response_text
from expo_ray.serving.thought_reader import ThoughtReader
from expo_ray.tables.prompts import Message
from expo_ray.tables.thoughts import Reasoning


class TransformersEngine:
    """Generates with a transformers model on the CPU or on one CUDA device.

    Args:
        max_model_len: Tokens of prompt and response together; None takes the model's context.
        device: "cpu" or "cuda"; None takes CUDA where it is.
    """

    source: ModelSource
    weights_digest: str
    max_model_len: int
    _loaded: LoadedModel

    def __init__(self, *, max_model_len: int | None = None, device: str | None = None) -> None:
        self._max_model_len = max_model_len
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    def load(self, source: ModelSource) -> None:
        """Load weights, in place of any that were loaded before."""
        before = self.__dict__.pop("_loaded", None)  # after a failure nothing is left to answer
        if before and before.is_refillable and source.is_same_pair(self.source):
            loaded = refill(before, source)
        else:
            del before  # the old weights go first: two models may not fit
            loaded = load_model(source, device=self._device)
        self._chats = ChatTokenizer(loaded.tokenizer, where=source.model)
        self._thoughts = ThoughtReader(loaded.tokenizer, self._chats)
        self.source = source
        self.weights_digest = loaded.weights_digest
        self.max_model_len = min(loaded.max_model_len, self._max_model_len or loaded.max_model_len)
        self._loaded = loaded

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a chat, see `Engine`."""
        return self._chats.ids(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
            max_tokens=self.max_model_len,
        )

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of plain text, see `Engine`."""
        return self._chats.text_ids(text, max_tokens=self.max_model_len)

    def tell_apart(
        self,
        made: Generated,
        row: Row,
        *,
        messages: Sequence[Message],
        reasoning: Reasoning,
    ) -> Generated:
        """Return a response with its thought aside, see `Engine`."""
        return self._thoughts.tell_apart(made, row, messages=messages, reasoning=reasoning)

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Make one response per row, as one batch; blocks."""
        loaded = self._loaded
        width = max(len(row.prompt_ids) for row in rows)
        pads = [width - len(row.prompt_ids) for row in rows]
        device = torch.device(self._device)
        ids_bt = torch.tensor(
            [[0] * pad + row.prompt_ids for row, pad in zip(rows, pads, strict=True)],
            device=device,
        )
        mask_bt = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=device)
        sampler = RowSampler(
            [row.params for row in rows],
            [row.seed for row in rows],
            prompt_width=width,
            device=device,
        )
        watcher = _Watcher(rows, sampler, loaded, prompt_width=width, device=device)
        with torch.inference_mode():
            loaded.model.generate(
                input_ids=ids_bt,
                attention_mask=mask_bt,
                generation_config=GenerationConfig(
                    max_new_tokens=max(row.max_tokens for row in rows),
                    do_sample=False,
                    use_cache=True,
                    pad_token_id=0,
                ),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([watcher]),
            )
        return watcher.results()


class _Watcher:
    """A stopping criterion: ends rows, hands out text and results as they come."""

    def __init__(
        self,
        rows: Sequence[Row],
        sampler: RowSampler,
        loaded: LoadedModel,
        *,
        prompt_width: int,
        device: torch.device,
    ) -> None:
        self._rows = rows
        self._sampler = sampler
        self._tokenizer = loaded.tokenizer
        self._special = loaded.special_ids
        self._prompt_width = prompt_width
        self._eos = torch.tensor(loaded.eos_ids, dtype=torch.int64, device=device)
        self._heeds_eos_b = torch.tensor([not row.ignore_eos for row in rows], device=device)
        self._max_tokens_b = torch.tensor([row.max_tokens for row in rows], device=device)
        self._finished_b = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self._results: list[Generated | None] = [None] * len(rows)
        # Text is decoded on the way only for those who need it on the way.
        self._streams = {
            i: TextStream(
                self._tokenizer,
                row.params.stop,
                keep_special_tokens=row.keep_special_tokens,
                keep_stop=row.keep_stop,
            )
            for i, row in enumerate(rows)
            if row.on_text is not None or row.params.stop
        }
        self._texts = dict.fromkeys(self._streams, "")

    def results(self) -> list[Generated]:
        """Return the responses, in the order of the rows."""
        return [result for result in self._results if result is not None]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows are finished."""
        num_tokens = input_ids.shape[1] - self._prompt_width
        last_b = input_ids[:, -1]
        eos_b = torch.isin(last_b, self._eos) & self._heeds_eos_b
        ended_b = eos_b | (num_tokens >= self._max_tokens_b) | self._sampler.failed_b
        ended_b |= self._push_text(last_b, eos_b)
        for i in (ended_b & ~self._finished_b).nonzero()[:, 0].tolist():
            ids = input_ids[i, self._prompt_width :].tolist()
            self._finish(i, ids, ended_by_eos=bool(eos_b[i]))
        self._finished_b |= ended_b
        return self._finished_b

    def _push_text(self, last_b: torch.Tensor, eos_b: torch.Tensor) -> torch.Tensor:
        stopped = [row.cancelled for row in self._rows]
        if self._streams:
            tokens, is_eos = last_b.tolist(), eos_b.tolist()
            for i, stream in self._streams.items():
                if self._results[i] is None and not is_eos[i]:
                    self._hand_out(i, stream.push(tokens[i]))
                    stopped[i] |= stream.stopped
        return torch.tensor(stopped, device=last_b.device)

    def _hand_out(self, i: int, text: str) -> None:
        self._texts[i] += text
        if text and (on_text := self._rows[i].on_text) is not None:
            on_text(text)

    def _finish(self, i: int, ids: list[int], *, ended_by_eos: bool) -> None:
        row, stream = self._rows[i], self._streams.get(i)
        cut = stream is not None and stream.stopped
        if stream is not None:
            self._hand_out(i, stream.finish())
        if cut or row.on_text is not None:
            text = self._texts[i]
        else:
            kept = self._special if row.keep_special_tokens else None
            text = response_text(self._tokenizer, ids, ended=ended_by_eos, kept=kept)
        stopped = ended_by_eos or cut
        result = Generated(
            text=text,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(row.prompt_ids),
            completion_tokens=len(ids),
            error="the logits are not finite numbers" if self._sampler.failed_b[i] else None,
            token_ids=tuple(ids),
        )
        self._results[i] = result
        if row.on_done is not None:
            row.on_done(result)
