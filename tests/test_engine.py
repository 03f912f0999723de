"""The rollout engine, real: vLLM in this process and in a child, on the lab model."""

import dataclasses
import json
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import ties
from conclip.config.compose import load_config
from conclip.config.machine import check_repeats
from conclip.config.schema import TrainRunConfig
from conclip.errors import UserError
from conclip.grading.grader import Grader
from conclip.models.architectures import registered
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_policy
from conclip.rollout.child import ChildEngine
from conclip.rollout.collect import collect, group_rollouts, tasks_for
from conclip.rollout.engine import RolloutEngine
from conclip.rollout.platform import check_platform
from conclip.rollout.pool import EnginePool
from conclip.rollout.vllm_engine import VllmEngine, engine_settings
from conclip.training.backend import Backend
from conclip.training.batch import collate
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.training.monitors import experience_metrics
from conclip.types import Grade, Outcome, Rollout, RolloutGroup
from tests.asking import PROBLEMS, PROMPTS, SPEC, TOKENIZER, killed_amid, requests, run, tokens
from tests.engines import ROLLOUT, SETTINGS, Engines

pytestmark = pytest.mark.engine

TRAINING = load_config("train-phase2")
assert isinstance(TRAINING, TrainRunConfig)


@pytest.fixture
def engine(engines: Engines) -> RolloutEngine:
    """With the lab's weights."""
    return engines.lend(LAB_MODEL)


