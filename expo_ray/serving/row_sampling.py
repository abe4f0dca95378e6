"""Sampling in which every row has its own settings and its own noise.

A row's next token depends on its logits, its settings, its seed and the position: not on what
else is in the batch. Order as in vLLM: penalties, temperature, top-k, top-p, then the noise.
Shapes: B rows, V vocabulary, K largest top-k of the batch, T tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expo_ray.serving.noise import gumbel_noise
from expo_ray.serving.sampling import SamplingParams

_FIRST_LOOK = 1024
"""Likeliest tokens that are sorted of a row without top-k: nearly always they hold its top-p."""
_MANY_EQUALS = 64
_ROUNDING = 1e-9
"""More than sums of shares can be off by."""
_VALUES_AT_ONCE = 2**22
"""Of a whole vocabulary, in float64: 32 MiB."""


class RowSampler:
    """A logits processor that draws each row's token: the argmax of the logits it returns.

    Args:
        params: The settings of each row; seeds are taken from `seeds`.
        seeds: The seed of each row.
        prompt_width: Tokens of the padded prompts: penalties count from there.
        device: Where the logits are.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        *,
        prompt_width: int,
        device: torch.device,
    ) -> None:
        self._prompt_width = prompt_width
        self._seeds_b = torch.tensor(seeds, dtype=torch.int64, device=device)

        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self._greedy_b1 = column([p.temperature for p in params]) == 0
        # A temperature so small that the division overflows is greedy sampling anyway.
        self._temperature_b1 = column([max(p.temperature, 1e-6) for p in params])
        self._top_p_b1 = column([p.top_p for p in params]).double()
        self._presence_b1 = column([p.presence_penalty for p in params])
        self._frequency_b1 = column([p.frequency_penalty for p in params])
        self._has_penalties = any(p.presence_penalty or p.frequency_penalty for p in params)
        self._all_greedy = all(p.temperature == 0 for p in params)
        # 0 stands for the whole vocabulary, whose size is known with the first logits.
        self._top_k = [p.top_k for p in params]
        self._top_k_b1: torch.Tensor | None = None
        self._counts_bv: torch.Tensor | None = None
        self.failed_b = torch.zeros(len(params), dtype=torch.bool, device=device)
        """Rows whose logits were not numbers at some position: their text means nothing."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return logits that are -inf but for the drawn token of each row.

        Args:
            input_ids: [B, T].
            scores: [B, V], raw logits of the next token.
        """
        position = input_ids.shape[1] - self._prompt_width
        logits_bv = scores.float()
        self.failed_b |= ~logits_bv.amax(dim=1).isfinite()
        if self._has_penalties:
            logits_bv = self._penalized(input_ids, logits_bv, position)
        if self._all_greedy:
            return logits_bv
        chosen_b1 = self._draw(logits_bv, position)
        return torch.full_like(logits_bv, -torch.inf).scatter_(1, chosen_b1, 0.0)

    def _draw(self, logits_bv: torch.Tensor, position: int) -> torch.Tensor:
        vocab_size = logits_bv.shape[1]
        if self._top_k_b1 is None:
            limits = [min(k or vocab_size, vocab_size) for k in self._top_k]
            self._top_k_b1 = torch.tensor(limits, device=logits_bv.device)[:, None]
        greedy_b1 = logits_bv.argmax(dim=1, keepdim=True)
        drawn_b1 = draw_tokens(
            logits_bv / self._temperature_b1,
            seeds_b=self._seeds_b,
            position=position,
            top_k_b1=self._top_k_b1,
            top_p_b1=self._top_p_b1,
        )
        return torch.where(self._greedy_b1, greedy_b1, drawn_b1)

    def _penalized(
        self, input_ids: torch.Tensor, logits_bv: torch.Tensor, position: int
    ) -> torch.Tensor:
        if self._counts_bv is None:
            self._counts_bv = torch.zeros_like(logits_bv)
        if position > 0:
            last_b1 = input_ids[:, -1:]
            self._counts_bv.scatter_add_(1, last_b1, torch.ones_like(last_b1, dtype=torch.float32))
        penalty_bv = self._frequency_b1 * self._counts_bv
        return logits_bv - penalty_bv - self._presence_b1 * (self._counts_bv > 0)


def draw_tokens(
    logits_bv: torch.Tensor,
    *,
    seeds_b: torch.Tensor,
    position: int | torch.Tensor,
    top_k_b1: torch.Tensor,
    top_p_b1: torch.Tensor,
) -> torch.Tensor:
    """Return one token per row, [B, 1]: top-k, then top-p, then the row's own noise.

    Args:
        logits_bv: Penalties and temperature applied.
        seeds_b: int64, the seed of each row.
        position: Which generated token, from 0: one for all rows, or [B].
        top_k_b1: Candidates of each row, at least 1.
        top_p_b1: float64, the share that a row's candidates have to reach.
    """
    num_rows, vocab_size = logits_bv.shape
    position_b = torch.as_tensor(position, device=logits_bv.device).expand(num_rows)
    if int(top_k_b1.max()) < vocab_size:
        return _draw_of_likeliest(logits_bv, seeds_b, position_b, top_k_b1, top_p_b1)
    all_b = ((top_k_b1 >= vocab_size) & (top_p_b1 >= 1))[:, 0]
    chosen_b1 = torch.empty_like(top_k_b1)
    for draw, rows_b in ((_draw_of_all, all_b), (_draw_of_likeliest, ~all_b)):
        if rows_b.any():
            limits = (top_k_b1[rows_b], top_p_b1[rows_b])
            drawn = draw(logits_bv[rows_b], seeds_b[rows_b], position_b[rows_b], *limits)
            chosen_b1[rows_b] = drawn
    return chosen_b1


