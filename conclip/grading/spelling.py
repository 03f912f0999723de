r"""One spelling for an answer: Unicode signs, TeX's layout and typing habits become plain LaTeX.

Text work only, in linear time. Letters keep their case, and no letter of another alphabet becomes a Latin one.
"""

import re
import unicodedata

from conclip.grading.tex import FONTS, SYNONYMS

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₘ", "0123456789+-=()nkm")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₘ]+")
_VULGAR = re.compile("[¼½¾⅐-⅞↉]")

# These are replaced before compatibility normalisation, which would turn them into other characters.
_OWN_SIGNS = str.maketrans(
    {
        "ℝ": "\\mathbb{R}", "ℕ": "\\mathbb{N}", "ℤ": "\\mathbb{Z}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}", "º": "°",
        "˚": "°", "…": "\\ldots ", "⋯": "\\cdots ",
    }
)  # fmt: skip
_GREEK = {
    chr(code): f"\\{name} "
    for first, names in (
        (0x3B1, "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
                "sigma sigma tau upsilon phi chi psi omega"),
        (0x391, "Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda Mu Nu Xi Omicron Pi Rho "
                "Final Sigma Tau Upsilon Phi Chi Psi Omega"),
    )
    for code, name in enumerate(names.split(), start=first)
}  # fmt: skip
_SIGNS = str.maketrans(
    _GREEK
    | {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‒": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ",
        "•": "\\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ",
        "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "≡": "\\equiv ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
        "∅": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ", "∖": "\\setminus ", "°": "^\\circ ", "′": "'", "’": "'",
        "∠": "\\angle ", "△": "\\triangle ", "。": ".", "、": ",", "ℓ": "\\ell ", "∣": "|", "∥": "\\parallel ",
        "⊥": "\\perp ", "→": "\\to ",
    }
)  # fmt: skip


def from_unicode(text: str) -> str:
    """Write full-width, raised, lowered and mathematical characters in LaTeX, and drop invisible ones.

    Example: ``１０⁻³`` gives ``10^{-3}``, ``2½`` gives ``2\\frac{1}{2}``.
    """
    if text.isascii():
        return text
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").translate(_OWN_SIGNS)
    text = _VULGAR.sub(lambda m: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text)
    text = _RAISED.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    for sign, command in (("√", "\\sqrt"), ("∛", "\\sqrt[3]"), ("∜", "\\sqrt[4]")):
        text = _roots(text, re.compile(re.escape(sign)), command)
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


_ARGUMENT = re.compile(r"\s*(\d+(?:\.\d+)?|[A-Za-z])")


def _roots(text: str, sign: re.Pattern[str], command: str) -> str:
    """Replace `sign` by `command` and put its argument in braces: a whole number, a letter, or a text in parentheses."""
    pieces = sign.split(text)
    done = pieces[0]
    for piece in pieces[1:]:
        if match := _ARGUMENT.match(piece):
            done += f"{command}{{{match[1]}}}{piece[match.end() :]}"
        elif piece.lstrip().startswith("("):
            inner = piece.lstrip()
            end = closing(inner, 0)
            done += f"{command}{{{inner[1:end]}}}{inner[end + 1 :]}" if end else command + piece
        else:
            done += command + piece
    return done


