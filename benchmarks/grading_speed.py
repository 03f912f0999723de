"""Gradings a second: symbolic ones (each pair new), and those whose normalised answer is equal or cached.

make bench-grading
"""

import argparse
import time

from conclip.grading.grader import Grader


def rate(pairs: list[tuple[str, str]], *, workers: int) -> float:
    """Responses graded per second of wall time, workers warm."""
    grader = Grader(num_workers=workers)
    for number in range(2 * workers):  # their libraries load on the first answer
        grader.submit(f"warm {number}", gold=str(number), text=f"\\boxed{{{number}+1}}", finish_reason="stop")
    waiting = 2 * workers
    while waiting:
        waiting -= len(grader.poll(1.0))
    began = time.monotonic()
    done = 0
    for number, (gold, answer) in enumerate(pairs):
        grader.submit(
            str(number), gold=gold, text=f"Some words of reasoning, and so it is \\boxed{{{answer}}}.", finish_reason="stop"
        )
        done += len(grader.poll())
    while done < len(pairs):
        done += len(grader.poll(1.0))
    seconds = time.monotonic() - began
    grader.close()
    return len(pairs) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    shapes = (
        ("\\frac{%d}{7}", "%d/7"),
        ("%d", "%d+1"),
        ("%dx+2", "2+%dx"),
        ("\\sqrt{%d}", "\\frac{\\sqrt{%d}}{2}"),
        ("(%d, 1)", "(%d,2)"),
        ("[0,%d)", "[0, %d]"),
    )
    symbolic = [(gold % (n + 10), said % (n + 10)) for n in range(3000) for gold, said in [shapes[n % len(shapes)]]]
    equal = [(f"{n},000", f"{n}000") for n in range(50_000)]
    cached = [("1/2", "0.5"), ("3", "4")] * 25_000
    for name, pairs in (("symbolic", symbolic), ("equal", equal), ("cached", cached)):
        print(f"{name:>9}: {rate(pairs, workers=arguments.workers):8.0f} gradings/s ({len(pairs)} responses)")


if __name__ == "__main__":
    main()
