r"""Units, currencies and the per cent sign beside a value: which words they are, and which of them are the same.

A unit that only one of two answers has is dress; two units must be the same one. Nothing is converted. A word is a unit if this
file knows it, or if it stands behind a number and is no word that changes the number (``half``, ``less``, ``pm``).
"""

from __future__ import annotations

import re

from rlrt.verifiers.dress import DOLLAR, FUNCTIONS
from rlrt.verifiers.numerals import WORDS, number_of

PERCENT = "%"

_SAME = """
    m meter meters metre metres|cm centimeter centimeters centimetre centimetres
    mm millimeter millimeters millimetre millimetres|km kilometer kilometers kilometre kilometres
    nm nanometer nanometers|ft foot feet|in inch inches|yd yard yards|mi mile miles|g gram grams|kg kilogram kilograms
    mg milligram milligrams|lb lbs|pound pounds|oz ounce ounces|ton tons tonne tonnes|s sec secs second seconds
    ms millisecond milliseconds|min mins minute minutes|h hr hrs hour hours|day days|week weeks|month months
    yr yrs year years|l liter liters litre litres|ml milliliter milliliters millilitre millilitres|gal gallon gallons
    mph|acre acres|hectare hectares|rad radian radians|degree degrees deg|unit units|n newton newtons|j joule joules
    w watt watts|kw kilowatt kilowatts|v volt volts|k kelvin|hz hertz|pa pascal pascals|mol mole moles
    dollar dollars usd|cent cents|euro euros eur|pence penny pennies|rupee rupees rs|yen|yuan|gbp|person persons people
    child children|man men|woman women|mouse mice|tooth teeth|goose geese|die dice|square sq|cubic cu|kmh kph
"""
NAMES = {
    word: group.split()[0] for line in _SAME.strip().splitlines() for group in line.strip().split("|") for word in group.split()
}  # fmt: skip
"""Known units, each with the one name of all its spellings."""
_AMBIGUOUS = frozenset("m g s h l n j w v k pa in min rs yd mi".split())  # noqa: SIM905
"""Names that are also variables or words: units only after a space or in ``\\text``."""
NO_UNIT = (
    frozenset(WORDS)
    | frozenset(FUNCTIONS)
    | frozenset(
        """
        thousand million billion trillion dozen hundreds thousands millions half halves third thirds quarter
        quarters fourth fifth twice double triple couple pair plus minus times over divided by multiplied
        squared cubed factorial root power mod modulo base and or if for where when otherwise to from with
        without of off the a an is are not no none never than less more fewer greater least most between below
        above under left right up down per negative positive am pm noon midnight bc ad remainder percent
        percentage pct pi infinity even odd prime true false yes east west north south st nd rd th
        approximately about choose such that as in on at
        """.split()  # noqa: SIM905
    )
) - {"in", "per"}
"""Words behind a number that are no unit: they change what it says."""
SCALING = frozenset(
    """
    doubled halved tripled quadrupled inverted inverse reciprocal repeating repeated recurring gross score lakh crore googol
    myriad mil kilo mega giga wrong incorrect
    """.split()  # noqa: SIM905
)
"""Words that make a number another one, or deny it, wherever they stand beside it."""
_PARTS = re.compile(
    r"(?:[a-z]*illion|[a-z]*illiard|hundred|thousand|ten)s?"
    r"|(?:fif|six|seven|eigh|nin|ten|eleven|twelf|[a-z]+teen|[a-z]+tie|hundred|thousand|[a-z]*illion)ths?"
)
"""Names of scales and of parts: ``quadrillion``, ``hundredths``."""
_MEGA = re.compile(r"M(Hz|Wh|W|J|Pa|V|N|A|eV|g|m|s|l|L|bit|b|B)")
"""Units whose capital is a million times another unit, and not its other spelling: ``MW`` and ``mW``."""
_CURRENCIES = {
    DOLLAR: "dollar",
    "€": "euro",
    "£": "gbp",
    "¥": "yen",
    "₹": "rupee",
    "¢": "cent",
    "US" + DOLLAR: "dollar",
    "USD": "dollar",
    "Rs.": "rupee",
}
_BEFORE = re.compile(rf"(?P<sign>-? ?)(?P<currency>US{DOLLAR}|USD|Rs\.|{DOLLAR}|€|£|¥|₹) ?(?P<rest>.*)", re.DOTALL)
_AFTER = re.compile(rf"(?P<rest>.*[\d}})]) ?(?P<currency>{DOLLAR}|€|£|¥|₹|¢)", re.DOTALL)
_PERCENT = re.compile(
    r"(?P<rest>.*?) ?(?:%|\\text\{ ?(?:%|percent|per cent|percentage|pct) ?\}|(?<=[\s\d])(?:percent|per cent|pct))",
    re.DOTALL,
)
_DEGREES = re.compile(
    r"(?P<rest>.*[\d})a-zA-Z]) ?(?:\^ ?\{ ?\\circ ?\}|\^ ?\\circ) ?(?P<scale>[CF]|\\text\{[CF]\})?", re.DOTALL
)
_MARKS = re.compile(r"(?P<rest>-?[\d.]+) ?(?P<mark>'{1,2}|\"|\^ ?\{ ?(?:\\prime ?){1,2}\}|\^ ?\\prime)")
_LAST = re.compile(
    r"(?P<gap> ?)(?:\\text\{(?P<text>[^{}]*)\}|(?<![A-Za-z\\])(?P<word>[A-Za-z]+)|\((?P<aside>[A-Za-z ]+)\))"
    r"(?: ?\^ ?(?:\{ ?(?P<power>-?\d) ?\}|(?P<power2>\d)))?\Z"
)
_SLASHED = re.compile(r"\\text\{([A-Za-z. ]+)/([A-Za-z. ]+)\}")
_JOINT = re.compile(r" ?(?:/|\\cdot|\*|\\times|(?<=[A-Za-z}\d])-| )\Z")
_OPEN = re.compile(r"(?:[=<>+*/^_,:;(\-]|\\(?:times|cdot|le|ge|ne|pm|in|cup))\s*\Z")
"""The end of what is no value."""
_VOWEL = re.compile(r"[aeiou]")


