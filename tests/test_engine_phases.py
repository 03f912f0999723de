"""Phases on the real engine: PPO and GRPO take their steps, and one that was cut ends as one that was left alone.

Other algorithms, and cuts anywhere else, run on the scripted engine (test_algorithms.py, test_resume.py).
"""

import pytest

from conclip.experiments.inputs import Inputs
from conclip.rollout.session import Runtime
from tests.phases import ALGORITHMS, check_algorithm, check_cut

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_an_algorithm_takes_its_steps_on_the_real_engine(runtime: tuple[Runtime, Inputs], algo: str):
    check_algorithm(runtime, algo)


def test_adapters_are_trained_and_served(runtime: tuple[Runtime, Inputs]):
    """The drift that is checked is that of the merged weights in the engine from base and adapter in the learner."""
    check_algorithm(runtime, "ppo", "model/adapter=lora")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_cut_phase_ends_as_one_that_was_left_alone(runtime: tuple[Runtime, Inputs], algorithm: list[str]):
    check_cut(runtime, algorithm, [2], num_steps=2)
