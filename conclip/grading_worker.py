"""One grader process: reads [gold, answer] JSON lines, writes one outcome a line. Ends with its input."""

import json
import signal
import sys

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

from conclip.types import Outcome

TARGETS = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]


def judge(gold: str, answer: str) -> Outcome:
    """math-verify's verdict, gold first. Its own alarms are off: the parent process holds the clock."""
    try:
        parsed_gold = parse(f"\\boxed{{{gold}}}", TARGETS, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        parsed_answer = parse(f"\\boxed{{{answer}}}", TARGETS, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        if not parsed_gold:
            return Outcome.GRADER_ERROR
        same = verify(parsed_gold, parsed_answer, timeout_seconds=None, raise_on_error=True)
        return Outcome.CORRECT if same else Outcome.WRONG
    except Exception:
        return Outcome.GRADER_ERROR


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    for line in sys.stdin:
        gold, answer = json.loads(line)
        sys.stdout.write(json.dumps(judge(gold, answer)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
