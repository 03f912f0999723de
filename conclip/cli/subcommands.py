"""The names of the subcommands, and what `conclip --help` says."""

SUBCOMMANDS = {
    "probe": "measure the pass rate of each problem",
    "train-phase1": "train on hard problems, for accuracy",
    "train-phase2": "train on a few occasionally solvable problems, for brevity",
    "eval": "accuracy and length of a model on test problems",
    "two-phase": "all of it: probe, phase 1, probe, phase 2, evaluation",
    "run": "the stages of any recipe: conclip run recipe=NAME",
}

PLAIN_SUBCOMMANDS = {
    "grade": "grade responses against gold answers: conclip grade IN OUT",
    "compare": "paired statistics: conclip compare RUN [RUN] [--model A B]",
    "report": "one HTML page of a run or several: conclip report RUN ...",
    "merge": "a model of an adapter and its base: conclip merge ADAPTER OUT",
    "claims": "the paper's claims as experiments: conclip claims [NAME ...]",
    "doctor": "what this machine can run, and what a config needs",
    "completion": "for a shell: conclip completion bash",
}
"""Subcommands that take arguments, not a config."""

USAGE = """usage: conclip SUBCOMMAND [key=value | group=option ...]

Shortens the chains of thought of a reasoning model with reinforcement learning,
and measures whether accuracy held.

{rows}

  conclip SUBCOMMAND --help        groups, keys and their present values
  conclip SUBCOMMAND --cfg job     the composed config
  conclip SUBCOMMAND -m key=a,b    one run per value, each in its own process
  conclip SUBCOMMAND --dry-run     what is done, what is to do, and its cost
  conclip --version                the version

Examples
  conclip two-phase
  conclip eval model=hf model.path=MODEL data=gsm8k
  conclip train-phase2 algo=grpo phase.num_steps=10
"""
