import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from expo_ray.serving.noise import gumbel_noise
from expo_ray.serving.row_sampling import RowSampler, draw_tokens
from expo_ray.serving.sampling import SamplingParams

NO_TOKENS = torch.empty((1, 0), dtype=torch.int64)
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5, -0.5])


def draw(params: SamplingParams, num_rows: int = 20_000) -> torch.Tensor:
    """Shares of the tokens over many seeds."""
    sampler = RowSampler(
        [params] * num_rows, range(num_rows), prompt_width=0, device=torch.device("cpu")
    )
    scores = sampler(NO_TOKENS.expand(num_rows, 0), LOGITS.repeat(num_rows, 1))
    return scores.argmax(dim=1).bincount(minlength=len(LOGITS)) / num_rows


def test_shares_are_those_of_the_softmax() -> None:
    for temperature in (0.7, 1.0, 2.0):
        shares = draw(SamplingParams(temperature=temperature, top_p=1, top_k=0))
        assert (shares - (LOGITS / temperature).softmax(0)).abs().max() < 0.015


def test_top_k_and_top_p_are_those_of_transformers() -> None:
    for temperature, top_k, top_p in ((0.7, 50, 0.9), (1.3, 3, 1.0), (1.0, 5, 0.6), (1.0, 0, 0.01)):
        shares = draw(SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p))
        logits = TemperatureLogitsWarper(temperature)(NO_TOKENS, LOGITS[None])
        if top_k:
            logits = TopKLogitsWarper(top_k)(NO_TOKENS, logits)
        expected = TopPLogitsWarper(top_p)(NO_TOKENS, logits)[0].softmax(0)
        assert torch.equal(shares > 0, expected > 0)
        assert (shares - expected).abs().max() < 0.015


def test_rows_have_their_own_settings_and_ignore_their_neighbours() -> None:
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1, top_k=2, top_p=1),
        SamplingParams(temperature=2, top_k=0, top_p=1),
        SamplingParams(temperature=1, top_k=8, presence_penalty=2),
    ]
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    together = RowSampler(params, [1, 2, 3, 4], prompt_width=2, device=cpu)
    alone = [
        RowSampler([p], [seed], prompt_width=2, device=cpu)
        for seed, p in enumerate(params, start=1)
    ]
    ids = torch.zeros((4, 2), dtype=torch.int64)
    for _ in range(30):
        logits = torch.randn(4, 100)
        tokens = together(ids, logits).argmax(dim=1, keepdim=True)
        for row, sampler in enumerate(alone):
            assert sampler(ids[row : row + 1], logits[row : row + 1]).argmax() == tokens[row]
        assert tokens[0] == logits[0].argmax()
        assert tokens[1] in logits[1].topk(2).indices
        ids = torch.cat([ids, tokens], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_large_vocabulary_is_cut_as_if_all_of_it_were_sorted(dtype: torch.dtype) -> None:
    """Whatever is beside it, also where thousands of logits equal others."""
    vocab_size, position = 5000, 7
    torch.manual_seed(0)
    # Sure of a few tokens, and so flat that thousands of them make up a share.
    spreads = torch.tensor([6.0, 6.0, 6.0, 0.1, 0.1, 0.1, 3.0, 0.1, 2.0, 2.0])
    logits_bv = (torch.randn(10, vocab_size) * spreads[:, None]).to(dtype).float()
    top_k_b1 = torch.tensor([5000, 5000, 5000, 5000, 5000, 40, 3000, 3000, 50, 5000])[:, None]
    top_p = [0.9, 0.9999, 1.0, 0.9, 1.0, 0.9, 0.5, 1.0, 1.0, 0.5]
    top_p_b1 = torch.tensor(top_p, dtype=torch.float64)[:, None]
    logits_bk, tokens_bk = logits_bv.double().sort(dim=1, descending=True, stable=True)
    logits_bk[torch.arange(vocab_size) >= top_k_b1] = -torch.inf
    probs_bk = logits_bk.softmax(dim=1)
    before_bk = probs_bk.cumsum(dim=1) - probs_bk
    logits_bk[(before_bk >= top_p_b1) & (top_p_b1 < 1)] = -torch.inf
    for seed in range(20):
        seeds_b = torch.arange(10) + 10 * seed
        noisy_bk = logits_bk + gumbel_noise(seeds_b, position, tokens_bk)
        expected_b1 = tokens_bk.gather(1, noisy_bk.argmax(1, keepdim=True))
        together = [slice(0, 10), slice(0, 2), slice(5, 9), *(slice(i, i + 1) for i in range(10))]
        for rows in together:
            chosen_b1 = draw_tokens(
                logits_bv[rows],
                seeds_b=seeds_b[rows],
                position=position,
                top_k_b1=top_k_b1[rows],
                top_p_b1=top_p_b1[rows],
            )
            assert torch.equal(chosen_b1, expected_b1[rows])


def test_a_row_without_numbers_leaves_those_beside_it_alone() -> None:
    torch.manual_seed(0)
    logits_bv = torch.randn(3, 3000)
    limits = {
        "seeds_b": torch.arange(3),
        "position": 0,
        "top_k_b1": torch.full((3, 1), 3000),
        "top_p_b1": torch.full((3, 1), 0.5, dtype=torch.float64),
    }
    before_b1 = draw_tokens(logits_bv, **limits)
    logits_bv[1, 7] = torch.nan
    chosen_b1 = draw_tokens(logits_bv, **limits)
    assert torch.equal(chosen_b1[[0, 2]], before_b1[[0, 2]])
    assert 0 <= int(chosen_b1[1]) < 3000


def test_penalties_count_the_response_alone() -> None:
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    sampler = RowSampler([params], [0], prompt_width=2, device=torch.device("cpu"))
    logits = torch.tensor([[1.0, 0.9, 0.0]])
    seen = [0, 0]  # the prompt holds token 0 twice, which must not count
    scores = []
    for _ in range(3):
        out = sampler(torch.tensor([seen]), logits)
        scores.append([round(v, 4) for v in out[0].tolist()])
        seen.append(int(out.argmax()))
    assert scores == [[1.0, 0.9, 0.0], [0.25, 0.9, 0.0], [0.25, 0.15, 0.0]]


def test_rows_without_a_number_are_named() -> None:
    for temperature in (0.0, 1.0):
        sampler = RowSampler(
            [SamplingParams(temperature=temperature)] * 3,
            [0, 1, 2],
            prompt_width=0,
            device=torch.device("cpu"),
        )
        logits = torch.zeros(3, 5)
        logits[1, 2] = float("nan")
        logits[2, 0] = float("inf")
        sampler(NO_TOKENS.expand(3, 0), logits)
        assert sampler.failed_b.tolist() == [False, True, True]
