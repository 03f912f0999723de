"""Servers of other makes: what they answer, judged as the same response is in process."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from conclip.errors import UserError
from conclip.grading.grader import Grader
from conclip.grading.thinking import PLAIN, Thinking
from conclip.models.server import is_vllm, render_by_server
from conclip.rollout.collect import PromptSet, collect, tasks_for
from conclip.rollout.endpoint import EndpointEngine
from conclip.types import Outcome, Problem, Rollout, SamplingSpec
from tests.answering import Answering, choice, completion, listening

SPEC = SamplingSpec(temperature=0.0, max_tokens=50, logprobs=False)


class Scripted(Answering):
    """Answers each question with what is written for it: the choices in turn, the last one again and again."""

    written: ClassVar[dict[str, list[dict[str, Any]]]] = {}
    bodies: ClassVar[list[dict[str, Any]]] = []
    prompt: ClassVar[str | None] = None
    """What it says a chat looks like; None: it cannot say."""
    served = "m"

    def do_POST(self) -> None:
        body = json.loads(self.body())
        Scripted.bodies.append(body | {"path": self.path})
        if not self.path.endswith("/chat/completions"):
            return self.send_json({"tokens": [1, 2], "prompt": Scripted.prompt}, 200 if Scripted.prompt else 404)
        choices = Scripted.written[body["messages"][-1]["content"]]
        self.send_json(completion(choices.pop(0) if len(choices) > 1 else choices[0]))


@pytest.fixture
def url() -> Iterator[str]:
    Scripted.written, Scripted.bodies, Scripted.prompt, Scripted.owner = {}, [], None, "vllm"
    with listening(Scripted) as (_, address):
        yield address


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader()
    yield grader
    grader.close()


@contextmanager
def engine_of(url: str, **settings: Any) -> Iterator[EndpointEngine]:
    engine = EndpointEngine(url, "m", max_concurrent=4, **settings)
    try:
        yield engine
    finally:
        engine.close()


def asked(
    url: str,
    grader: Grader,
    written: Mapping[str, dict[str, Any] | list[dict[str, Any]]],
    thinking: Thinking = PLAIN,
    spec: SamplingSpec = SPEC,
    template_kwargs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Rollout]:
    """By question; each one's answer is 9."""
    Scripted.written = {name: list(said) if isinstance(said, list) else [said] for name, said in written.items()}
    problems = [Problem(problem_id=name, question=name, answer="9", source="s") for name in written]
    messages = {name: (("user", name),) for name in written}
    prompts = PromptSet(messages=messages, template_kwargs=template_kwargs or {}, thinking=thinking)
    tasks = tasks_for(problems, prompts, 1, (), spec)
    with engine_of(url, **settings) as engine:
        found = {r.problem.problem_id: r for r in collect(tasks, engine=engine, grader=grader, tokenizer=None)}
    return {name: found[name] for name in written}


def test_options_tolerance_and_further_golds_reach_the_grader(url: str, grader: Grader):
    plain = {"question": "q", "source": "s"}
    problems = [
        Problem(problem_id="an option", answer="B", choices=("seven", "nine"), **plain),
        Problem(problem_id="near enough", answer="9.004", tolerance=0.01, **plain),
        Problem(problem_id="another gold", answer="7", alternatives=("9",), **plain),
    ]
    messages = {problem.problem_id: (("user", problem.problem_id),) for problem in problems}
    tasks = tasks_for(problems, PromptSet(messages=messages, template_kwargs={}, thinking=PLAIN), 1, (), SPEC)
    Scripted.written = {"an option": [choice(r"\boxed{nine}")]} | {p.problem_id: [choice(BOX)] for p in problems[1:]}
    with engine_of(url) as engine:
        found = {r.problem.problem_id: r for r in collect(tasks, engine=engine, grader=grader, tokenizer=None)}
    assert set(outcomes(found).values()) == {Outcome.CORRECT}, outcomes(found)


def outcomes(rollouts: Mapping[str, Rollout]) -> dict[str, Outcome]:
    return {name: rollout.grade.outcome for name, rollout in rollouts.items()}


BOX = r"It is \boxed{9}."


