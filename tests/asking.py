"""Requests to an engine, and what came of them."""

import time

from conclip.config.compose import load_config
from conclip.lab.arithmetic import generate
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_tokenizer
from conclip.problems.prompts import encode_prompt
from conclip.rollout.child import ChildEngine
from conclip.rollout.collect import PromptSet, tasks_for
from conclip.rollout.engine import RolloutEngine
from conclip.types import Completion, Request, SamplingSpec

PROBLEMS = generate("chain", levels=(2, 4, 6), split="test", num_problems=12, seed=0, source="chain")
TOKENIZER = load_tokenizer(LAB_MODEL)
MODEL = load_config("eval").model
PROMPTS = PromptSet(token_ids={p.problem_id: encode_prompt(TOKENIZER, p.question, MODEL) for p in PROBLEMS})
SPEC = SamplingSpec(temperature=1.0, max_tokens=200)


def requests(num_samples: int = 2) -> list[Request]:
    tasks = tasks_for(PROBLEMS, PROMPTS, num_samples, ("test",), SPEC)
    return [Request(request_id=t.key, prompt_token_ids=t.prompt_token_ids, seed=t.seed) for t in tasks]


def run(engine: RolloutEngine, spec: SamplingSpec = SPEC, wanted: list[Request] | None = None) -> dict[str, Completion]:
    """One unit of work, from a cold cache."""
    engine.reset_cache()
    wanted = wanted or requests()
    engine.submit(wanted, spec)
    done: dict[str, Completion] = {}
    deadline = time.monotonic() + 240
    while len(done) < len(wanted):
        assert time.monotonic() < deadline, f"{len(done)} of {len(wanted)} completions"
        done |= {completion.request_id: completion for completion in engine.poll()}
    return done


def tokens(completions: dict[str, Completion]) -> dict[str, tuple[int, ...]]:
    return {key: completion.token_ids for key, completion in completions.items()}


def killed_amid(child: ChildEngine, wanted: list[Request]) -> dict[str, Completion]:
    """`run`, its process killed when some responses are delivered and others are not; none may come twice."""
    child.reset_cache()
    child.submit(wanted, SPEC)
    delivered: list[Completion] = []
    killed, deadline = False, time.monotonic() + 240
    while len({completion.request_id for completion in delivered}) < len(wanted):
        assert time.monotonic() < deadline, f"{len(delivered)} of {len(wanted)} completions"
        delivered += child.poll()
        if delivered and not killed:
            child._process.kill()
            killed = True
    assert len(delivered) == len(wanted)
    return {completion.request_id: completion for completion in delivered}
