"""Every shipped YAML composes into the typed schema, and bad values are named."""

import re
from pathlib import Path

import pytest

from conclip.cli.help import read_meanings
from conclip.cli.main import main
from conclip.cli.subcommands import SUBCOMMANDS
from conclip.cli.sweep import job_names
from conclip.config import compose
from conclip.config.compose import compose_config, config_folder, for_hydra, load_config, quoted, sweep_jobs
from conclip.config.schema import SCHEMAS, EvalRunConfig
from conclip.config.typed import schema_keys, to_config
from conclip.errors import UserError

CONF = config_folder()


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_primary_configs_compose(subcommand: str):
    assert load_config(subcommand).name == "default"


@pytest.mark.parametrize(
    ("gpu", "overrides", "number"),
    [
        (False, [], 2),
        (True, [], 1),
        (False, ["device=h100"], 1),
        (True, ["rollout.num_engines=2"], 2),
        (False, ["model=hf", "model.path=x"], 1),
        (False, ["debug=train"], 1),
        (False, ["cluster=ray"], 1),
        (True, ["device=cpu"], 2),
    ],
)
def test_the_lab_has_two_engines_on_a_cpu(gpu: bool, overrides: list[str], number: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compose, "has_gpu", lambda: gpu)
    monkeypatch.setattr(compose, "num_cores", lambda: 2)
    assert load_config("train-phase2", *overrides).rollout.num_engines == number


def options() -> list[tuple[str, str]]:
    groups = [p for p in sorted(CONF.iterdir()) if p.is_dir() and p.name not in ("experiment", "debug", "hydra", "claims")]
    return [(group.name, option.stem) for group in groups for option in sorted(group.glob("*.yaml"))]


@pytest.mark.whole
@pytest.mark.parametrize(("group", "option"), options())
def test_every_option_composes(group: str, option: str):
    """With every subcommand that has its group."""
    filled = {
        "hf": ["model.path=somewhere"],
        "endpoint": ["model.url=http://localhost/v1"],
        "distillation": ["model=hf", "model.path=somewhere"],
    }.get(option, [])
    uses = re.compile(rf"^  - {group}(@\w+)?:", re.M)
    users = [name for name in SUBCOMMANDS if uses.search((CONF / f"{name.replace('-', '_')}.yaml").read_text())]
    assert users
    if group == "data" and not load_config("eval", f"data={option}").data.pool:
        users = ["eval"]  # a benchmark, with nothing to train on
    if option == "endpoint":
        users = ["eval"]
        with pytest.raises(UserError, match="conclip eval only"):
            load_config("probe", "model=endpoint", *filled)
    for subcommand in users:
        load_config(subcommand, f"{group}={option}", *filled)


@pytest.mark.parametrize("option", [option for group, option in options() if group == "phase"])
def test_every_phase_fits_the_two_phases(option: str):
    config = load_config("two-phase", f"phase@phase1={option}", f"phase@phases.phase2={option}")
    assert config.phase_settings["phase1"] == config.phase_settings["phase2"]