def peeled(text: str) -> tuple[str, str]:
    """Return an undressed answer's value and its unit in the one spelling; the unit is empty if there is none."""
    match = _PERCENT.fullmatch(text)
    if match is not None and match["rest"]:
        return match["rest"].strip(), PERCENT
    match = _BEFORE.fullmatch(text)
    if match is not None:
        inner, unit = peeled(match["rest"])
        same = unit in ("", _CURRENCIES[match["currency"]])
        return (match["sign"].strip() + inner, _CURRENCIES[match["currency"]]) if same else (text, "")
    match = _AFTER.fullmatch(text)
    if match is not None:
        return match["rest"].strip(), _CURRENCIES[match["currency"]]
    match = _DEGREES.fullmatch(text)
    if match is not None and not re.search(r"\\(?:sin|cos|tan|sec|csc|cot)", text):
        scale = (match["scale"] or "").removeprefix("\\text{").removesuffix("}")
        return match["rest"].strip(), f"degree {scale}".strip()
    match = _MARKS.fullmatch(text)
    if match is not None:  # minutes and seconds of an angle, or feet and inches
        double = match["mark"] in ("''", '"') or match["mark"].count("prime") == 2
        return match["rest"], "''" if double else "'"
    return words_off(text)


def same_unit(one: str, other: str) -> bool:
    """True if two units are the same, or one answer has none; a pound is a weight or a currency."""
    return not one or not other or one == other or {one, other} in ({"pound", "lb"}, {"pound", "gbp"})


