"""Bad input of every kind ends in one line that names the culprit and the remedy, code 2, at once, with nothing written."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from conclip.cli.main import main
from conclip.curriculum.pass_rates import SCHEMA_VERSION, Band, pass_rates
from conclip.evaluation.rows import to_dict
from conclip.models.folder import LAB_MODEL
from conclip.types import Outcome
from tests.conftest import make_row
from tests.made_runs import made_run

LIMIT_S = 5.0

GOOD = '{"question": "1+1", "answer": "2"}\n'
ROW = {"gold": "1", "response": "1"}
(_RATE,) = pass_rates([make_row("p", Outcome.CORRECT, 9)], Band(low=0.2, high=0.8), model_hash="m", sampling_hash="s")
RATE = json.dumps({"schema": SCHEMA_VERSION, **asdict(_RATE)})


@dataclass(frozen=True)
class Place:
    """Where a case puts what it needs, beside the folder in which the command runs."""

    folder: Path

    def file(self, content: str | bytes, name: str = "data.jsonl") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def model(self, *, without: str = "", **changes: object) -> Path:
        """The lab's model as a folder of one's own, some files left out, some keys of config.json changed."""
        folder = self.folder / "model"
        shutil.copytree(LAB_MODEL, folder)
        for path in folder.glob(without) if without else []:
            path.unlink()
        if changes:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    def trained(self, record: str) -> Path:
        folder = self.model()
        (folder / "trained_on.json").write_text(record)
        return folder


Arguments = Callable[[Place], list[str]]


def of(*arguments: str) -> Arguments:
    return lambda place: list(arguments)


def data(content: str | bytes, *more: str, name: str = "data.jsonl") -> Arguments:
    return lambda place: ["eval", "data=mine", f"data.test.mine.path={place.file(content, name)}", *more]


def model(*, without: str = "", subcommand: str = "eval", **changes: object) -> Arguments:
    return lambda place: [subcommand, f"model.path={place.model(without=without, **changes)}"]


def weights(content: bytes | None, name: str = "model.safetensors") -> Arguments:
    def make(place: Place) -> list[str]:
        folder = place.model()
        (folder / name).write_bytes((folder / name).read_bytes()[:-100] if content is None else content)
        return ["eval", f"model.path={folder}"]

    return make


def changed(name: str, content: str | None) -> Arguments:
    """The lab's model with another file of that name; None: its config with a word for a number."""

    def make(place: Place) -> list[str]:
        folder = place.model(hidden_size="wide") if content is None else place.model()
        if content is not None:
            (folder / name).write_text(content)
        return ["eval", f"model.path={folder}"]

    return make


def sharded(place: Place) -> list[str]:
    folder = place.model(without="*.safetensors")
    save_file({"a": np.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["eval", f"model.path={folder}"]


def parquet(place: Place) -> Path:
    """A text column that is not UTF-8."""
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"question": column, "answer": ["1"]}), place.folder / "data.parquet")
    return place.folder / "data.parquet"


def rates(content: str) -> Arguments:
    return lambda place: ["train-phase2", f"pass_rates={place.file(content)}"]


def made(place: Place) -> Path:
    return made_run(place.folder / "made" / "attempt-001")


def copied_latest(place: Place) -> list[str]:
    """Outputs that were copied with their links followed."""
    (place.folder / "outputs" / "eval" / "x" / "latest").mkdir(parents=True)
    return [f"paths.outputs={place.folder / 'outputs'}", "name=x"]


def graded(content: str, *more: str) -> Arguments:
    return lambda place: ["grade", str(place.file(content)), "out.jsonl", *more]


def compared(content: str) -> Arguments:
    return lambda place: ["compare", str(place.file(content)), str(place.file(content))]


def counted(number: str) -> str:
    """An evaluation row with a number of tokens as JSON may give it."""
    row = to_dict(make_row("p", Outcome.CORRECT, 7))
    return json.dumps(row).replace('"num_tokens": 7', f'"num_tokens": {number}') + "\n"


def packed(place: Place) -> list[str]:
    return [
        "eval",
        "data=mine",
        f"data.test.mine.path={place.file(GOOD).parent}",
        f"name={place.file(b'', 'b.jsonl.gz').stem}",
    ]


def same_everywhere(place: Place) -> list[str]:
    path = place.file(GOOD)
    return ["two-phase", "data=mine", *(f"data.{name}.mine.path={path}" for name in ("pool", "validation", "test"))]


