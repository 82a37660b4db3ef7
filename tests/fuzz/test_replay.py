"""A few hundred inputs of the fuzz target, the same ones each time, without atheris: `make fuzz` tries the others."""

import random
from collections import Counter

from tests.fuzz.mutations import flipped, mutated
from tests.fuzz.target import SOUND, seeds, try_file

N_INPUTS = 400


def test_whatever_comes_only_foreseen_refusals_come_out(tmp_path):
    file = tmp_path / "bundle.safetensors"
    sound = list(seeds().values())
    rules: Counter[str] = Counter()
    for data in sound:
        file.write_bytes(data)
        assert try_file(file) == SOUND
    for seed in range(N_INPUTS):
        file.write_bytes(mutated(sound[seed % len(sound)], random.Random(seed), flipped))
        rules[try_file(file, is_thorough=seed % 16 == 0)] += 1
    assert len(rules) >= 30, rules


def test_the_same_chance_makes_the_same_input():
    data = seeds()["signed"]
    for seed in range(20):
        assert mutated(data, random.Random(seed), flipped) == mutated(data, random.Random(seed), flipped)