def test_reasoning_that_a_server_takes_out_is_kept_and_is_no_answer(url: str, grader: Grader):
    rollouts = asked(
        url,
        grader,
        {
            "older field": choice(BOX, reasoning_content=r"\boxed{7}?"),
            "newer field": choice(BOX, reasoning=r"\boxed{7}?"),
            "parts": choice(
                [{"type": "thinking", "thinking": [{"type": "text", "text": r"\boxed{7}?"}]}, {"type": "text", "text": BOX}]
            ),
            "no box behind": choice("I am lost.", reasoning=BOX),
            "nothing behind": choice(None, reasoning=BOX),
            "cut while thinking": choice(None, "length", reasoning=BOX),
        },
    )
    right, none = Outcome.CORRECT, Outcome.NO_ANSWER
    assert list(outcomes(rollouts).values()) == [right, right, right, none, none, Outcome.TRUNCATED]
    reasons = [rollout.completion.reasoning for rollout in rollouts.values()]
    assert reasons == [r"\boxed{7}?"] * 3 + [BOX] * 3
    assert [rollout.text for rollout in rollouts.values()] == [BOX] * 3 + ["I am lost.", "", ""]
    assert all(rollout.completion.num_tokens == 7 for rollout in rollouts.values())
    assert all(rollout.grade.lenient_outcome is not Outcome.CORRECT for name, rollout in rollouts.items() if "ing" in name)


@pytest.mark.parametrize("opened", [False, True])
def test_reasoning_that_a_server_leaves_in_is_no_answer(url: str, grader: Grader, opened: bool):
    begin = "" if opened else "<think>"
    rollouts = asked(
        url,
        grader,
        {
            "box behind": choice(rf"{begin}\boxed{{7}}?</think>{BOX}"),
            "no box behind": choice(f"{begin}{BOX}</think>I am lost."),
            "never closed": choice(f"{begin}{BOX}"),
            "cut while thinking": choice(f"{begin}{BOX}", "length"),
        },
        Thinking(opened=opened),
    )
    none = Outcome.NO_ANSWER
    assert list(outcomes(rollouts).values()) == [Outcome.CORRECT, none, none, Outcome.TRUNCATED]
    assert all(rollout.completion.reasoning is None for rollout in rollouts.values())
    lenient = [rollout.grade.lenient_outcome for rollout in rollouts.values()]
    assert lenient == list(outcomes(rollouts).values())


def test_what_a_filter_withholds_is_not_judged_and_what_is_dropped_is_asked_again(url: str, grader: Grader):
    rollouts = asked(
        url,
        grader,
        {
            "withheld": choice(BOX, "content_filter"),
            "dropped once": [choice("", "abort"), choice(BOX)],
            "a tool called": choice(None, "tool_calls"),
            "no reason": choice(BOX, None),
        },
    )
    assert list(outcomes(rollouts).values()) == [Outcome.TRUNCATED, Outcome.CORRECT, Outcome.NO_ANSWER, Outcome.CORRECT]
    ends = [rollout.completion.finish_reason for rollout in rollouts.values()]
    assert ends == ["content_filter", "stop", "stop", "stop"]
    with pytest.raises(UserError, match=r"refuses 1 requests .*dropped 3 times"):
        asked(url, grader, {"always dropped": choice(BOX, "abort"), "another": choice(BOX)})


def test_what_a_request_adds_to_the_protocol_goes_beside_it(url: str, grader: Grader):
    asked(url, grader, {"q": choice(BOX)})
    kwargs = {"enable_thinking": False, "budget": {"tokens": 5}}
    spec = SamplingSpec(temperature=0.0, max_tokens=50, top_k=3, thinking_budget=0, logprobs=False)
    asked(url, grader, {"q": choice(BOX)}, spec=spec, template_kwargs=kwargs, keep_special_tokens=True)
    plain, full = Scripted.bodies
    added = {"chat_template_kwargs": kwargs, "thinking_token_budget": 0, "top_k": 3, "skip_special_tokens": False}
    assert {name: full.get(name) for name in added} == added
    assert not set(added) & set(plain)
    asked(url, grader, {"q": choice(BOX)}, is_vllm=True)
    asked(url, grader, {"q": choice(BOX)}, spec=spec, is_vllm=True)
    stated = [{name: body[name] for name in ("top_k", "min_p", "repetition_penalty")} for body in Scripted.bodies[2:]]
    whole = {"min_p": 0.0, "repetition_penalty": 1.0}  # what vLLM's server would take from the model's folder
    assert stated == [{"top_k": -1} | whole, {"top_k": 3} | whole]


def test_a_server_is_asked_what_a_chat_looks_like(url: str):
    chat = (("user", "q"),)
    assert render_by_server(url, "m", chat, {}) is None  # it knows no such address
    Scripted.prompt = "<|user|>q<think>"
    assert render_by_server(url, "m", chat, {"a": 1}) == "<|user|>q<think>"
    first, second = Scripted.bodies[-2:]
    assert first["path"] == "/tokenize" and first["chat_template_kwargs"] == {"a": 1} and first["add_generation_prompt"]
    assert second["path"] == "/detokenize" and second["tokens"] == [1, 2]
    assert is_vllm(url)
    with pytest.raises(UserError, match="does not answer"):
        is_vllm("http://127.0.0.1:9/v1")
    Scripted.owner = "somebody"
    assert not is_vllm(url)
    assert render_by_server("http://127.0.0.1:9/v1", "m", chat, {}) is None
