r"""Reads the unit after a number: units of measure count, counted things do not.

``5\text{ cm}`` is a length, ``6\text{ ways}`` a 6. A unit may be missing on either side; where both have one they must
measure the same thing, and the numbers are compared in the same unit.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from conclip.grading.spelling import plain

_PREFIXES = {
    "p": ("pico", -12), "n": ("nano", -9), "μ": ("micro", -6), "m": ("milli", -3), "c": ("centi", -2), "d": ("deci", -1),
    "k": ("kilo", 3), "M": ("mega", 6), "G": ("giga", 9), "T": ("tera", 12),
}  # fmt: skip
# symbol and names; prefixes combine with all of them
_METRIC = (
    "m metre meter", "g gram gramme", "s second sec", "L litre liter", "A ampere amp", "K kelvin", "mol mole", "Hz hertz",
    "N newton", "J joule", "W watt", "Pa pascal", "V volt", "C coulomb", "F farad", "Ω ohm Ohm", "T tesla", "Wb weber",
    "H henry", "S siemens", "eV electronvolt", "Bq becquerel", "Gy gray", "Sv sievert", "cd candela", "lm lumen", "lx lux",
    "cal calorie", "bar", "rad radian", "bit", "B byte", "Wh", "M molar", "pc parsec", "t tonne",
)  # fmt: skip
# name -> (base unit, factor)
_OTHERS: dict[str, tuple[str, Fraction]] = {
    name: (unit, Fraction(factor))
    for names, unit, factor in (
        ("min minute", "s", 60), ("h hr hour", "s", 3600), ("day d", "s", 86400), ("week wk", "s", 604800),
        ("year yr", "year", 1), ("month", "year", Fraction(1, 12)), ("decade", "year", 10),
        ("century centuries", "year", 100), ("in inch inches", "inch", 1), ("ft foot feet", "inch", 12),
        ("yd yard", "inch", 36), ("mi mile", "inch", 63360), ("lb pound", "oz", 16), ("oz ounce", "oz", 1),
        ("ton", "ton", 1), ("gal gallon", "floz", 128), ("qt quart", "floz", 32), ("pt pint", "floz", 16),
        ("cup", "floz", 8), ("acre", "acre", 1), ("hectare ha", "hectare", 1), ("atm atmosphere", "atm", 1),
        ("knot", "knot", 1), ("degree deg", "degree", 1), ("°C celsius", "celsius", 1), ("°F fahrenheit", "fahrenheit", 1),
        ("dollar USD usd bucks buck", "dollar", 1), ("cent ¢", "dollar", Fraction(1, 100)), ("euro EUR €", "euro", 1),
        ("£ GBP", "sterling", 1), ("¥ yen JPY", "yen", 1), ("rupee Rs INR ₹", "rupee", 1), ("yuan RMB CNY", "yuan", 1),
        ("l", "L", 1), ("ml", "L", Fraction(1, 1000)), ("u amu Da", "u", 1), ("dB decibel", "dB", 1), ("rpm", "rpm", 1),
        ("rev revolution", "revolution", 1),
        ("Å angstrom", "m", Fraction(1, 10**10)), ("furlong", "inch", 7920), ("league", "inch", 190080),
        ("fathom", "inch", 72), ("hp horsepower", "hp", 1), ("lightyear ly", "ly", 1), ("AU", "AU", 1), ("ppm", "ppm", 1),
        ("ppb", "ppm", Fraction(1, 1000)), ("peso", "peso", 1), ("pence penny p", "pence", 1),
        ("nickel", "dollar", Fraction(1, 20)), ("dime", "dollar", Fraction(1, 10)),
        ("arcminute arcmin", "degree", Fraction(1, 60)), ("arcsecond arcsec", "degree", Fraction(1, 3600)),
        ("Kg KG", "g", 1000), ("stone", "oz", 224),
        ("slug", "slug", 1), ("dyne dyn", "N", Fraction(1, 10**5)), ("erg", "J", Fraction(1, 10**7)),
        ("torr mmHg", "torr", 1), ("BTU Btu", "Btu", 1), ("gauss", "T", Fraction(1, 10**4)), ("curie Ci", "Ci", 1),
        ("rem", "rem", 1), ("mach", "mach", 1), ("am AM", "am", 1), ("pm PM", "pm", 1),
    )
    for name in names.split()
}  # fmt: skip
_DERIVED = {
    base: (Fraction(factor), {name: int(power or 1) for name, _, power in (part.partition("^") for part in parts.split())})
    for base, factor, parts in (
        ("N", 1000, "m g s^-2"), ("J", 1000, "m^2 g s^-2"), ("W", 1000, "m^2 g s^-3"), ("Pa", 1000, "m^-1 g s^-2"),
        ("C", 1, "s A"), ("V", 1000, "m^2 g s^-3 A^-1"), ("Ω", 1000, "m^2 g s^-3 A^-2"),
        ("F", "1/1000", "m^-2 g^-1 s^4 A^2"), ("T", 1000, "g s^-2 A^-1"), ("Wb", 1000, "m^2 g s^-2 A^-1"),
        ("H", 1000, "m^2 g s^-2 A^-2"), ("Hz", 1, "s^-1"),
        ("L", "1/1000", "m^3"), ("M", 1000, "mol m^-3"), ("Wh", 3600000, "m^2 g s^-2"),
    )
}  # fmt: skip
"""Units that are products of others: a factor, and the powers of metre, gram, second, ampere and mole."""

_COMPOUND = {
    "mph": "mi/h",
    "kph": "km/h",
    "kmh": "km/h",
    "kmph": "km/h",
    "fps": "ft/s",
    "cc": "cm^3",
    "sqft": "ft^2",
    "psi": "lb/in^2",
    "Nm": "J",
    "bps": "bit/s",
    "kbps": "kbit/s",
    "Mbps": "Mbit/s",
    "Gbps": "Gbit/s",
}


def _table() -> dict[str, tuple[str, Fraction]]:
    table = dict(_OTHERS)
    for line in _METRIC:
        symbol, *names = line.split()
        for short, (long, power) in {"": ("", 0), **_PREFIXES}.items():
            factor = Fraction(10) ** power
            table.setdefault(short + symbol, (symbol, factor))
            for name in names:
                table.setdefault(long + name, (symbol, factor))
    return table


_UNITS = _table()


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measure: powers of base units, and the factor it has in them."""

    powers: Mapping[str, int]
    factor: Fraction