def closing(text: str, begin: int) -> int | None:
    """Return where the bracket that opens at `begin` closes; brackets of any kind match each other, as in ``[0, 1)``."""
    depth = 0
    for position in range(begin, len(text)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if depth == 0:
                return position
    return None


def nesting(text: str) -> int:
    """Return the largest number of brackets that are open at one place."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


_DELIMITERS = re.compile(r"\$\$(.*)\$\$|\$([^$]*)\$|\\\[(.*)\\\]|\\\((.*)\\\)", re.DOTALL)
_SPACING = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|left|right|middle|[bB]igg?[lrm]?|[hv]space\*?\{[^{}]*\}|phantom(?=\W)|color\{[^{}]*\}"
    r"|tiny|small|normalsize|large|Large|LARGE|huge|Huge|mathstrut|strut|nolimits)(?![a-zA-Z])\.?"
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|left|right|boxed|text[a-z]*|math[a-z]+|pi|cdot|times|l?dots|leq?|geq?|neq?|infty|cup|in|pm"
    r"|alpha|beta|gamma|theta|begin|end|sin|cos|tan|log|ln|circ|quad|overline|binom)(?![a-zA-Z]))"
)
"""A backslash that somebody escaped once too often: no row of a matrix begins with such a word."""

_GLUED = re.compile(r"(\\q?quad)(?=[a-zA-Z])(?!quad)")
_CALCULATOR = re.compile(
    r"(?<![\\a-zA-Z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp)"
    r"(?=\s*\(|\s*\^|_|\s*\d|\s+[a-zA-Z](?![a-zA-Z])|\s*\\(?:frac|pi|theta|alpha|left|sqrt))"
)
"""Functions as calculators spell them."""

_WRAPPED = re.compile(r"\\(?:underline|fbox|boxed|mathop|mathstrut|(?:textcolor|colorbox)\s*\{[^{}]*\})\s*(?=\{)")
_HABITS = tuple(
    (re.compile(pattern), plainly)
    for pattern, plainly in (
        (r"\\phantom\s*\{[^{}]*\}", ""),
        (r"\\not\s*=", r"\\ne "),
        (r"=<(?![^>]*>)", r"\\le "),
        (r"\{\s*([-+=<>*/]|\\(?:times|cdot|div|pm)(?![a-zA-Z]))\s*\}", r"\1 "),
        (r"(?<![\\}a-zA-Z])\{\}(?=[\^_])", ""),
        (r"\\(?:text|mathrm)\s*\{\s*(\^\\circ)\s*\}", r"\1 "),
        (r"(?<=[\d}])\s*\^\s*\{?\s*(?:\\(?:text|mathrm)\s*\{\s*o\s*\}|o(?![a-zA-Z]))\s*\}?", r"^\\circ "),
        (r"\^\s*\{?(\d+)\}?\s*/\s*_\s*\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        (r"\(\s*\\?(?:text|mathrm)?\s*\{?\s*mod\s*\}?\s*\\?\s*(\d+)\s*\)", r"\\pmod{\1}"),
        (r"(?<=\d)\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", r".\1\\overline{\2\3\4}"),
        (r"(?<=\d)\.\((\d+)\)", r".\\overline{\1}"),
        (r"(?<=\d)\.(\d*)\\(?:bar|overline)\s*\{?\s*(\d+)\s*\}?", r".\1\\overline{\2}"),
        (r"(?<!\d)\.\\(?:bar|overline)(?=\s*\{?\d)", r"0.\\overline"),
        (r"(?<=\d)\s*\^\s*\{\s*(?:\\(?:text|mathrm)\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th))\s*\}\s*$", ""),
        (r"(?<=\d)\s*(?:\^\s*)?\\(?:text|mathrm|textsuperscript)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*$", ""),
        (r"(?<=\d)(?:st|nd|rd|th)(?=\s*(?:\}|,|$))", ""),
        (r"\{\s*\\(bf|it|sf|tt|em|rm)\s+([^{}\\]*)\}", r"\\mathrm{\2}"),
        (r"^\s*\\(?:bf|it|sf|tt|em|rm)\s+(?=[^\s{])", ""),
        (r"\\(?:label|tag)\s*\{[^{}]*\}|\\(?:blacksquare|square|checkmark|qed|Box)(?![a-zA-Z])\s*$", ""),
        (r"(?<=[)\]}])\s*(?:U|\\text\s*\{\s*U\s*\})\s*(?=[(\[]|\\\{)", r" \\cup "),
        (r"(?<=[\d}])\s*(?:\\text\s*\{\s*)?and\s+a\s+half\b\s*\}?", r"\\frac{1}{2}"),
        (r"(?<=[\d}])\s*\\deg(?![a-zA-Z])", r"^\\circ "),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"(\\text\s*\{[^{}]*?[A-Za-z])\s+(and|or)\s*\}", r"\1} \\text{ \2 }"),
        (r"(?<=\d)\{:\}(?=\d)", ":"),
        (r"_\s*\{\s*\(\s*(\d+)\s*\)\s*\}|_\s*\{\s*\\(?:text|mathrm)\s*\{\s*base\s*\}?\s*(\d+)\s*\}{1,2}", r"_{\1\2}"),
        (r"(?<=\d)\s*(?:\\text\s*\{\s*)?\(?\s*(?:in\s+)?base\s*\}?\s*(\d+)\s*[)}]*$", r"_{\1}"),
        (r"\\overline\s*\{(\d+)\}(?=\s*_)", r"\1"),
        (r"(?<![\w.\\])(\d+)\s*_\s*(?:\{\s*10\s*\}|10(?!\d))", r"\1"),
        (r"(?<=[)\]])\s*\^\s*\{?\s*(?:T|\\top)\s*\}?\s*$", ""),
        (r"(?:\{\}\s*|(?<![\w}\]]))[_^]\s*\{?(\w+)\}?\s*(?:C|\\(?:text|mathrm)\{C\})\s*_\s*\{?(\w+)\}?", r"\\binom{\1}{\2}"),
        (
            r"(?<![A-Za-z\\])(?:C|\\(?:text|mathrm)\{C\})\s*(?:_\s*(?:\{(\d+|n)\}|(\d|n))\s*\^\s*(?:\{(\w+)\}|(\w))|\^\s*(?:\{(\w+)\}|(\w))\s*_\s*(?:\{(\d+|n)\}|(\d|n)))",
            r"\\binom{\1\2\7\8}{\3\4\5\6}",
        ),
        (r"^\s*(?:\\text\s*\{\s*)?(?:[Aa]ns|[Aa]nswer)\s*[.:]\s*\}?\s*(?=\S)", ""),
        (r"\\root\s*\{?(\d+)\}?\s*\\of\s*\{", r"\\sqrt[\1]{"),
        (r"(?<![A-Za-z\\])(?:negative|minus)\s+(?=[\d\\.])|\\text\s*\{\s*(?:negative|minus)\s*\}\s*(?=[\d\\.])", "-"),
        (
            r"\s*(?:\\text\s*\{\s*)?\(\s*(?:or|about|approximately|approx\.?|i\.e\.,?)\s*\}?\s*(-?\d[\d.,]*)\s*\)\s*\}?\s*$",
            r" \\approx \1",
        ),
    )
)
"""Ways of writing that mean nothing but the plain one."""

_OVER = re.compile(r"([^{}&,=]+)\\over(?![a-zA-Z])([^{}&,=]+)")
_INFIX = re.compile(r"\{([^{}]*?)\\(over|choose)(?![a-zA-Z])([^{}]*)\}")
_STYLE = r"\\(?:" + "|".join(sorted(FONTS, key=len, reverse=True)) + ")"
STYLED = re.compile(rf"{_STYLE}\s*\{{([^{{}}]*)\}}")
"""Matches words and letters in a font; the group is the text in it."""

_TIMES = re.compile(r"(?<=[\d}])\s*(?:[xX*]|\\(?:mathrm|text)\{\s*[xX]\s*\})\s*(?=10\s*\^)")
_FLOAT = re.compile(r"(?<![A-Za-z\d])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d+)(?![\dA-Za-z]|\.\d)")
_GROUPED_BY_SPACES = re.compile(r"(?<![\d.,/])\d{1,3}(?:\s\d{3})+(?![\d/])")
_EUROPEAN = re.compile(r"-?\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|-?\d{1,3}(?:\.\d{3})+,\d+")
_PRICE = re.compile(r"-?\s*\$\s*\d[\d,.]*(?:\s?/\s?[a-z]{3,})?")
_QUOTED = re.compile(r"([\"'`]{1,2})([^\"'`]+)\1|“([^”]+)”|``([^`']+)''")
_PRICE_BEHIND = re.compile(r"^(?:\\\$)?\s*(-?\d[\d,.]*)\s*\\\$$")
_LEADING = re.compile(
    r"^(?:(?:\\q?quad(?![a-zA-Z])|\s)+|\\(?:approx|therefore|implies|Rightarrow|simeq|sim)(?![a-zA-Z])|=)\s*"
)
_TRAILING = re.compile(r"(?:\\\\|\\,|\\(?=\s*$)|\\q?quad|[.;,]|\s)+$")
_NO_WORDS = frozenset({"and", "or", "am", "pm", "percent"})
"""Words that may occur in a formula that is set as text."""

_DOTS = re.compile(r"\s*(?:\\[lcd]?dots[bcimo]?(?![a-zA-Z])|\.\.\.+)\s*")


def clean(text: str) -> str:
    r"""Return an answer in plain LaTeX: without delimiters of formulas, layout, a leading sign of (near) equality or a final
    full stop, and with ``\ldots`` for all dots.

    Example: ``$\left( 1,\, \dfrac{9}{2} \right)$.`` gives ``( 1, \frac{9}{2} )``.
    """
    return _final_spelling(_without_layout(text))


def _without_layout(text: str) -> str:
    """Drop delimiters of formulas and layout, and write commands in their plain form."""
    text = from_unicode(text).strip()
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])", "^", text) if not text.startswith("**") else text
    text = text.replace("**", " ").strip()
    if quoted := _QUOTED.fullmatch(text):
        text = next(part for part in quoted.groups()[1:] if part).strip()
    while match := _DELIMITERS.fullmatch(text):
        text = next(part for part in match.groups() if part is not None).strip()
    text = _DOUBLED.sub(r"\\", text)
    text = _GLUED.sub(r"\1 ", text)
    text += "}" * _missing_braces(text)
    text = re.sub(r"\\!\s*", "", text)
    text = re.sub(r"(?:(?<=[1-9])|(?<=\d\d))\s*\{\s*,\s*\}\s*(?=\d{3}(?!\d))", "", text)  # of thousands, nothing else
    text = re.sub(r"\s*\{\s*,\s*\}\s*(?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ".", text)
    text = re.sub(r"(?<=\d)\s+\.(?=\d)", ".", text)
    for pattern, plainly in _HABITS:
        text = pattern.sub(plainly, text)
    text = _SPACING.sub("", text)
    text = _COMMAND.sub(_synonym, text)
    text = re.sub(r"(?<!\\)\\[;:, >]|(?<!\\)\\(?=\s)|~", " ", text)
    text = text.replace("\\%", "%").replace("\\#", "").replace("\\&", "&")
    text = _INFIX.sub(
        lambda m: f"\\{'frac' if m[2] == 'over' else 'binom'}{{{m[1].strip()}}}{{{m[3].strip()}}}", _WRAPPED.sub("", text)
    )
    if fraction := _OVER.fullmatch(text):
        text = f"\\frac{{{fraction[1].strip()}}}{{{fraction[2].strip()}}}"
    text = re.sub(r"\\\\\[\s*[\d.]+\s*\w+\s*\]", r"\\\\", text)
    text = re.sub(r"\\(?:text|mbox|mathrm)\s*\{\s*([,;:])\s*\}", r"\1 ", text)
    text = re.sub(r"\^\s*\{?\s*\\circ(?![a-zA-Z])\s*\}?", r"^\\circ ", text)
    text = re.sub(
        r"(?<=\d)(\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*)?)([AaPp])\.?\s?[Mm]\b\.?", lambda m: f"{m[1]}{m[2].lower()}m", text
    )
    return text


def _final_spelling(text: str) -> str:
    """Spell numbers, functions and brackets in one way, and drop what surrounds the answer."""
    text = _PRICE_BEHIND.sub(r"\\$\1", text.strip())
    text = text if _PRICE.fullmatch(text) else re.sub(r"(?<!\\)\$", "", text)
    text = re.sub(r"(?<!\\)\$", r"\\$", text)
    text = re.sub(r"^(?:\\[\]\)])+|(?:\\[\[\]\(\)])+$", "", text.strip())
    text = _roots(text, re.compile(r"(?<![\\a-zA-Z])sqrt(?=\s*[\d(A-Za-z])"), "\\sqrt")
    text = _CALCULATOR.sub(r"\\\1", text)
    text = re.sub(r"(?<![\\a-zA-Z])(pi|theta)(?![a-zA-Z])", r"\\\1 ", text)
    text = re.sub(r"(?<![a-zA-Z])\\?(?:[Ii]nfinity|infty|inf)(?![a-zA-Z])", r"\\infty ", text)
    text = _TIMES.sub(r" \\times ", text)
    text = _FLOAT.sub(r"\1 \\times 10^{\2}", text)
    text = _DOTS.sub(r" \\ldots ", text)
    text = _GROUPED_BY_SPACES.sub(lambda m: re.sub(r"\s", "", m[0]), text)
    text = _TRAILING.sub("", _LEADING.sub("", text.strip()))
    if _EUROPEAN.fullmatch(text):
        text = text.replace(".", "").replace(",", ".")
    if re.fullmatch(r"\][^\[\]]*,[^\[\]]*[\[\]]|\[[^\[\]]*,[^\[\]]*\[", text):  # ]0, 1[ is an open interval
        text = ("(" if text[0] == "]" else "[") + text[1:-1] + (")" if text[-1] == "[" else "]")
    if segment := re.fullmatch(r"\\(?:overline|overleftrightarrow)\s*\{\s*([A-Z]{2})\s*\}", text):
        text = segment[1]
    if text.endswith((")", "]")) and not re.search(r"[(\[]", text):
        text = text[:-1]
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    if (whole := STYLED.fullmatch(text.strip())) and (
        set(re.findall(r"[A-Za-z]{2,}", whole[1])) <= _NO_WORDS or re.match(r"\s*-?\d[\d,.]*\s+[A-Za-z]", whole[1])
    ):
        text = whole[1]
    return text.strip()


def _synonym(command: re.Match[str]) -> str:
    other = SYNONYMS.get(command[1])
    if other is None:
        return command[0]
    return f"\\{other}" if other[:1].isalpha() or other in ("{", "}", "$") else other


def _missing_braces(text: str) -> int:
    """Return how many braces a text leaves open."""
    bare = re.sub(r"\\[{}]", "", text)
    return max(0, bare.count("{") - bare.count("}"))


_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


def compact(text: str) -> str:
    r"""Drop spaces, thousands separators and needless braces of a cleaned answer: equal results mean the same spelling."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if not re.search(r"[(\[{]", text) else text
    text = text.replace(":", "|") if text.startswith("\\{") else text
    return _SPACE.sub("", " ".join(re.sub(r"\{(\w)\}", r"\1", text).split()))


def in_words(pattern: str) -> str:
    """Return the regular expression of words in a font or without one."""
    return rf"(?:\\(?:text|textrm|mathrm|mbox)\s*\{{\s*(?:{pattern})\s*\}}|(?<![A-Za-z\\])(?:{pattern})(?![A-Za-z]))"


def plain(text: str) -> str:
    r"""Drop the fonts: ``\text{ cm}`` gives `` cm ``."""
    return STYLED.sub(r" \1 ", text)