@pytest.mark.parametrize("path", sorted((CONF / "experiment").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes(path: Path):
    own_model = ["model.path=somewhere"] if "override /model: hf" in path.read_text() else []
    load_config("two-phase", f"experiment={path.relative_to(CONF / 'experiment').with_suffix('')}", *own_model)


@pytest.mark.parametrize("path", sorted((CONF / "debug").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_debug_option_composes(path: Path):
    subcommand = {"two_phase": "two-phase", "train": "train-phase2"}.get(path.stem, path.stem)
    load_config(subcommand, f"debug={path.stem}")


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_file_begins_by_saying_what_it_is(path: Path):
    assert read_meanings(path)[0]


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_gives_every_key_a_meaning(
    subcommand: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["conclip", subcommand, "--help", "seed=7"])
    main()
    page = capsys.readouterr().out
    lines = [line.rstrip() for line in page.splitlines() if re.match(r"  [a-z_.0-9]+=", line)]
    assert re.search(r"^  seed=7 +every random number", page, re.M)
    assert len(lines) > 20
    assert [line for line in lines if not re.match(r"  \S+=.*?  +\S", line)] == []


def test_files_of_the_users_own_folder_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "algo").mkdir()
    shipped = (CONF / "algo/ppo.yaml").read_text()
    (tmp_path / "algo/ppo.yaml").write_text(shipped.replace("gae_lambda: 0.95", "gae_lambda: 0.5", 1))
    (tmp_path / "algo/own.yaml").write_text("# Mine.\n\ndefaults: [ppo]\ngae_lambda: 0.25\n")
    (tmp_path / "train_phase2.yaml").write_text("# Own.\n\ndefaults: [/train_phase1, _self_]\nseed: 7\n")
    composed = {
        choice: compose_config("train-phase1", choice.split(), config_dir=str(tmp_path))[0]
        for choice in ("", "algo=own", "algo=grpo")
    }
    assert {choice: config.algo.gae_lambda for choice, config in composed.items()} == {
        "": 0.5,
        "algo=own": 0.25,
        "algo=grpo": 0.5,  # a shipped file builds on the user's, too
    }
    assert compose_config("train-phase2", [], config_dir=str(tmp_path))[0].seed == 7
    assert compose_config("train-phase1", [])[0].algo.gae_lambda == 0.95  # and is forgotten by the next composition
    monkeypatch.setattr("sys.argv", ["conclip", "train-phase1", "--help", "--config-dir", str(tmp_path), "algo=own"])
    main()
    page = capsys.readouterr().out
    assert "algo.gae_lambda=0.25" in page and re.search(r"^algo=own\n  or: .*grpo.* ppo", page, re.M) and "Mine." in page


def test_meanings_follow_the_nesting(tmp_path: Path):
    path = tmp_path / "some.yaml"
    path.write_text("# What it is.\n\n# of a\na: 1\nb:\n  # of\n  # c\n  c: 2\n  d: 3\n# of e\ne: 4\n")
    assert read_meanings(path) == ("What it is.", {"a": "of a", "b.c": "of c", "e": "of e"})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algo.gamma=2", "algo.gamma"),
        ("algo.gamma=high", "algo.gamma"),
        ("algo.loss_aggregation=mean", "sequence_mean"),
        ("algo.clip_low=0", "algo.clip_low"),
        ("phase.num_steps=0", "phase.num_steps"),
        ("phase.problems_per_step=9", "phase.problems_per_step"),
        ("phase.pass_rate_low=0.9", "pass_rate_low"),
        ("rollout.temperature=0", "rollout.temperature"),
        ("rollout.temperature=0.009", "rollout.temperature"),
        ("rollout.temperature=2.5", "rollout.temperature"),
        ("rollout.max_tokens=many", "rollout.max_tokens"),
        ("optim.policy_lr=-1", "optim.policy_lr"),
        ("model.prompt=hello", "{question}"),
        ("name=a/b", "name"),
        ("seed=-1", "seed"),
        ("algo.updates_per_rollout=1000", "algo.updates_per_rollout"),
        ("reward.correct=-2", "reward.correct"),
        ("data.pool.chain.family=rings", "chain, search"),
        ("data.pool.chain.levels=[0]", "levels"),
        ("data.pool.chain.levels=[]", "levels"),
        ("trainer.max_tokens_per_micro_batch=5", "max_tokens_per_micro_batch"),
        ("+algo.gae_lamda=1", "did you mean 'algo.gae_lambda'"),
        ("+data.pool.chain.levles=[1]", "did you mean"),
        ("data.pool.chain.path=mine.jsonl", "data.pool.chain.path' is for source: dataset"),
        ("data.pool.chain.offset=5", "data.pool.chain.offset' is for source: dataset"),
        ("trainer.max_sampler_drift=0", "trainer.max_sampler_drift"),
        ("phase.max_accuracy_drop=5", "is a share"),
        ("phase.stop_accuracy_drop=10", "ten points"),
        ("length.kind=kimi", "length=kimi sets"),
        ("length.strength=0.5", "length.strength' is unread"),
        ("rollout.max_tokens=true", "rollout.max_tokens': takes no truth value, got true"),
        ("algo.gamma=false", "algo.gamma': takes no truth value"),
        ("data.pool.chain.levels=[true]", "data.pool.chain.levels': takes no truth value"),
        ("seed=99999999999999999999999", "seed' must be below 2^53"),
        ("phase.num_steps=100000000000000000000", "phase.num_steps' must be below"),
        ("cluster.address=host:6379", "cluster.address' is for cluster=ray"),
        ("cluster.placement=spread", "cluster.placement' is for cluster=ray"),
        ("model.adapter.rank=8", "model.adapter.rank' is for adapters"),
        ("model.adapter.alpha=8", "model.adapter.alpha' is for adapters"),
        ("model.adapter.targets=[q_proj]", "model.adapter.targets' is for adapters"),
        ("algo=[ppo,grpo]", "'algo=[ppo,grpo]': they set the same keys"),
        ("phase=[one,two]", "the last one would win"),
        ("algo=null", "algo is a group, which takes an option's name: cispo, dapo,"),
        ("algo=[1]", "algo is a group, which takes an option's name"),
        ("data.pool=[x]", "'data.pool=[x]': data.pool has named entries: data.pool={name: value}"),
    ],
)
def test_bad_values_are_named(override: str, said: str):
    with pytest.raises(UserError) as caught:
        load_config("train-phase2", override)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algo=grpo", "algo.gamma=0.99"], "discounts nothing"),
        (["algo=shortest_sft", "length=kimi"], "length.kind"),
        (["algo=distillation"], "reads no English"),
        (["algo=distillation", "model=hf", "model.path=x", "algo.kl=loss", "algo.kl_coef=0.1"], "algo.kl=none"),
        (["algo.truncated_bootstrap=value"], "algo.truncated_bootstrap' is value, which needs reward.truncated=0"),
        (["algo.truncated_bootstrap=value", "reward.truncated=0", "length=kimi"], "and length=none"),
        (["algo=distillation", "model=hf", "model.path=x", "algo.whiten_advantages=true"], "algo.whiten_advantages=false"),
        (["algo=distillation", "model=hf", "model.path=x", "length=kimi", "reward=binary"], "learns from no reward"),
        (["algo=distillation", "model=hf", "model.path=x", "algo.kl_target=0.1"], "algo.kl_target"),
        (["algo=distillation", "model=hf", "model.path=x", "algo.teacher_prompt=plain"], "algo.teacher_prompt"),
        (["algo=shortest_sft", "algo.whiten_advantages=true"], "all would become 0"),
        (["algo.dynamic_sampling_rounds=2", "phase.group_size=1"], "all right or wrong"),
        (
            ["phase.refresh=true", "phase.group_size=4"],
            "never retires a problem with phase.group_size=4: beliefs stay 0.056",
        ),
        (["phase.refresh=true", "phase.group_size=8", "phase.refresh_memory=0"], "never retires"),
        (["pass_rates=x", "phase.problem_ids=[a]", "phase.problems_per_step=1"], "pass_rates' is unread"),
    ],
)
def test_settings_that_would_do_nothing_together_are_refused(overrides: list[str], said: str):
    with pytest.raises(UserError) as caught:
        load_config("train-phase2", *overrides)
    assert said in str(caught.value)