MAX_CHARS = 400
"""A longer text is no number with a unit."""

_PIECE = (
    r"(?:\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathit|mbox|operatorname|rm)\s*\{(?:[^{}]|\{[^{}]*\})*\}"
    r"|\{\s*\\rm\b[^{}]*\}|\^\\circ|\\Omega(?![a-zA-Z])|\\mu(?![a-zA-Z])|\\AA(?![a-zA-Z])|\\frac\s*\{UNIT\}\s*\{UNIT\}|€|£|¥|¢|₹|Å|°)"
).replace("UNIT", r"\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*\}[\s^\d]*")
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_JOIN = r"(?:\s|\\cdot(?![a-zA-Z])|/|\*|\.)*"
_STYLED_SUFFIX = re.compile(
    rf"(?P<value>.*?[^\s\\])\s*(?P<unit>(?:/\s*)?{_PIECE}{_POWER}(?:{_JOIN}{_PIECE}{_POWER})*)"
    rf"(?P<plain>(?:\s[A-Za-z][A-Za-z. /]*{_POWER})?)\.?",
    re.DOTALL,
)
_PLAIN_SUFFIX = re.compile(
    rf"(?P<value>.*?(?:[\d)}}!]|\\pi|(?<![A-Za-z])[ei]))(?P<space>\s*)"
    rf"(?P<unit>(?![ei](?![A-Za-z]))[A-Za-zμΩ][A-Za-zμΩ. ]*{_POWER}(?:\s*/\s*[A-Za-z]+{_POWER})*)",
    re.DOTALL,
)
_PERCENT = re.compile(
    r"(?:%|\s*\\(?:text|mbox|mathrm)\s*\{\s*(?:%|per\s?cent(?:age)?|pct)\s*\}|\s(?:per\s?cent(?:age)?|pct)(?![a-z])"
    r"|\s*\\(?:text|mbox|mathrm)\s*\{\s*(?:%|per\s?cent|pct)(?=\s+[A-Za-z]))"
    r"\s*(?P<noun>(?:\\(?:text|mbox|mathrm)\s*\{)?\s*(?:[A-Za-z]{2,}\s*)*\}?)\s*$"
)
_FRACTIONS = r"(?:thir|four|fif|six|seven|eigh|nin|ten|hundred|thousand)(?:d|th)"
_NO_UNIT = re.compile(
    r"\b(?:is|are|not|no|does|do|and|or|squared|cubed|factorial|wrong|impossible|than|except|unless|plus|minus|divided|"
    r"multiplied|least|most|hal(?:f|ves)|quarter|gross|negative|below\s+zero|to the \w+|(?:times|over|point)\s+\w+|"
    rf"{_FRACTIONS}s|{_FRACTIONS}$)\b",
    re.IGNORECASE,
)
"""Words that change the value of what comes before them."""

