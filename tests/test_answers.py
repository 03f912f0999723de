"""Finding an answer in a response, and its canonical spelling: literals."""

import time

import pytest

from conclip.grading.answers import Extraction, extract, extract_boxed, normalise
from conclip.grading.choices import choice_letters, without_label


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ 3 }", "3"),
        (r"\boxed{}", None),
        (r"\boxed{12", None),
        (r"\boxed{1} then \boxed{2", "1"),
        ("7", None),
        (r"\fboxed{4}", "4"),
        (r"\boxed {4}", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\text{(C)}}", r"\text{(C)}"),
        (r"\boxed{1}} and } \boxed{2}", "2"),
        (r"\boxed{\begin{pmatrix}1\\{2}\end{pmatrix}}", r"\begin{pmatrix}1\\{2}\end{pmatrix}"),
        ("\\boxed{\n5\n}", "5"),
        (r"our answer is $\boxed 2$.", "2"),
        (r"\boxed2", "2"),
        (r"\boxed 23", "2"),  # so TeX sets it
        (r"it is \fbox{4}", "4"),
        (r"it is \fbox 4.", "4"),
        (r"$\boxed\pi$", r"\pi"),
        (r"\(\boxed \infty\)", r"\infty"),
        (r"option $\boxed C$", "C"),
        (r"\boxed{1}, no: \boxed 2", "2"),
        (r"\boxed 1, no: \boxed{2}", "2"),
        (r"\boxed 1, no: \boxed{}", None),
        (r"\boxed{\boxed 7}", "7"),
        (r"\boxed{x = \boxed 7 + 1}", "7"),
        (r"\boxed\boxed{7}", "7"),
        (r"\boxed\boxed 7", "7"),
        (r"\boxed\frac12", None),  # an error of TeX, which takes \frac alone
        (r"\boxed\text{C}", None),
        (r"\boxed -3", None),
        (r"\boxed", None),
        (r"\boxed$", None),
        (r"\boxed{3}. It stands in a \boxed answer, as \boxed asks", "3"),
        (r"\boxedanswer 3", None),
        (r"\boxed{1} \text{ and } \boxed{-2}", "1, -2"),
        (r"\(\boxed{1}\), \(\boxed{2}\), and \(\boxed{3}\)", "1, 2, 3"),
        (r"$x = \boxed{4}$, $y = \boxed{1}$", "x = 4, y = 1"),
        (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{1}, so \boxed{2}", "2"),
        (r"\boxed{1}, not \boxed{2}", "2"),
        ("\\boxed{1},\n\n\\boxed{2}", "2"),
        (r"\\boxed{4}", "4"),
    ],
)
def test_the_last_balanced_box(text: str, expected: str | None):
    assert extract_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"The answer is 3. So \boxed{4}.", Extraction("4", "boxed")),
        ("She has 3 + 4 = 7 eggs.\n#### 7", Extraction("7", "hashes")),
        ("#### 1,234\n", Extraction("1,234", "hashes")),
        ("The final answer is 12. I hope it is correct.", Extraction("12", "phrase")),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", Extraction(r"\frac{1}{2}", "phrase")),
        ("**Answer:** $x=2$", Extraction("x=2", "phrase")),
        ("Answer: B", Extraction("B", "phrase")),
        ("the answer is 3.5", Extraction("3.5", "phrase")),
        ("so we get $x = 4$ and then $y = 5$, done", Extraction("y = 5", "math")),
        ("so \\(x\\) is \\[ 9 \\]", Extraction("9", "math")),
        ("first 3 then 4 makes 1,200 apples", Extraction("1,200", "number")),
        ("which is -3/4 of it", Extraction("-3/4", "number")),
        ("no idea", None),
        ("", None),
        (r"\frac{10}{9}", Extraction(r"\frac{10}{9}", "math")),
        ("$E$", Extraction("$E$", "math")),
        ("The day is Monday.", Extraction("Monday", "phrase")),
        ("It covers 100 $cm^2$.", Extraction("100 cm^2", "number")),
        ("Final answer: the largest $n$ is 34.", Extraction("34", "phrase")),
        ("Answer: 72 clips in April and May", Extraction("72 clips", "phrase")),
        ("The answer is D, it cannot be A", Extraction("D", "phrase")),
        ("weighing all of it\n\nC", Extraction("C", "phrase")),
        ("$x > 2$. Therefore it grows by 100%.", Extraction("100%", "number")),
        ("Weekly revenue = $42 * 7 = $294", Extraction("294", "number")),
        ("Total: 6 * $7 = $42.", Extraction("42", "number")),
        ("So she has $100 - $58 = $42 left.", Extraction("42", "number")),
        ("It is $40 - $5 = $35$", Extraction("35", "math")),
        ("That makes $7 / 2 = $3.50.", Extraction("3.50", "number")),
        ("So $a =$ is $7$", Extraction("7", "math")),
        ("Thus $x =$ $5$.", Extraction("5", "math")),
        ("So $a + b$ = $12$", Extraction("12", "math")),
    ],
)
def test_lenient_fall_backs_and_what_they_are_called(text: str, expected: Extraction | None):
    assert extract(text) == expected


