import math

import torch

from expo_ray.serving.noise import gumbel_noise


def test_noise_is_a_function_of_seed_position_and_token_alone() -> None:
    seeds = torch.tensor([5, 2**63 - 1, 5, -1])
    tokens = torch.arange(50).expand(4, 50)
    noise = gumbel_noise(seeds, 3, tokens)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(gumbel_noise(seeds[1:2], 3, tokens[:1]), noise[1:2])
    backwards = gumbel_noise(seeds, 3, tokens.flip(1)).flip(1)
    assert torch.equal(backwards, noise)
    # No two of seed, position and token give the same number.
    others = torch.cat(
        [gumbel_noise(torch.arange(20), p, torch.arange(50).expand(20, 50)) for p in range(20)]
    )
    assert others.unique().numel() == others.numel()


def test_golden_values() -> None:
    """Another value here changes every response that was ever generated with a seed."""
    noise = gumbel_noise(torch.tensor([42]), 0, torch.tensor([[0, 1]]))[0].tolist()
    assert noise == GOLDEN


GOLDEN = [-0.09119944899463846, 1.7216014164860038]


def test_noise_has_the_gumbel_distribution_and_no_correlation() -> None:
    noise = gumbel_noise(torch.arange(2000), 7, torch.arange(200).expand(2000, 200))
    assert abs(noise.mean().item() - 0.5772156649) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.03
    # Kolmogorov-Smirnov distance to the exact distribution, 400,000 values.
    ordered = noise.flatten().sort().values
    exact = torch.exp(-torch.exp(-ordered))
    ranks = (torch.arange(ordered.numel()) + 0.5) / ordered.numel()
    assert (exact - ranks).abs().max().item() < 2.0 / math.sqrt(ordered.numel())
    for other in (
        gumbel_noise(torch.arange(2000) + 1, 7, torch.arange(200).expand(2000, 200)),
        gumbel_noise(torch.arange(2000), 8, torch.arange(200).expand(2000, 200)),
        gumbel_noise(torch.arange(2000), 7, torch.arange(200).expand(2000, 200) + 1),
    ):
        pair = torch.stack([noise.flatten(), other.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.01