def test_the_same_seeds_give_the_same_tokens_whatever_the_global_random_state(engine: RolloutEngine):
    first = run(engine)
    torch.manual_seed(1234)
    assert run(engine) == first
    samples = [first[f"{p.problem_id}/{s}"].token_ids for p in PROBLEMS for s in range(2)]
    assert len(set(samples)) > len(PROBLEMS)  # samples of one problem differ


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_engine_logprobs_are_the_trainers(engine: RolloutEngine, temperature: float):
    policy = load_policy(LAB_MODEL, torch.device("cpu"))
    worst = 0.0
    for completion in list(run(engine, dataclasses.replace(SPEC, temperature=temperature)).values())[:8]:
        prompt = PROMPTS.token_ids[completion.request_id.rsplit("/", 1)[0]]
        ids = torch.tensor([*prompt, *completion.token_ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(policy(input_ids=ids[None]).logits[0] / temperature, -1)
        chosen = logprobs[:-1].gather(-1, ids[1:, None])[len(prompt) - 1 :, 0]
        worst = max(worst, float((chosen - torch.tensor(completion.logprobs)).abs().max()))
    assert worst < 1e-4


def test_completions_end_with_the_end_token_or_at_the_limit(engine: RolloutEngine):
    end = TOKENIZER.eos_token_id
    for completion in run(engine, dataclasses.replace(SPEC, max_tokens=30)).values():
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] == end and end not in completion.token_ids[:-1]
        else:
            assert completion.finish_reason == "length"
            assert completion.num_tokens == 30 and end not in completion.token_ids
        assert len(completion.logprobs) == completion.num_tokens
        assert all(math.isfinite(value) and value <= 0 for value in completion.logprobs)


def test_the_tokenizers_end_token_ends_a_response_whatever_the_configs_say(tmp_path: Path):
    from conclip.rollout.vllm_engine import stop_token_ids

    shutil.copytree(LAB_MODEL, tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((tmp_path / "model" / name).read_text())
        (tmp_path / "model" / name).write_text(json.dumps(settings | {"eos_token_id": 9}))
    assert stop_token_ids(tmp_path / "model") == tuple(sorted((9, TOKENIZER.eos_token_id)))
    user, end = TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    assert stop_token_ids(tmp_path / "model", ["<|user|>"]) == tuple(sorted((9, user, end)))


@pytest.mark.parametrize(("behind", "known"), [("<|user|>", False), ("<|user|><|end|>", True)])
def test_the_chat_templates_end_of_a_turn_ends_a_response_that_nothing_else_ends(tmp_path: Path, behind: str, known: bool):
    from conclip.rollout.vllm_engine import stop_token_ids

    shutil.copytree(LAB_MODEL, tmp_path / "model")
    template = "{% for message in messages %}{{ message.content }}" + behind + "{% endfor %}"
    (tmp_path / "model/chat_template.jinja").write_text(template)
    user, end = TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    assert stop_token_ids(tmp_path / "model") == ((end,) if known else tuple(sorted((user, end))))


def test_greedy_sampling_repeats(engine: RolloutEngine):
    spec = dataclasses.replace(SPEC, temperature=0.0, logprobs=False)
    done = run(engine, spec)
    for problem in PROBLEMS:
        assert done[f"{problem.problem_id}/0"].token_ids == done[f"{problem.problem_id}/1"].token_ids
        assert done[f"{problem.problem_id}/0"].logprobs == ()


def test_the_table_of_architectures_is_what_vllm_goes_by():
    from vllm.model_executor.models.registry import ModelRegistry

    modules, dropped = registered()
    used = {name: str(getattr(model, "module_name", "")) for name, model in ModelRegistry.models.items()}
    assert all(used[name] == module or used[name].endswith(f".{module}") for name, module in modules.items())
    by_transformers = {name for name, module in used.items() if module.endswith(".transformers")}
    assert all(name.startswith("Transformers") for name in by_transformers - set(modules))
    assert dropped and not dropped.keys() & used.keys()


def test_weights_can_be_replaced_and_put_back(engine: RolloutEngine, random_model: Path):
    before = run(engine)
    version = engine.policy_version
    engine.update_weights(load_policy(random_model, torch.device("cpu")).state_dict().items(), version + 1)
    changed = run(engine)
    assert {c.policy_version for c in changed.values()} == {version + 1}
    assert all(changed[key].token_ids != before[key].token_ids for key in before)
    engine.update_weights(LAB_MODEL, version + 2)
    assert {key: c.token_ids for key, c in run(engine).items()} == {key: c.token_ids for key, c in before.items()}


def test_a_stale_engine_shows_as_drift(engine: RolloutEngine):
    """The engine keeps the old weights under the new version, as if an update had been lost: the version check is blind to
    it, the drift monitor is not, even if a single small matrix differs."""
    policy = load_policy(LAB_MODEL, torch.device("cpu"))
    learner = Learner(Backend(LAB_MODEL, TRAINING, num_updates=1), TRAINING)

    def drift() -> float:
        completions = run(engine)
        rollouts = [
            Rollout(
                problem=problem,
                sample=sample,
                prompt_token_ids=PROMPTS.token_ids[problem.problem_id],
                completion=completions[f"{problem.problem_id}/{sample}"],
                text="",
                grade=Grade(outcome=Outcome.CORRECT, extracted=None),
                reward=1.0,
            )
            for problem in PROBLEMS
            for sample in range(2)
        ]
        groups = [RolloutGroup(problem=r.problem, rollouts=(r,)) for r in rollouts]
        tokens = collate(groups, train_on_truncated=True)
        experience = make_experience(tokens, learner.score(tokens), TRAINING.algo, kl_coef=0.0)
        return experience_metrics(experience)["policy/sampler_drift_max"]

    assert drift() < 1e-4
    stale = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    stale["model.layers.1.mlp.down_proj.weight"] *= 1.01
    engine.update_weights(stale.items(), engine.policy_version + 1)
    assert drift() > 1e-3
    engine.update_weights(LAB_MODEL, engine.policy_version + 1)
    assert drift() < 1e-4


def test_weights_may_not_change_while_sampling(engine: RolloutEngine):
    engine.submit(requests(), SPEC)
    with pytest.raises(RuntimeError, match="while responses are being sampled"):
        engine.update_weights(LAB_MODEL, 99)
    engine.abort()
    assert engine.poll() == []


def test_abort_leaves_the_engine_usable(engine: RolloutEngine):
    reference = run(engine)
    engine.submit(requests(), SPEC)
    engine.poll()
    engine.abort()
    assert run(engine) == reference


def test_collect_grades_everything_in_a_stable_order(engine: RolloutEngine):
    grader = Grader()
    seen: list[int] = []
    try:
        tasks = tasks_for(PROBLEMS, PROMPTS, 3, ("test",), SPEC)
        rollouts = list(
            collect(
                tasks,
                engine=engine,
                grader=grader,
                tokenizer=TOKENIZER,
                on_progress=lambda progress: seen.append(progress.num_finished),
            )
        )
    finally:
        grader.close()
    groups = group_rollouts(rollouts, PROBLEMS)
    assert [group.problem for group in groups] == PROBLEMS
    assert all([r.sample for r in group.rollouts] == [0, 1, 2] for group in groups)
    assert seen[-1] == 36
    assert sum(group.pass_rate or 0 for group in groups) / len(groups) > 0.4  # the lab model solves many of these
    first = groups[0].rollouts[0]
    assert first.text.endswith("}") and "<|" not in first.text


def test_a_child_process_gives_the_same_tokens_even_when_it_is_killed(engine: RolloutEngine, random_model: Path):
    """What the child does when it dies is tested with an engine that starts sooner, in test_child.py."""
    here = run(engine)
    engine.update_weights(random_model, engine.policy_version + 1)
    updated = run(engine)
    said: list[str] = []
    child = ChildEngine(LAB_MODEL, ROLLOUT, warn=said.append, **SETTINGS)
    try:
        assert tokens(run(child)) == tokens(here)
        child.update_weights(random_model, 5)
        again = killed_amid(child, requests())
        assert tokens(again) == tokens(updated) and {completion.policy_version for completion in again.values()} == {5}
        assert len(said) == 1 and "started again" in said[0]
    finally:
        child.close()
    assert not child._process.is_alive()


def test_an_adapter_is_served_beside_its_base(engines: Engines):
    """In fp32 here, where the engine's and the learner's log-probs can be compared closely."""
    engines.close()
    config = load_config("train-phase2", "model/adapter=lora", "model.adapter.rank=3", "model.adapter.serving=apart")
    assert isinstance(config, TrainRunConfig)
    backend = Backend(LAB_MODEL, config, num_updates=10)
    wanted = requests(num_samples=1)

    def worst(engine: RolloutEngine) -> float:
        groups = group_rollouts(
            [
                Rollout(
                    problem=problem,
                    sample=0,
                    prompt_token_ids=PROMPTS.token_ids[problem.problem_id],
                    completion=completions[f"{problem.problem_id}/0"],
                    text="",
                    grade=Grade(outcome=Outcome.WRONG, extracted=None),
                    reward=0.0,
                )
                for completions in [run(engine, wanted=wanted)]
                for problem in PROBLEMS
            ],
            PROBLEMS,
        )
        tokens = collate(groups, train_on_truncated=True)
        with torch.no_grad():
            logprobs, _ = backend.logprobs(tokens)
        return float(((logprobs - tokens.sampler_logprobs) * tokens.response_mask).abs().max())

    engine = VllmEngine(LAB_MODEL, ROLLOUT, **SETTINGS, adapter=config.model.adapter)
    try:
        plain = run(engine, wanted=wanted)
        assert worst(engine) < 1e-4  # a new adapter changes nothing
        for version in (1, 2):
            for name, parameter in backend.models.trained["policy"].named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(version))
            assert worst(engine) > 0.05  # the engine has the old one
            backend.models.push(engine, version)
            assert engine.policy_version == version
            assert worst(engine) < 1e-4
        engine.update_weights(LAB_MODEL, 3)
        assert tokens(run(engine, wanted=wanted)) == tokens(plain)
    finally:
        engine.close()


@pytest.mark.xdist_group("several processes")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_an_engine_over_two_processes_gets_its_weights(random_model: Path, monkeypatch: pytest.MonkeyPatch):
    """`tensor_parallel_size`, on CPUs: a worker process on each of two, and a child process around them."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{first}|{second}")
    pool = EnginePool(LAB_MODEL, dataclasses.replace(ROLLOUT, tensor_parallel_size=2), **SETTINGS)
    try:
        wanted = requests(num_samples=1)
        began = tokens(run(pool, wanted=wanted))
        pool.update_weights(load_policy(random_model, torch.device("cpu")).state_dict().items(), 1)
        assert tokens(run(pool, wanted=wanted)) != began
        pool.update_weights(LAB_MODEL, 2)
        assert tokens(run(pool, wanted=wanted)) == began
    finally:
        pool.close()


def test_what_vllm_refuses_is_bad_input_and_leaves_nothing_behind(engines: Engines):
    from vllm.distributed import model_parallel_is_initialized

    from conclip.rollout.vllm_engine import VllmEngine

    engines.close()
    with pytest.raises(UserError, match="vLLM refuses"):
        VllmEngine(LAB_MODEL, dataclasses.replace(ROLLOUT, kv_cache_gib=1e-6), **SETTINGS)
    # Groups of a dense model that was refused would be those of a mixture of experts that is started next, which needs more.
    assert not model_parallel_is_initialized() and not torch.distributed.is_initialized()


def test_engine_tests_share_one_process(request: pytest.FixtureRequest):
    grouped = os.environ.get("PYTEST_XDIST_WORKER") is None or request.node.nodeid.endswith("@engine")
    assert grouped, "pytest-xdist does not see its groups: each process would start an engine of its own"


def test_engine_and_learner_have_the_same_kind_of_device():
    for together in (True, False):
        check_platform(engine_on_cpu=together, learner_on_gpu=not together)
    with pytest.raises(UserError, match="make install ENGINE=cuda"):
        check_platform(engine_on_cpu=True, learner_on_gpu=True)
    with pytest.raises(UserError, match=r"torch sees no GPU.*ENGINE=cpu"):
        check_platform(engine_on_cpu=False, learner_on_gpu=False)


@pytest.mark.parametrize(("capability", "good"), [(8.0, False), (8.9, False), (9.0, True), (12.0, True)])
def test_kernels_that_repeat_need_a_gpu_that_has_them(capability: float, good: bool):
    with nullcontext() if good else pytest.raises(UserError, match=r"rollout\.deterministic: it needs a GPU of compute"):
        check_repeats(capability)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_vllm_knows_the_settings_of_either_platform(on_cpu: bool):
    from vllm import EngineArgs

    settings = engine_settings(load_config("eval").rollout, max_model_len=9_000, on_cpu=on_cpu)
    assert settings.keys() <= {field.name for field in dataclasses.fields(EngineArgs)}
    assert settings["load_format"] == "safetensors" and settings["enable_prefix_caching"]
    assert settings.get("block_size", 0) <= 32  # prompts are shared in whole blocks only
    sleeps, one_step = "enable_sleep_mode" in settings, settings["max_num_batched_tokens"] >= 9_000
    assert (sleeps, one_step) == (not on_cpu, on_cpu)  # a CPU has nothing to give back, and holds a prompt in one step


def test_two_engines_give_the_tokens_of_one(engine: RolloutEngine, random_model: Path):
    """Where candidates are not tied; what else was in a batch changes the last digits of a log-prob."""
    here = run(engine)
    pool = EnginePool(LAB_MODEL, dataclasses.replace(ROLLOUT, num_engines=2), **SETTINGS)
    try:
        assert tokens(run(pool)) == tokens(here)
        pool.update_weights(load_policy(random_model, torch.device("cpu")).state_dict().items(), 5)
        assert {completion.policy_version for completion in run(pool).values()} == {5}
    finally:
        pool.close()


def test_a_difference_counts_as_a_tie_only_where_candidates_were_tied(engine: RolloutEngine):
    wanted = requests()
    here = run(engine)
    altered = dict(here)
    key, completion = next(iter(here.items()))
    other = (completion.token_ids[0] + 1, *completion.token_ids[1:])
    altered[key] = dataclasses.replace(completion, token_ids=other)
    same, differing = ties.compared(wanted, here, here, SPEC), ties.compared(wanted, here, altered, SPEC)
    assert (same.num_differ, same.widest_gap, same.checked) == (0, 0.0, 1.0)
    assert differing.num_differ == 1 and differing.widest_gap > 0.1
    assert differing.num_tokens == sum(len(ids) for ids in tokens(here).values())