def test_evaluation_allows_what_training_allows_unless_told_otherwise():
    for config in (load_config("eval", "rollout.max_tokens=300"), load_config("two-phase", "rollout.max_tokens=300")):
        assert config.evaluation is not None and config.evaluation.max_tokens == 300
    other = load_config("eval", "rollout.max_tokens=300", "eval.max_tokens=40")
    assert isinstance(other, EvalRunConfig) and other.eval.max_tokens == 40


def test_group_relative_refuses_kl_in_the_reward():
    with pytest.raises(UserError, match=r"algo\.kl"):
        load_config("train-phase2", "algo=grpo", "algo.kl=reward")


@pytest.mark.parametrize(
    "override",
    [
        "eval.temperatures=[-1]",
        "eval.temperatures=[0,2.01]",
        "eval.temperatures=[0.005]",
        "eval.temperatures=[]",
        "eval.prompts=[]",
        "eval.budget_tokens=0",
        "eval.margin=3",
    ],
)
def test_evaluation_settings_are_checked(override: str):
    with pytest.raises(UserError, match=override.split("=")[0].replace(".", r"\.")):
        load_config("eval", override)


def test_every_temperature_that_vllm_samples_at_is_taken():
    config = load_config("eval", "eval.temperatures=[0,0.01,2]", "rollout.temperature=2")
    assert isinstance(config, EvalRunConfig) and config.evaluation is not None
    assert config.evaluation.temperatures == [0, 0.01, 2] and config.rollout.temperature == 2