_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_MONEY = re.compile(
    r"^(?P<sign>-?)\s*(?:US)?(?:\\\$|\\text\s*\{\s*\\?\$\s*\}|(?P<name>\\text\s*\{\s*[€£¥₹]\s*\}|USD|EUR|€|£|¥|₹|Rs\.?)(?![A-Za-z]))\s*(?P<value>.+)$",
    re.DOTALL,
)


_ENDS_IN_OF = re.compile(r"\bof\s*\}?\s*$")
_PER = re.compile(r"\s*(?:/\s*(?:\\text\s*\{\s*)?|\b(?:per|an?)\s+|\\text\s*\{\s*(?:/\s*|(?:per|an?)\s+))[a-z]{3,}\s*\}?$")


def split_unit(text: str, *, letters: bool = True) -> tuple[str, str]:
    r"""Return (number, unit as spelled) of a cleaned answer; the unit is "" where there is none. `letters`: single letters
    without a font, and letters right after a number, may be units; else they are variables (``2 m``, ``2mg``).

    Example: ``\frac{1}{2}\text{ cm}`` gives (``\frac{1}{2}``, ``cm``), ``\$5`` gives ("5", "dollar"), ``2x`` ("2x", "").
    """
    if match := _MONEY.match(text):
        per = _PER.search(match["value"])
        value, behind = split_unit(match["value"][: per.start()] if per else match["value"])
        name = plain(match["name"] or "dollar").strip(" .")
        if behind and (behind.startswith("%") or read_unit(behind) is None):  # $5 profit
            return match["sign"] + value, behind if behind.startswith("%") else f"{behind} {name}"
        return match["sign"] + value, name
    if (match := _PERCENT.search(text)) and not (_NO_UNIT.search(match["noun"]) or _ENDS_IN_OF.search(match["noun"])):
        noun = plain(match["noun"]).strip(" }")  # 20 % of the students, a 20 % increase
        return text[: match.start()].rstrip(), f"% {noun}".rstrip()
    if len(text) > MAX_CHARS:
        return text, ""
    if match := _STYLED_SUFFIX.fullmatch(text):
        value, unit = match["value"], match["unit"] + match["plain"]
        if unit.startswith("^\\circ") and _FUNCTION.search(value):  # the degrees of an angle: sin 30°
            value, unit = value + "^\\circ ", unit.removeprefix("^\\circ").lstrip()
        if (
            not re.search(r"(?<![\^\d-])\d", re.sub(r"\^\s*\{", "^", plain(unit)))
            and not _NO_UNIT.search(plain(unit).strip())
            and plain(unit).strip() not in ("i", "e")
            and (not _has_letters(value) or _names(unit) & _UNITS.keys())
        ):
            return value, unit
    if (match := _PLAIN_SUFFIX.fullmatch(text)) and not (_has_letters(match["value"]) or _FUNCTION.search(match["value"])):
        names = _names(match["unit"])
        is_single = all(len(name) == 1 for name in names)
        if match["space"] and not _COMMAND_LAST.search(match["value"]):
            names -= {"a", "an", "of"} if any(len(name) > 2 for name in names) else set()  # pages a year
            is_unit = all(len(name) > 2 or _look_up(name, known_only=True) for name in names)
            is_unit = is_unit and (not is_single or _SPEED.fullmatch(match["unit"]) is not None or letters)
        else:
            is_unit = letters and all(len(name) > 1 and _look_up(name, known_only=True) for name in names)
        if is_unit and not _NO_UNIT.search(match["unit"]) and not (is_single and _SUM.search(_outside(match["value"]))):
            return match["value"], match["unit"]
    return text, ""


