"""Ten updates on recorded rollouts, in double precision: what a refactor must not change.

    python -m tests.golden.replay         # record anew (after a change of numerics that CHANGELOG.md reports)

`rollouts.json` holds responses of the lab model as tokens, so that nothing here samples. `losses.json` holds the losses of
ten updates with PPO and with GRPO, and the machine that computed them.
"""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import torch

from conclip.cluster.threads import threads
from conclip.config.compose import load_config
from conclip.config.schema import TrainRunConfig
from conclip.grading.grader import Grader
from conclip.lab.arithmetic import generate
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_tokenizer
from conclip.problems.prompts import encode_prompt
from conclip.rollout.collect import PromptSet, collect, group_rollouts, tasks_for
from conclip.rollout.vllm_engine import VllmEngine
from conclip.seeding import torch_stream
from conclip.training.backend import Backend
from conclip.training.batch import TokenBatch, collate
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.training.rewards import reward_group
from conclip.types import Completion, Grade, Outcome, Problem, Rollout, RolloutGroup, SamplingSpec

FOLDER = Path(__file__).parent
NUM_UPDATES = 10
LOSSES = ("policy/loss", "value/loss", "policy/approx_kl", "optim/policy_grad_norm", "optim/critic_grad_norm")


def machine() -> dict[str, Any]:
    """What "bit for bit" depends on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def recorded_batch() -> TokenBatch:
    groups = [
        RolloutGroup(problem=Problem(**group["problem"]), rollouts=tuple(_rollout(group, r) for r in group["rollouts"]))
        for group in json.loads((FOLDER / "rollouts.json").read_text())
    ]
    return collate(groups, train_on_truncated=True)


def _rollout(group: dict[str, Any], recorded: dict[str, Any]) -> Rollout:
    return Rollout(
        problem=Problem(**group["problem"]),
        sample=recorded["sample"],
        prompt_token_ids=tuple(group["prompt_token_ids"]),
        completion=Completion(
            request_id=f"{group['problem']['problem_id']}/{recorded['sample']}",
            token_ids=tuple(recorded["token_ids"]),
            logprobs=tuple(recorded["logprobs"]),
            finish_reason=recorded["finish_reason"],
            policy_version=1,
        ),
        text="",
        grade=Grade(outcome=Outcome(recorded["outcome"]), extracted=None),
        reward=recorded["reward"],
    )


def replay(algo: str) -> list[dict[str, float]]:
    """The losses of ten updates on the recorded rollouts, scored once before the first: the ratio moves away from 1.
    With one thread: sums then have one order."""
    with threads(1):  # also beside an engine in this process
        assert torch.get_num_threads() == 1
        return _replay(algo)


def _replay(algo: str) -> list[dict[str, float]]:
    config = load_config("train-phase2", f"algo={algo}", "algo.updates_per_rollout=1")
    assert isinstance(config, TrainRunConfig)
    learner = Learner(Backend(LAB_MODEL, config, num_updates=NUM_UPDATES), config)
    for module in (learner.backend.models.policy, learner.backend.models.reference, learner.backend.models.critic):
        if module is not None:
            module.double()
    tokens = recorded_batch()
    experience = make_experience(tokens, learner.score(tokens), config.algo, kl_coef=config.algo.kl_coef)
    experience = dataclasses.replace(experience, old_logprobs=learner.logprobs(tokens))
    losses: list[dict[str, float]] = []
    for update in range(NUM_UPDATES):
        random = torch_stream("golden", update)
        stats = learner.update(experience, random, kl_coef=config.algo.kl_coef).stats
        losses.append({name: stats[name] for name in LOSSES if name in stats})
    return losses


def record_rollouts() -> None:
    """Four problems x six responses of the lab model, by the real engine."""
    config = load_config("train-phase2", "rollout.max_tokens=128")
    assert isinstance(config, TrainRunConfig)
    problems = generate("chain", levels=(3, 4, 5, 6), split="train", num_problems=4, seed=0, source="chain")
    tokenizer = load_tokenizer(LAB_MODEL)
    prompts = {problem.problem_id: encode_prompt(tokenizer, problem.question, config.model) for problem in problems}
    engine = VllmEngine(LAB_MODEL, config.rollout, dtype="float32", seed=0, max_model_len=512)
    grader = Grader()
    spec = SamplingSpec(temperature=1.0, max_tokens=config.rollout.max_tokens)
    tasks = tasks_for(problems, PromptSet(token_ids=prompts), 6, ("golden",), spec)
    rollouts = list(collect(tasks, engine=engine, grader=grader, tokenizer=tokenizer))
    grader.close()
    engine.close()
    groups = [reward_group(group, config.reward, None) for group in group_rollouts(rollouts, problems)]
    recorded = [
        {
            "problem": dataclasses.asdict(group.problem),
            "prompt_token_ids": group.rollouts[0].prompt_token_ids,
            "rollouts": [
                {
                    "sample": rollout.sample,
                    "token_ids": rollout.completion.token_ids,
                    "logprobs": rollout.completion.logprobs,
                    "finish_reason": rollout.completion.finish_reason,
                    "outcome": rollout.grade.outcome,
                    "reward": rollout.reward,
                }
                for rollout in group.rollouts
            ],
        }
        for group in groups
    ]
    (FOLDER / "rollouts.json").write_text(json.dumps(recorded) + "\n")


def main() -> None:
    """Sample the rollouts if there are none, then record the losses."""
    if not (FOLDER / "rollouts.json").exists():
        record_rollouts()
    losses = {algo: replay(algo) for algo in ("ppo", "grpo")}
    (FOLDER / "losses.json").write_text(json.dumps({"machine": machine(), "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