def test_checkpoints_have_names_of_ones_own():
    config = load_config("eval", "checkpoints={after: x/y}", "checkpoints.other=z")
    assert isinstance(config, EvalRunConfig) and config.checkpoints == {"after": "x/y", "other": "z"}
    with pytest.raises(UserError, match=r"checkpoints\.model"):
        load_config("eval", "checkpoints.model=x")


def test_sweeps_are_expanded_and_need_the_flag():
    assert list(sweep_jobs(["a=1,2", "b=3"], sweeping=True)) == [["a=1", "b=3"], ["a=2", "b=3"]]
    with pytest.raises(UserError, match="-m"):
        list(sweep_jobs(["a=1,2"], sweeping=False))
    with pytest.raises(UserError, match="override"):
        list(sweep_jobs(["a b"], sweeping=False))
    with pytest.raises(UserError, match="names no value"):
        list(sweep_jobs(["a=range(0,0)"], sweeping=True))


def test_options_of_one_group_are_combined_where_that_makes_sense():
    config = load_config("eval", "data=[gsm8k,mmlu_stem]")
    assert {"gsm8k", "mmlu_stem"} <= set(config.data.test)


def test_a_preset_takes_every_key_of_a_problem_set():
    config = load_config("eval", "data=mmlu_stem", "data.test.mmlu_stem.num_problems=400", "data.test.mmlu_stem.seed=1")
    assert (config.data.test["mmlu_stem"].num_problems, config.data.test["mmlu_stem"].seed) == (400, 1)
    with pytest.raises(UserError, match="num_problem"):
        load_config("eval", "data=mmlu_stem", "data.test.mmlu_stem.num_problem=400")


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["checkpoints={my-run.v2: path}"], ["my-run.v2"]),
        (["checkpoints={'my-run.v2': path, \"b\": path}"], ["my-run.v2", "b"]),
        (["checkpoints.my-run=path", "checkpoints.my-run.v2=path"], ["my-run", "my-run.v2"]),
        (["checkpoints.1.10=path", "checkpoints.2024=path", "checkpoints.a@b=path"], ["1.10", "2024", "a@b"]),
        (["checkpoints={2024: path, 1.5: path, v1.5: path}"], ["2024", "1.5", "v1.5"]),
        (["+checkpoints.my.path=path", "++checkpoints.b-c=path"], ["my.path", "b-c"]),
    ],
)
def test_checkpoints_may_have_any_plain_name(overrides: list[str], names: list[str]):
    config = load_config("eval", *overrides)
    assert isinstance(config, EvalRunConfig) and sorted(config.checkpoints) == sorted(names)
    assert set(config.checkpoints.values()) == {"path"}
    with pytest.raises(UserError, match="plain names"):
        load_config("eval", "checkpoints.a/b=path")


SET_NAMES = ["my-set", "my.set", "my-set.v2", "2024", "1.10", "größe", "my.path"]