def ids_of_two_lists(place: Place) -> list[str]:
    """Each file numbers its own rows."""
    lists = {name: f'{{"question": "{n}+1", "answer": "2", "id": 0}}\n' for n, name in enumerate(("pool", "validation"))}
    files = {name: place.file(content, f"{name}.jsonl") for name, content in lists.items()}
    columns = (f"data.{name}.mine.{key}" for name, path in files.items() for key in (f"path={path}", "problem_id=id"))
    return ["train-phase2", "data=mine", *columns]


def trained_on_the_test(place: Place) -> list[str]:
    folder = place.trained(json.dumps({"schema": 1, "questions": ["1+1"]}))
    return ["eval", "data=mine", f"data.test.mine.path={place.file(GOOD)}", f"checkpoints={{mine: {folder}}}"]


CASES: dict[str, tuple[Arguments, tuple[str, ...]]] = {
    # the command line
    "subcommand": (of("train"), ("'train'", "train-phase1")),
    "flag": (of("eval", "--fast"), ("--fast", "--help")),
    "flag of grade": (of("grade", "in", "out", "--fast"), ("--fast", "conclip grade --help")),
    "grade without files": (of("grade"), ("IN", "--help")),
    "compare with one side": (of("compare", "a"), ("SECOND", "--help")),
    "doctor of nothing": (of("doctor", "trian"), ("trian", "train-phase2")),
    "compare with an option in between": (of("compare", "a", "--margin", "0.05", "b"), ("no file or folder 'a'",)),
    "compare with a bad margin": (of("compare", "a", "b", "--margin", "wide"), ("wide", "--help")),
    "report of nothing": (lambda p: ["report", str(p.folder)], ("no run folder",)),
    "no override": (of("eval", "temperature 1"), ("temperature 1", "key=value")),
    "override without a key": (of("eval", "=1"), ("override",)),
    "brackets": (of("eval", "eval.temperatures=[0"), ("override",)),
    "several values": (of("eval", "eval.top_p=0.5,1.0"), ("eval.top_p", "-m")),
    "one bad value of a sweep": (of("eval", "-m", "eval.top_p=0.5,2"), ("eval.top_p",)),
    # keys, groups and values
    "key": (of("train-phase2", "algo.gae_lamda=1"), ("did you mean 'algo.gae_lambda'",)),
    "key of another subcommand": (of("eval", "phase.num_steps=1"), ("phase.num_steps",)),
    "old key": (of("eval", "eval.temperature=1"), ("eval.temperatures",)),
    "key added": (of("eval", "+eval.speed=1"), ("eval.speed",)),
    "group": (of("eval", "modle=hf"), ("modle",)),
    "option": (of("train-phase2", "algo=ppi"), ("ppi", "ppo")),
    "type": (of("train-phase2", "algo.gamma=high"), ("algo.gamma", "high")),
    "number for a list": (of("eval", "eval.temperatures=1"), ("eval.temperatures",)),
    "list for a number": (of("eval", "seed=[1]"), ("seed",)),
    "fraction for a count": (of("train-phase2", "phase.num_steps=1.5"), ("phase.num_steps", "1.5")),
    "null": (of("eval", "seed=null"), ("seed",)),
    "choice": (of("eval", "model.dtype=float64"), ("model.dtype", "bfloat16")),
    "missing value": (of("eval", "model=hf"), ("model.path",)),
    "interpolation": (of("eval", "name=${nowhere}"), ("name", "nowhere")),
    "name with a slash": (of("eval", "name=a/b"), ("name", "folder name")),
    "name of dots": (of("eval", "name=.."), ("name", "folder name")),
    "name too long": (of("eval", f"name={'n' * 300}"), ("name", "folder name")),
    "seed": (of("eval", "seed=-1"), ("seed", "[0, 2^31)")),
    "not a number": (of("train-phase2", "optim.policy_lr=nan"), ("optim.policy_lr",)),
    "infinity": (of("train-phase2", "optim.policy_lr=inf"), ("optim.policy_lr",)),
    "negative": (of("train-phase2", "phase.group_size=-2"), ("phase.group_size",)),
    "range": (of("train-phase2", "algo.gae_lambda=1.5"), ("algo.gae_lambda",)),
    "empty list": (of("eval", "eval.temperatures=[]"), ("eval.temperatures",)),
    "value twice": (of("eval", "eval.temperatures=[1,1]"), ("eval.temperatures", "twice")),
    "prompt without a place": (of("eval", "model.prompt=hello"), ("model.prompt", "{question}")),
    "instructions for the lab": (of("eval", "eval.prompts=[concise]"), ("eval.prompts", "lab")),
    "budget for a model that does not think": (
        of("eval", "eval.thinking_budgets=[9]"),
        ("thinking_budgets", "thinking_tags"),
    ),
    "budget with tags that are no tokens": (
        of("eval", "eval.thinking_budgets=[9]", 'model.thinking_tags=["<t>","</t>"]'),
        ("eval.thinking_budgets", "'<t>'", "not one token"),
    ),
    "argument the template never reads": (of("eval", "model.chat_template_kwargs.think=true"), ("reads no 'think'",)),
    "arguments by the name of training's own": (
        of("two-phase", "eval.template_kwargs={default: {b: 1}}"),
        ("is how training",),
    ),
    "argument of a column": (of("eval", "eval.template_kwargs={a: {b: 1}}"), ("eval.template_kwargs.a", "reads no 'b'")),
    "stop token that is none": (of("probe", 'model.stop_tokens=["<|over|>"]'), ("model.stop_tokens", "'<|over|>'")),
    "band upside down": (of("probe", "phase.pass_rate_low=0.9", "phase.pass_rate_high=0.1"), ("pass_rate",)),
    "more than there are": (of("train-phase2", "phase.problems_per_step=100"), ("problems_per_step",)),
    "rewards upside down": (of("train-phase2", "reward.wrong=2"), ("reward.correct",)),
    "groups of one": (of("train-phase2", "algo=grpo", "phase.group_size=1"), ("group_size",)),
    "settings that exclude": (of("train-phase2", "algo=dapo", "phase.refresh=true"), ("phase.refresh",)),
    "training behind a server": (of("probe", "model=endpoint", "model.url=http://localhost:9/v1"), ("model.url",)),
    "server with a key": (of("eval", "model=endpoint", "model.url=http://me:secret@localhost/v1"), ("OPENAI_API_KEY",)),
    "server without http": (of("eval", "model=endpoint", "model.url=localhost"), ("model.url", "http://")),
    "server that is not there": (of("eval", "model=endpoint", "model.url=http://127.0.0.1:9/v1"), ("127.0.0.1:9", "/v1")),
    "server with a bad port": (of("eval", "model=endpoint", "model.url=http://localhost:80a0/v1"), ("80a0", "/v1")),
    "server with half an address": (of("eval", "model=endpoint", "'model.url=http://[::1/v1'"), ("model.url",)),
    "nobody's home": (of("eval", "model.path='~nobody-here/x'"), ("~nobody-here/x", "home")),
    "outputs in nobody's home": (of("eval", "debug=eval", "paths.outputs='~nobody-here'"), ("~nobody-here", "home")),
    # problems
    "no problems at all": (of("eval", "data=[]"), ("config group 'data' is empty",)),
    "a part of a group": (of("eval", "data=[]", "data.test.mine.answer=x"), ("config group 'data' is empty",)),
    "nothing to train on": (of("probe", "data=math500"), ("data.pool",)),
    "no file given": (of("eval", "data=mine"), ("data.test.mine.path",)),
    "no such file": (of("eval", "data=mine", "data.test.mine.path=./nowhere.jsonl"), ("nowhere.jsonl",)),
    "suffix": (data(GOOD, name="data.txt"), ("data.txt", ".jsonl")),
    "empty file": (data(""), ("no problems",)),
    "empty folder": (lambda p: ["eval", "data=mine", f"data.test.mine.path={p.folder}"], ("holds no",)),
    "packed in a folder": (packed, ("b.jsonl.gz", "unpack")),
    "path too long": (of("eval", "data=mine", f"data.test.mine.path={'d' * 5000}"), ("name too long",)),
    "not JSON": (data(GOOD + "{broken\n"), (":2: not JSON",)),
    "binary": (data(b"\x00\xff\xfe\x01"), (":1: byte 0xff", "UTF-8")),
    "another code page": (data('{"question": "1+1", "answer": "\xbd"}\n'.encode("latin-1")), (":1: byte 0xbd", "UTF-8")),
    "answer that is none": (data('{"question": "1+1", "answer": NaN}\n'), (":1:", "answer", "nan")),
    "nested": (data("[" * 100_000), (":1:",)),
    "endless number": (data('{"question": "1", "answer": ' + "9" * 5000 + "}\n"), (":1:",)),
    "half a character": (data('{"question": "\\ud800", "answer": "1"}\n'), (":1:", "surrogate", "UTF-8")),
    "list": (data(GOOD + "[1]\n"), (":2: a JSON list",)),
    "no answer column": (data(GOOD + '{"question": "1+1"}\n'), (":2: no column 'answer'",)),
    "empty answer": (data(GOOD + '{"question": "1+1", "answer": ""}\n'), (":2: column 'answer'",)),
    "null question": (data(GOOD + '{"question": null, "answer": "2"}\n'), (":2: column 'question'",)),
    "JSON object": (data('{"a": 1}', name="data.json"), ("not a list",)),
    "Parquet that is no text": (lambda p: ["eval", "data=mine", f"data.test.mine.path={parquet(p)}"], ("row 1", "UTF-8")),
    "damaged Parquet": (data(b"PAR1 no", name="data.parquet"), ("data.parquet", "Parquet")),
    "column not there": (data("a,b\n1,2\n", name="data.csv"), (":2: no column 'question'", "a, b")),
    "more than the file has": (data(GOOD, "data.test.mine.num_problems=5"), ("num_problems", "1 problems, not 5")),
    "not the expected number": (data(GOOD, "data.test.mine.expected_problems=7"), ("7 are expected",)),
    "pattern": (data(GOOD, "data.test.mine.answer_pattern='('"), ("answer_pattern",)),
    "pattern without a group": (data(GOOD, "data.test.mine.answer_pattern=x"), ("answer_pattern", "group")),
    "pattern that finds a blank": (data(GOOD, "data.test.mine.answer_pattern='(x?)'"), (":1:", "answer_pattern")),
    "pattern whose group is left out": (data(GOOD, "data.test.mine.answer_pattern='(x)?'"), (":1:", "answer_pattern")),
    "pattern that finds nothing": (data(GOOD, "data.test.mine.answer_pattern='#(.*)'"), (":1:", "answer_pattern")),
    "id twice": (
        data('{"id": "a", "question": "1", "answer": "2"}\n' * 2, "data.test.mine.problem_id=id"),
        ("'a'", "twice"),
    ),
    "levels": (of("eval", "data.test.chain.levels=[99]"), ("data.test.chain.levels",)),
    "family": (of("eval", "data.test.chain.family=sums"), ("data.test.chain.family", "chain")),
    "fewer problems than asked for": (of("eval", "data.test.chain.levels=[1]"), ("distinct",)),
    "examples from the problems asked": (
        of("eval", "data=gsm8k", "data.test.gsm8k.shots=8"),
        ("data.test.gsm8k.shots", "shots_split"),
    ),
    "no split of the hub's": (
        of("eval", "data.test.mine.source=dataset", "data.test.mine.dataset=a/b"),
        ("data.test.mine.split",),
    ),
    "three models to compare": (
        lambda p: ["compare", str(p.file("x")), "--model", "base", "after", "outputs/eval/b"],
        ("--model", "one value or two"),
    ),
    "a margin in points": (
        lambda p: ["compare", str(p.file("x")), "--model", "a", "b", "--margin", "3"],
        ("--margin", "share"),
    ),
    "set without a source": (of("eval", "data.test.mine.num_problems=1"), ("data.test.mine", "source", "chain")),
    "answer that is a sign": (
        data('{"question": "1", "c": ["a", "b"], "answer": "²"}\n', "data.test.mine.choices=c"),
        (":1:", "none of the 2 options"),
    ),
    "set misspelt": (
        of("eval", "data=gsm8k", "data.test.gms8k.path=x"),
        ("data.test.gms8k", "did you mean 'data.test.gsm8k'"),
    ),
    "test problems in the pool": (same_everywhere, ("data.pool", "test problem", "give others")),
    "ids in two lists": (ids_of_two_lists, ("'0'", "data.validation", "data.pool", "problem_id=null")),
    "tested on what it learned": (trained_on_the_test, ("checkpoints.mine", "eval.allow_overlap")),
    "unknown problem": (of("train-phase2", "phase.problem_ids=[nobody]", "phase.problems_per_step=1"), ("nobody",)),
    # models and checkpoints
    "no such model": (of("eval", "model.path=./nowhere"), ("./nowhere",)),
    "model without config": (model(without="config.json"), ("config.json",)),
    "model without weights": (model(without="*.safetensors"), ("safetensors",)),
    "model without tokenizer": (model(without="tokenizer.json"), ("no tokenizer",)),
    "model without chat template": (model(without="chat_template*"), ("no chat template",)),
    "config that is not JSON": (lambda p: ["eval", f"model.path={p.file('{', 'm/config.json').parent}"], ("not JSON",)),
    "config that is a list": (lambda p: ["eval", f"model.path={p.file('[]', 'm/config.json').parent}"], ("no JSON object",)),
    "logits that are scaled": (model(subcommand="train-phase2", lm_head_multiplier=8), ("lm_head_multiplier",)),
    "unknown architecture": (model(model_type="gpt99"), ("gpt99", "trust_remote_code")),
    "tokenizer that is garbage": (changed("tokenizer.json", "garbage"), ("tokenizer", "cannot be used")),
    "template that does not parse": (changed("chat_template.jinja", "{% if %}"), ("chat template", "cannot be used")),
    "template that refuses": (changed("chat_template.jinja", "{{ raise_exception('no system') }}"), ("no system",)),
    "config with a wrong type": (changed("config.json", None), ("hidden_size", "cannot be used")),
    "engine longer than the model": (of("eval", "rollout.max_model_len=4096"), ("rollout.max_model_len=4096", "1024")),
    "context of the engine": (of("eval", "rollout.max_model_len=64"), ("rollout.max_model_len", "eval.max_tokens")),
    "prompt without room": (of("eval", "rollout.max_model_len=513", "eval.max_tokens=512"), ("512", "drop the problem")),
    "short context": (model(max_position_embeddings=100), ("eval.max_tokens", "100 tokens")),
    "responses too long": (of("probe", "rollout.max_tokens=1024"), ("rollout.max_tokens", "1024")),
    "weights cut": (weights(None), ("damaged",)),
    "weights of another kind": (weights(b"\x80\x04pickle"), ("damaged",)),
    "a part of the weights": (sharded, ("00002-of-00002", "not all there")),
    "checkpoint of nothing": (of("eval", "checkpoints={a: ./nowhere}"), ("checkpoints.a",)),
    "checkpoint with a bad name": (of("eval", "checkpoints={a/b: lab}"), ("checkpoints",)),
    "damaged record": (lambda p: ["eval", f"checkpoints={{a: {p.trained('{')}}}"], ("trained_on.json", "damaged")),
    # files of earlier runs
    "no pass rates": (of("train-phase2", "pass_rates=./nowhere.jsonl"), ("nowhere.jsonl",)),
    "a folder without pass rates": (of("train-phase2", "pass_rates=."), ("pass_rates.jsonl", "a probe's run")),
    "empty pass rates": (rates(""), ("empty",)),
    "other lines for pass rates": (rates(GOOD), (":1:", "probe again")),
    "rows without columns": (compared(GOOD), ("rows", "schema")),
    "rows that are no JSON": (compared("{\n"), ("evaluation rows",)),
    "rows that are no objects": (compared("[1]\n"), ("evaluation rows",)),
    "a count that is true": (compared(counted("true")), ("line 1: ", "num_tokens is true, not a number")),
    "a count that is text": (compared(counted('"7"')), ("line 1: ", 'num_tokens is "7", not a number')),
    "a count beyond all": (compared(counted("9007199254740993")), ("line 1: ", "num_tokens is too large")),
    "graded file into itself": (lambda p: ["grade", str(f := p.file(json.dumps(ROW))), str(f)], ("is an input",)),
    "graded file into its questions": (
        lambda p: ["grade", str(p.file(json.dumps(ROW))), str(p.file("{}", "questions.jsonl"))],
        ("OUT", "is an input"),
    ),
    "graded file without gold": (graded('{"response": "1"}\n'), (":1:", "gold")),
    "graded choices": (graded(json.dumps(ROW | {"choices": 3})), (":1:", "choices")),
    "graded precision": (graded(json.dumps(ROW | {"precision": "high"})), (":1:", "precision")),
    "graded into a folder": (lambda p: ["grade", str(p.file(json.dumps(ROW))), str(p.folder)], ("OUT", "is a folder")),
    "report into a folder": (lambda p: ["report", str(made(p)), "--out", str(p.folder)], ("--out", "is a folder")),
    "report over rows": (
        lambda p: ["report", str(run := made(p)), "--out", str(run / "rows-phase2.jsonl")],
        ("--out", "must end in .html"),
    ),
    "comparison over a side": (
        lambda p: ["compare", str(f := p.file(json.dumps(ROW))), str(f), "--json", str(f)],
        ("--json", "is an input"),
    ),
    "claims from a negative seed": (lambda p: ["claims", "c5", "--first-seed", "-1"], ("--first-seed", "at least 0")),
    "claims' page in a file": (lambda p: ["claims", "c5", "--page", str(p.file("x") / "docs")], ("--page", "is a file")),
    "claims in a file": (lambda p: ["claims", "c5", "--out", str(p.file("x") / "out")], ("--out", "is a file")),
    "adapters on layers that are not there": (
        lambda p: ["train-phase2", "debug=train", "model/adapter=lora", "model.adapter.targets=[nosuch]"],
        ("model.adapter.targets", "'nosuch'", "q_proj"),
    ),
    "figures into a file": (lambda p: ["report", str(made(p)), "--figures", str(p.file("x"))], ("--figures", "is a file")),
    "report twice of a run": (lambda p: ["report", str(run := made(p)), str(run)], ("twice",)),
    # the surroundings
    "latest that is a folder": (lambda p: ["eval", "debug=eval", *copied_latest(p)], ("latest", "move it away")),
    "flag of another meaning": (of("eval", "--config-path", "./nowhere"), ("--config-path", "--config-dir")),
    "outputs in a file": (lambda p: ["eval", "debug=eval", f"paths.outputs={p.file('x')}/here"], ("paths.outputs",)),
    "stages from nowhere": (of("eval", "debug=eval", "paths.stages_from=nowhere"), ("paths.stages_from", "nowhere")),
    "stages from a file": (lambda p: ["eval", "debug=eval", f"paths.stages_from={p.file('x')}"], ("paths.stages_from",)),
    "a value that leads nowhere": (of("probe", "device.kind=${nope}"), ("device.kind", "nope")),
    "a value that leads nowhere, shown": (of("probe", "--help", "paths.outputs=${nope}"), ("paths.outputs", "nope")),
    "a value that leads nowhere, resolved": (
        of("probe", "--cfg", "job", "--resolve", "paths.outputs=${nope}"),
        ("paths.outputs", "nope"),
    ),
    "one option": (data('{"question": "1", "x": "2"}', "data.test.mine.choices=[x]"), ("choices", "two columns or more")),
    "no options": (data('{"question": "1", "x": "2"}', "data.test.mine.choices=[]"), ("choices", "two columns or more")),
    "several right options": (
        data(
            '{"question": "1", "x": ["1", "2"], "answer": [0, 1]}', "data.test.mine.choices=x", "data.test.mine.answers=all"
        ),
        ("choices", "one right option"),
    ),
    "rates of other problems": (rates(RATE), ("pass_rates", "none of the", "problems of data.pool")),
    "rates of a problem twice": (rates(f"{RATE}\n{RATE}\n"), (":2:", "'p' appears twice")),
    "job of a sweep with a template that fails": (
        lambda p: ["eval", "-m", *changed("chat_template.jinja", "{% if %}")(p)[1:], "seed=0,1"],
        ("chat template", "cannot be used"),
    ),
    "dry run of a bad value": (of("two-phase", "--dry-run", "phase2.num_steps=0"), ("phase2.num_steps",)),
    "config folder": (of("eval", "--config-dir", "./nowhere", "seed=x"), ("nowhere",)),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    arguments, said = CASES[name]
    here = tmp_path / "here"
    here.mkdir()
    beside = Place(tmp_path / "beside")
    beside.folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", ["conclip", *arguments(beside)])
    before = {path: path.stat().st_mtime_ns for path in beside.folder.rglob("*")}
    capfd.readouterr()
    began = time.process_time()
    with pytest.raises(SystemExit) as end:
        main()
    took = time.process_time() - began
    out, err = capfd.readouterr()
    assert end.value.code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert len(err) < 1500
    assert all(part.casefold() in err.casefold() for part in said), err
    assert "Traceback" not in err and out == ""
    assert took < LIMIT_S
    assert list(here.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in beside.folder.rglob("*")} == before