def words_off(text: str) -> tuple[str, str]:
    """Return a value and the unit words behind it; all of the text if the words are no unit or nothing is left of it."""
    rest, names, over = _SLASHED.sub(r"\\text{\1}/\\text{\2}", text), list[str](), False
    while True:
        match = _LAST.search(rest)
        if match is None or match.start() == 0:
            break
        head = rest[: match.start()]
        joint = _JOINT.search(head)
        words = (match["text"] or match["word"] or match["aside"]).replace(".", "").replace("-", " ").strip("~ ")
        compound = joint is not None and joint[0].strip() in ("/", "\\cdot") and len(words) < 4
        in_text = match["word"] is None or compound
        name = name_of(words, head + match["gap"], in_text, match["aside"] is not None)
        if name is None:
            break
        power = match["power"] or match["power2"]
        sign = joint[0].strip() if joint is not None else ""
        over = sign in ("/", "\\cdot")
        names.append(("/" if sign == "/" else "") + name + (f"^{power}" if power else ""))
        rest = head[: joint.start()] if joint is not None else head
        if not rest:
            return text, ""
    if not names or over or not rest.strip() or _OPEN.search(rest):
        return text, ""
    return rest.strip(), spelling(names[::-1])


def scales(word: str) -> bool:
    """True for a word, in lower case, that makes a number beside it another one, or denies it."""
    return not SCALING.isdisjoint((word, singular(word))) or _PARTS.fullmatch(word) is not None


def cased(word: str) -> str:
    """Return a word in lower case, with a capital that makes it another unit spelt out."""
    mega = _MEGA.fullmatch(word)
    if mega is None:
        return word.lower()
    return "mega" + ("bit" if mega[1] == "b" else mega[1].lower())


def name_of(words: str, head: str, in_text: bool, aside: bool) -> str | None:
    """Return the one name of unit words behind ``head``; None if they are no unit."""
    parts = words.split()
    if not parts or len(parts) > 4:
        return None
    lower = [cased(p) for p in parts]
    if parts in (["k"], ["M"]):  # thousand and million, or kelvin and molar
        return None
    if all(p in NAMES or p == "per" for p in lower):
        plain = not in_text and len(parts) == 1
        if plain and (lower[0] in _AMBIGUOUS or len(parts[0]) == 1) and not re.search(r"\d \Z", head):
            return None
        if plain and len(parts[0]) == 1 and parts[0] not in "mgshLNJWVK":
            return None
        return " ".join("per" if p == "per" else NAMES[p] for p in lower)
    if any(scales(p) or not NO_UNIT.isdisjoint((p, singular(p))) or not p.isalpha() for p in lower):
        return None
    number = number_of(re.sub(r"(?: ?[A-Za-z]+)* ?\Z", "", head.strip())) is not None
    if in_text and not aside:
        long = all(len(p) >= 2 for p in lower)
        return " ".join(singular(p) for p in lower) if long and (number or re.search(r"[\d})]\s*\Z", head)) else None
    if not number or not all(len(p) >= 3 and _VOWEL.search(p) and not is_product(p) for p in lower):
        return None
    return " ".join(singular(p) for p in lower) if aside or head.endswith(" ") else None


def singular(word: str) -> str:
    """Return a noun without the ending of its plural."""
    if word in NAMES:
        return NAMES[word]
    for ending, single in (
        ("ies", "y"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("sses", "ss"),
        ("xes", "x"),
        ("oes", "o"),
        ("s", ""),
    ):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            return word.removesuffix(ending) + single
    return word


def spelling(names: list[str]) -> str:
    """Return the one spelling of a unit's parts: ``square m`` and ``m^2`` are the same, ``mph`` and ``mi per h``, ``m/s``."""
    text = " ".join(names)
    text = re.sub(r"\bper ", "/", text).replace("/ ", "/")
    text = re.sub(r"\bsquare (\w+)", r"\1^2", text)
    text = re.sub(r"\bcubic (\w+)", r"\1^3", text)
    text = re.sub(r"(\w+) square\b", r"\1^2", text)
    text = re.sub(r" (\w+)\^-1\b", r" /\1", text)
    text = re.sub(r" (\w+)\^-(\d)\b", r" /\1^\2", text)
    text = text.replace("mph", "mi /h").replace("kmh", "km /h")
    return "" if text in ("unit", "unit^2", "unit^3") else re.sub(r"\s+", " ", text)


def is_product(letters: str) -> bool:
    """True for letters that are read as a product of variables (``xy``, ``abc``, ``mnp``), not as a word."""
    lower = letters.islower() and len(set(letters)) == len(letters) and len(letters) <= 5
    return lower and (set(letters) <= set("abcxyz") or set(letters) <= set("bcdfghjkmnpqrstvwxz"))