@pytest.mark.parametrize("name", SET_NAMES)
def test_problem_sets_may_have_any_plain_name(name: str):
    one_by_one = [f"data.test.{name}.source=dataset", f"data.test.{name}.path=x", f"data.test.{name}.num_problems=7"]
    whole = [f"data.test.{name}={{source: dataset, path: x, num_problems: 7}}"]
    for overrides in (one_by_one, whole, [f"+{override}" for override in whole]):
        found = load_config("eval", *overrides).data.test
        assert (found[name].path, found[name].num_problems) == ("x", 7) and list(found) == ["chain", name]


@pytest.mark.parametrize("name", SET_NAMES)
def test_a_key_of_a_set_of_any_name_has_a_suggestion(name: str):
    with pytest.raises(UserError, match=r"num_problem': did you mean 'data\.test\..*\.num_problems'"):
        load_config("eval", f"data.test.{name}={{source: dataset, num_problem: 7}}")


@pytest.mark.parametrize("name", ["2024", "1.10", "1e5", "007", "1_000", "true", "nan", "-3", "a=b", "2024-05-01", "null_1"])
def test_numbers_and_signs_are_names(name: str):
    paths = (f"model.path=runs/{name}", "data=gsm8k", f"data.test.gsm8k.revision={name}")
    config = load_config("eval", f"name={name}", f"checkpoints.x={name}", *paths)
    assert isinstance(config, EvalRunConfig)
    assert (config.name, config.model.path, config.checkpoints) == (name, f"runs/{name}", {"x": name})
    assert config.data.test["gsm8k"].revision == name
    ((job,),) = sweep_jobs([f"name={name}"], sweeping=False)
    assert load_config("eval", job).name == name


def test_a_config_file_may_name_by_numbers_and_begin_with_a_mark(tmp_path: Path):
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "mine.yaml").write_text(
        "# @package _global_\nname: 2024\ncheckpoints: {2025: 7}\n", encoding="utf-8-sig"
    )
    composed, _ = compose_config("eval", ["debug=mine"], config_dir=str(tmp_path))
    config = to_config(EvalRunConfig, composed)
    assert (config.name, config.checkpoints) == ("2024", {"2025": "7"})


@pytest.mark.parametrize("value", ["a=b", "it's", "a\\", "a\\'b", '"', "a, b", "{x}", "${x}"[1:], ""])
def test_what_is_quoted_is_read_back(value: str):
    ((job,),) = sweep_jobs([f"model.system={quoted(value)}"], sweeping=False)
    assert load_config("eval", job).model.system == value


def test_jobs_of_a_sweep_keep_quotes_and_names():
    jobs = list(sweep_jobs(["model.system='a=b','c, d'", "checkpoints.my-run.v2=x,y", "seed=1"], sweeping=True))
    assert jobs[0] == ["model.system='a=b'", "checkpoints.my-run.v2=x", "seed=1"]
    configs = [load_config("eval", *job) for job in jobs]
    assert [config.model.system for config in configs] == ["a=b", "a=b", "c, d", "c, d"]
    with pytest.raises(UserError, match="name the values"):
        list(sweep_jobs(["algo=glob(*)"], sweeping=True))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"{question}\nAnswer.", "{question}\nAnswer."),
        (r"{question}\n\nanswer in \boxed{}", "{question}\n\nanswer in \\boxed{}"),
        (r"{question}, $a \neq b$, \nu, \not x", None),
        (r"{question}\\next", None),
    ],
)
def test_a_new_line_typed_in_a_prompt_is_one(typed: str, meant: str | None):
    config = load_config("eval", f'model.prompt="{typed}"', f"model.system='{typed}'").model
    assert (config.prompt, config.system) == (meant or typed, meant or typed)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.test.chain=3", "data.test.chain"),
        ("data.test=3", "data.test"),
        ("checkpoints=3", "checkpoints"),
        ("data.test.chain.num_problem=5", "did you mean 'data.test.chain.num_problems'"),
        ("data=gsm8", "did you mean 'gsm8k'"),
        ("data=gsm8k/", "did you mean 'gsm8k'"),
        ("seed.x=1", "did you mean 'seed'"),
        ("checkpoint.a=b", "did you mean 'checkpoints'"),
        ("eval.m=8", "see --cfg job for all keys"),  # its own group of keys is not what was meant
        ("rolout=lab", "did you mean 'rollout'"),
        ("model.adaptor=lora", "did you mean 'model.adapter'"),
        ("eval.n=8", "eval.samples_per_problem"),
        ("resume=true", "takes no truth value, got true (YAML reads yes and no as one); choose one of auto, never"),
    ],
)
def test_suggestions_are_never_what_was_typed(override: str, said: str):
    with pytest.raises(UserError) as caught:
        load_config("eval", override)
    assert said in str(caught.value) and f"did you mean '{override.partition('=')[0]}'" not in str(caught.value)


