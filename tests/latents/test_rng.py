"""Derived random number generators: reproducible on every machine, and all different."""

import itertools

import torch

from latent_ebm_text.latents.rng import derived_generator, derived_seed


def test_seeds_are_the_same_on_every_machine():
    # Pinned: another value would make every checkpoint resume with other draws than it would have had.
    assert derived_seed(0, "posterior", 17, 1) == 2092467924483359508


def test_a_stream_gives_the_same_numbers_again():
    first, second = (torch.randn(8, generator=derived_generator(3, "prior", 5, 0)) for _ in range(2))
    assert torch.equal(first, second)


def test_streams_differ_by_seed_purpose_step_and_rank():
    names = list(itertools.product(range(3), ("posterior", "prior", "chain start", "dropout"), range(20), range(3)))
    assert len({derived_seed(seed, purpose, *indices) for seed, purpose, *indices in names}) == len(names)


def test_streams_whose_digits_join_to_the_same_text_differ():
    assert derived_seed(0, "prior", 1, 23) != derived_seed(0, "prior", 12, 3)


def test_seeds_fit_a_torch_generator():
    assert all(0 <= derived_seed(0, "prior", step) < 2**63 for step in range(1000))


def test_a_stream_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    torch.randn(4, generator=derived_generator(0, "prior", 0))
    assert torch.equal(torch.get_rng_state(), before)