def test_strict_knows_boxes_only():
    assert extract_boxed("the answer is 7") is None
    assert extract_boxed(r"\boxed{7}") == "7"


@pytest.mark.parametrize(
    ("a", "b"), [("1,234", "1234"), ("$5$", "5"), (r"x \, + 1", "x+1"), ("3.", "3"), ("10{,}000", "10000"), ("a ~ b", "ab")]
)
def test_normalise_joins(a: str, b: str):
    assert normalise(a) == normalise(b)


@pytest.mark.parametrize(("a", "b"), [("1,2", "12"), ("1.5", "15"), ("-1", "1"), ("(1)", "[1]")])
def test_normalise_keeps_what_differs(a: str, b: str):
    assert normalise(a) != normalise(b)


@pytest.mark.parametrize(
    ("answer", "num_choices", "expected"),
    [
        ("C", None, ["C"]),
        ("(c)", 4, ["C"]),
        ("C. 12", None, ["C"]),
        (r"\textbf{(C)}\ 12", None, ["C"]),
        (r"\text{Option B}", 4, ["B"]),
        ("[B]", None, ["B"]),
        ("A, C", None, ["A", "C"]),
        ("A or B", 4, ["A", "B"]),
        ("K", 11, ["K"]),
        ("K", 4, []),
        ("C_1", None, []),
        ("c", None, []),
        ("Cat", None, []),
        ("12", None, []),
        ("В", 4, []),  # a Cyrillic letter
    ],
)
def test_letters_of_options(answer: str, num_choices: int | None, expected: list[str]):
    assert choice_letters(answer, num_choices=num_choices, fold=num_choices is not None) == expected


@pytest.mark.parametrize(
    ("choice", "index", "expected"),
    [("B) 2", 1, "2"), ("(b) 2", 1, "2"), ("2", 1, "2"), ("A. Smith", 1, "A. Smith"), ("B", 1, "B")],
)
def test_options_that_carry_their_letter(choice: str, index: int, expected: str):
    assert without_label(choice, index) == expected


@pytest.mark.parametrize(
    "text",
    [
        r"\[" * 100_000,
        r"\(" * 100_000 + "$",
        "a $" * 70_000,
        "answer" + " " * 190_000 + "x",
        r"\boxed{" * 100_000,
        "{" * 1_000_000,
        r"\boxed{1}" * 100_000,
        "answer is " * 200_000,
        "$" * 1_000_000,
        "1" * 10**7,
        "x is 1 " + "in " * 66_000 + "1",
        "a" + "\n" * 190_000 + "?",
        "(A)" * 66_000 + "?",
        r"\boxed{1}, " * 18_000,
        "a is " * 40_000 + "x",
        "$m$ 1 " * 33_000,
    ],
)
def test_extraction_takes_linear_time(text: str):
    began = time.process_time()
    extract(text)
    assert time.process_time() - began < 5  # quadratic work would take minutes