def _draw_of_all(
    logits_bv: torch.Tensor, seeds_b: torch.Tensor, position_b: torch.Tensor, *_: torch.Tensor
) -> torch.Tensor:
    """Return one token per row, of the whole vocabulary: nothing needs to be sorted."""
    tokens_v = torch.arange(logits_bv.shape[1], device=logits_bv.device)
    return torch.cat(
        [
            (
                logits_bv[rows].double() + gumbel_noise(seeds_b[rows], position_b[rows], tokens_v)
            ).argmax(dim=1, keepdim=True)
            for rows in _few_at_once(logits_bv)
        ]
    )


def _draw_of_likeliest(
    logits_bv: torch.Tensor,
    seeds_b: torch.Tensor,
    position_b: torch.Tensor,
    top_k_b1: torch.Tensor,
    top_p_b1: torch.Tensor,
    first_look: int = _FIRST_LOOK,
) -> torch.Tensor:
    """Return one token per row; of a row without top-k, `first_look` tokens are looked at first."""
    vocab_size = logits_bv.shape[1]
    whole_b1 = top_k_b1 >= vocab_size
    num_sorted = int(top_k_b1.masked_fill(whole_b1, min(first_look, vocab_size)).max())
    logits_bk, tokens_bk = _likeliest(logits_bv, num_sorted)
    # float64 from here on: what is summed or compared is K small.
    ranks_k = torch.arange(num_sorted, device=logits_bv.device)
    logits_bk = logits_bk.double().masked_fill(ranks_k >= top_k_b1, -torch.inf)
    total_b1 = logits_bk.logsumexp(dim=1, keepdim=True)
    any_whole = bool(whole_b1.any())
    if any_whole:
        total_b1 = torch.where(whole_b1, _log_total(logits_bv), total_b1)
    probs_bk = (logits_bk - total_b1).exp()
    up_to_bk = probs_bk.cumsum(dim=1)
    noisy_bk = logits_bk + gumbel_noise(seeds_b, position_b, tokens_bk)
    # The likeliest token has nothing before it, so one candidate always remains.
    noisy_bk = noisy_bk.masked_fill(up_to_bk - probs_bk >= top_p_b1, -torch.inf)
    chosen_b1 = tokens_bk.gather(1, noisy_bk.argmax(dim=1, keepdim=True))
    if not any_whole or num_sorted == vocab_size:
        return chosen_b1
    again_b = (whole_b1 & ~(up_to_bk[:, -1:] > top_p_b1 + _ROUNDING))[:, 0]
    if again_b.any():
        chosen_b1[again_b] = _draw_of_likeliest(
            logits_bv[again_b],
            seeds_b[again_b],
            position_b[again_b],
            top_k_b1[again_b],
            top_p_b1[again_b],
            first_look=vocab_size,
        )
    return chosen_b1


def _likeliest(logits_bv: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logits of each row, [B, `num`], and whose they are.

    Of equal ones, of which bfloat16 makes many, the lower token comes first: so what is found does
    not change with `num`, which is a matter of the batch.
    """
    vocab_size = logits_bv.shape[1]
    # `topk` takes any of those that equal its last: more than are asked for, to see past them.
    num_seen = min(num + num // 4 + _MANY_EQUALS, vocab_size)
    seen_bs, tokens_bs = logits_bv.topk(num_seen, dim=1)
    tokens_bs, by_token_bs = tokens_bs.sort(dim=1)
    seen_bs, by_logit_bs = seen_bs.gather(1, by_token_bs).sort(dim=1, descending=True, stable=True)
    logits_bk, tokens_bk = seen_bs[:, :num], tokens_bs.gather(1, by_logit_bs)[:, :num]
    unseen_b = seen_bs[:, num - 1] == seen_bs[:, -1]
    if num_seen < vocab_size and unseen_b.any():
        logits_rv, tokens_rv = logits_bv[unseen_b].sort(dim=1, descending=True, stable=True)
        logits_bk[unseen_b], tokens_bk[unseen_b] = logits_rv[:, :num], tokens_rv[:, :num]
    return logits_bk, tokens_bk


def _log_total(logits_bv: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of what a row's softmax divides by, float64 [B, 1]."""
    return torch.cat(
        [
            logits_bv[rows].double().logsumexp(dim=1, keepdim=True)
            for rows in _few_at_once(logits_bv)
        ]
    )


def _few_at_once(logits_bv: torch.Tensor) -> list[slice]:
    num_rows, vocab_size = logits_bv.shape
    step = max(1, _VALUES_AT_ONCE // vocab_size)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