_COMMAND_LAST = re.compile(r"\\[a-zA-Z]+$")
_SPEED = re.compile(r"m\s*/\s*s(?:\s*\^\s*\{?2\}?)?")
"""Single letters that nobody takes for variables."""

_SUM = re.compile(r"(?<=[^\s^*/(+-])\s*[+-]")


def _outside(formula: str) -> str:
    """Return a formula with nothing in its brackets: the unit of ``(1+2) m`` is no factor of its last term."""
    previous = ""
    while previous != formula:
        previous, formula = formula, re.sub(r"[(\[{][^()\[\]{}]*[)\]}]", "#", formula)
    return formula


def _has_letters(formula: str) -> bool:
    """Return whether a formula has variables; e and i are numbers."""
    return re.search(r"[A-Za-df-hj-z]|[ei]{2}", re.sub(r"\\[a-zA-Z]+", " ", formula)) is not None


def _names(unit: str) -> set[str]:
    return {name for name in re.split(r"[\s/*.^{}\d-]+", re.sub(r"\\[a-zA-Z]+", " ", plain(unit))) if name}


_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "lakh": 10**5,
    "crore": 10**7,
}  # fmt: skip
_OPPOSITES = tuple(
    frozenset(words.split())
    for words in (
        "increase decrease", "profit loss", "gain loss deficit", "surplus deficit", "win lose", "wins losses", "left right",
        "north south east west", "northeast northwest southeast southwest", "up down", "above below", "before after",
        "clockwise counterclockwise anticlockwise", "more less fewer", "faster slower", "longer shorter", "taller smaller",
        "upward downward", "upwards downwards", "inward outward", "inwards outwards", "forward backward", "deeper higher",
        "forwards backwards", "ago now later", "warmer colder cooler", "heavier lighter", "older younger",
    )
)  # fmt: skip


def split_scale(unit: str) -> tuple[int, str]:
    """Return (factor, rest) of a unit that begins with a word for a number: ``million dollars`` gives (1,000,000,
    "dollars")."""
    words = plain(unit).split()
    if words == ["k"]:
        return 1000, ""
    factor = 1
    while words and words[0].lower().removesuffix("s") in _SCALES:
        factor *= _SCALES[words.pop(0).lower().removesuffix("s")]
    return (factor, " ".join(words)) if factor > 1 else (1, unit)


def are_opposed(first: str, second: str) -> bool:
    """Return whether the words after two numbers name opposite directions (``increase`` and ``decrease``)."""
    one, two = (set(re.findall(r"[a-z]+", plain(text).lower())) for text in (first, second))
    return any((one & words) and (two & words) and (one & words) != (two & words) for words in _OPPOSITES)


_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?\s*(?:and\b|,)?\s*")


def read_compound(text: str) -> tuple[Fraction, str] | None:
    """Return (number, unit) of a quantity in several units of one dimension, the largest first: ``2 hours 30 minutes`` is
    9000 s; None for others, such as the two lengths ``5 cm, 12 cm``."""
    parts = [(m[1], _look_up(m[2], known_only=True)) for m in _PART.finditer(plain(text).strip())]
    if len(parts) < 2 or _PART.sub("", plain(text).strip()) or any(len(units) != 1 for _, units in parts):
        return None
    sizes = [units[0][1] for _, units in parts]
    if (
        len({units[0][0] for _, units in parts}) > 1
        or any(b >= a for a, b in pairwise(sizes))
        or ("," in text and parts[0][1][0][0] == "m")
    ):
        return None
    return sum((Fraction(number) * units[0][1] for number, units in parts), Fraction(0)), parts[0][1][0][0]


_SQUARE = re.compile(r"\b(?:(square|sq)|(cubic|cu))\.?\s+", re.IGNORECASE)