def test_what_hydra_itself_shows_takes_the_short_keys():
    plain, named = for_hydra(["--cfg", "hydra", "phase1.num_steps=3", "name=2024"], schema_keys(SCHEMAS["two-phase"]))
    assert (plain, named) == (["--cfg", "hydra", "phases.phase1.num_steps=3", "name='2024'"], [])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=0,1", "algo=ppo"], ["x-seed=0", "x-seed=1"]),
        (["seed=1,2", "algo=ppo"], ["x-seed=1", "x-seed=2"]),  # a longer sweep goes on with the jobs of a shorter one
        (
            ["seed=0,1", "model/adapter=none,lora"],
            [f"x-seed={seed}-adapter={kind}" for seed in "01" for kind in ("none", "lora")],
        ),
        (["phase2.num_steps=5,8", "optim.policy_lr=3e-5"], ["x-num_steps=5", "x-num_steps=8"]),
        (["seed=0"], ["x"]),
        (["name=a,b"], ["a", "b"]),
        (["data.test.chain.levels=[2],[3]"], ["x-0", "x-1"]),  # no plain names
        (
            ["phases.phase1.num_steps=5,8", "phases.phase2.num_steps=5,8"],
            [f"x-num_steps={a}-num_steps={b}" for a in "58" for b in "58"],
        ),
        ([f"model.path={'a' * 90},b"], ["x-0", "x-1"]),
        ([f"name={'n' * 190}", "optim.policy_lr=1e-5,2e-5"], [f"{'n' * 190}-{number}" for number in range(2)]),
        (["model.system=null,'null'"], ["x-0", "x-1"]),
    ],
)
def test_jobs_of_a_sweep_are_named_by_what_they_vary(overrides: list[str], expected: list[str]):
    combinations = list(sweep_jobs(overrides, sweeping=True))
    names = [next((o[5:] for o in one if o.startswith("name=")), "x") for one in combinations]
    assert job_names(names, combinations) == expected


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("pass_rates=x", "a recipe has probes of its own"),
        ("num_generations=8", "phase.group_size"),
        ("learning_rate=1e-6", "optim.policy_lr"),
        ("beta=0", "algo.kl_coef"),
        ("report_to=wandb", "logger.trackers"),
        ("max_completion_length=9", "rollout.max_tokens"),
    ],
)
def test_keys_of_other_tools_and_subcommands_lead_to_ours(override: str, said: str):
    with pytest.raises(UserError, match=f"does not exist: .*{re.escape(said)}"):
        load_config("two-phase", override)


@pytest.mark.parametrize(
    ("subcommand", "experiment", "group"),
    [("probe", "r1_1.5b_24gb", "model/adapter"), ("train-phase2", "real", "recipe"), ("eval", "smoke", "recipe")],
)
def test_an_experiment_of_another_subcommand_is_one_line_that_says_which(subcommand: str, experiment: str, group: str):
    words = f"experiment={experiment} sets '{group}', which {subcommand} has not; use it with conclip two-phase"
    with pytest.raises(UserError, match=re.escape(words)):
        load_config(subcommand, f"experiment={experiment}")