def read_unit(text: str) -> Unit | None:
    """Return the unit of measure that a text names; None for counted things, which decide nothing.

    A short symbol that is in no list is a unit of its own kind, so that it may be left out but not replaced.

    Example: ``km/h`` is 5/18 metre a second, ``square inches`` inch^2, ``ways`` None.
    """
    text = re.sub(r"\\frac\s*\{((?:[^{}]|\{[^{}]*\})*)\}\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1/\2", text)
    for command, sign in (("^\\circ", " ° "), ("\\Omega", "Ω"), ("\\mu", "μ"), ("µ", "μ"), ("\\AA", "Å"), ("\\cdot", " ")):
        text = text.replace(command, sign)
    text = re.sub(r"\^\s*\{\s*(-?\d)\s*\}", r"^\1", text)
    text = re.sub(r"\s*\^\s*(-?\d)", r"^\1", re.sub(r"\\[a-zA-Z]+|[{}~]|\\,", " ", text))
    text = re.sub(r"(?<=μ)\s+(?=[A-Za-zΩ])|(?<=\b[kMm])\s+(?=Ω)", "", text)
    text = re.sub(r"°\s*([CF])\b", r"°\1", text)
    text = (
        re.sub(r"(?:degrees?|deg)\s+(?=celsius|fahrenheit|C\b|F\b)", "°", text, flags=re.IGNORECASE)
        .replace("°celsius", "°C")
        .replace("°Celsius", "°C")
        .replace("°fahrenheit", "°F")
        .replace("°Fahrenheit", "°F")
    )
    text = re.sub(r"\blight[\s-]years?\b", "lightyear", text)
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", text)  # N-m
    text = re.sub(
        r"\b([ap])\.\s?m\.?", r"\1m", re.sub(r"\s+per\s+|\s+an?\s+", "/", text.replace("(", " ").replace(")", " "))
    )
    text = _SQUARE.sub(lambda m: "SQUARE" if m[1] else "CUBIC", text)
    powers: dict[str, int] = {}
    factor = Fraction(1)
    for position, part in enumerate(text.split("/")):
        for word in re.split(r"[\s*.·]+", part):
            name, _, power = word.partition("^")
            if power and not re.fullmatch(r"-?\d", power):
                name, power = word, ""  # an unknown unit
            exponent = int(power or 1) * (-1 if position else 1)
            for adjective, times in (("SQUARE", 2), ("CUBIC", 3)):
                if name.startswith(adjective):
                    name, exponent = name.removeprefix(adjective), exponent * times
            for base, size, inner in _look_up(name):
                powers[base] = powers.get(base, 0) + inner * exponent
                factor *= size**exponent
    for derived in [base for base in powers if base in _DERIVED]:
        times = powers.pop(derived)
        factor *= _DERIVED[derived][0] ** times
        for base, power in _DERIVED[derived][1].items():
            powers[base] = powers.get(base, 0) + power * times
    powers = {base: power for base, power in powers.items() if power}
    return Unit(powers, factor) if powers else None


def _look_up(name: str, *, known_only: bool = False) -> list[tuple[str, Fraction, int]]:
    """Return (base unit, factor, power) for each part of one name; nothing for words that are no units."""
    if name == "°":
        name = "degree"
    if name in _COMPOUND:
        top, _, bottom = _COMPOUND[name].partition("/")
        base, _, power = top.partition("^")
        numerator = [(b, f ** int(power or 1), p * int(power or 1)) for b, f, p in _look_up(base)]
        base, _, power = bottom.partition("^")
        return numerator + [
            (b, 1 / f ** int(power or 1), -p * int(power or 1)) for b, f, p in (_look_up(base) if bottom else [])
        ]
    singular = name[:-1] if len(name) > 3 and name.endswith("s") else name
    for spelled in (name, singular, name.lower() if len(name) > 3 else name, singular.lower() if len(name) > 3 else name):
        if spelled in _UNITS:
            base, factor = _UNITS[spelled]
            return [(base, factor, 1)]
    is_symbol = name and not known_only and len(name) <= 4 and (len(name) <= 2 or not name.islower() or not name.isascii())
    return [(f"symbol {name}", Fraction(1), 1)] if is_symbol else []
