r"""Numbers in answers: the last one that a text states, as exact values.

    1,200.50   1 200 (no-break)   1_200   1{,}200    one number: groups of three, the first without
                                                     a leading zero
    [1,2]   f(3,4)   3,5   [100,200]   1,2345        several
    -5   −5   –5   x = - 5   -$5   $-5               negative: a dash before a digit (or a currency)
    12-15   2019–2020   A-5   7 - 5                  no sign: a dash after a digit, a letter or a
                                                     closing bracket, or with a space after it
    6.02e23   6.02 × 10^{23}   10⁵   2^10            powers are multiplied out
    3/4   1 1/2   ½   \frac{3}{4}   -\dfrac12        fractions are divided
    50%   $5   5 km   5kg   12 m²   ٣   ４            units, currencies and scripts change nothing
    H2O   x_1   x^2   m2                             no numbers
    12:30   3:4   12/25/2024   2024-12-25   1.2.3    one of several parts, all of which must be
                                                     equal; a plain number is compared with its last
    (5)   ($5)                                       5: parentheses are no sign

Where a text has a \boxed{...}, only the last of these is read.
"""

import collections
import re
import unicodedata
from decimal import Decimal, InvalidOperation
from fractions import Fraction

Value = tuple[Fraction | Decimal, ...]
"""A number, or the parts of a time, ratio, date or version."""

_LARGEST = 400  # decimal digits beyond which a power is compared as it is written

_UNSIGNED = (
    r"(?:(?<![0-9],)[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
)
_NUMBER = rf"(?:{_UNSIGNED})(?:[eE][+-]?[0-9]+(?![0-9A-Za-z]))?"
_ARGUMENT = rf"(?:\{{\s*([+-]?(?:{_NUMBER}))\s*\}}|([0-9]))"
_POWER = r"(?:\s*\^\s*|\*\*)(?:\{\s*([+-]?[0-9]+)\s*\}|([+-]?[0-9]+))"
_TOKEN = re.compile(
    # no digit in a word, a decimal, an exponent or an index
    r"(?<![A-Za-z0-9_^])(?<![0-9]\.)(?<![\^_]\{)(?<!\^-)(?<!\^\{-)"
    r"(?P<sign>(?<![0-9A-Za-z)\]}%])[+-])?(?:[$€£¥₹]\s?)?"
    r"(?:"
    rf"(?P<fraction>(?:(?P<whole>[0-9]+)\s*)?\\[dtc]?frac\s*{_ARGUMENT}\s*{_ARGUMENT})"
    r"|(?P<parts>[0-9]+(?::[0-9]+)+|[0-9]+(?:\.[0-9]+){2,}|[0-9]+/[0-9]+/[0-9]+"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9]))"
    r"|(?P<hex>0[xX][0-9a-fA-F]+\b)"
    rf"|(?P<mixed>[0-9]+) (?P<over>[0-9]+)/(?P<under>[0-9]+)(?![0-9/])"
    rf"|(?P<upper>{_NUMBER}) ?/ ?(?P<lower>{_NUMBER})(?![0-9/])"
    rf"|(?P<number>{_NUMBER})"
    rf"(?:\s*(?:[x*×·]|\\times|\\cdot)\s*10{_POWER}|{_POWER})?"
    r")"
)


def last(text: str) -> Value | None:
    """The last number of a text; None if there is none."""
    plain = _plain(_boxed(text))
    numbers = collections.deque(_TOKEN.finditer(plain), maxlen=1)
    return _value(numbers[0]) if numbers else None


def same(text: str, answer: str) -> bool:
    """Whether both end in the same number; False where one has none."""
    given, right = last(text), last(answer)
    if given is None or right is None:
        return False
    return given[-1:] == right if len(right) == 1 else given == right


def _boxed(text: str) -> str:
    """Content of the last \\boxed{...}; all of a text that has none."""
    boxes = [m.end() for m in re.finditer(r"\\f?boxed?\s*\{", text)]
    if not boxes:
        return text
    inside, depth = boxes[-1], 1
    for at in range(inside, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if not depth:
            return text[inside:at]
    return text[inside:]


def _plain(text: str) -> str:
    """The text in ASCII's digits, dashes and separators."""
    # 10² is a power, 3½ a mixed number: NFKC would run their digits together
    text = re.sub("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", _lowered, text)
    text = re.sub("(?<=[0-9])(?=[¼-¾⅐-⅞])", " ", text)
    # what separates thousands: no-break and thin spaces, underscores, LaTeX's {,} and \,
    text = re.sub(
        r"(?<=\d)(?:[\u00a0\u2009\u202f\u066c_]|\{,\}|\\[,!:; ])(?=\d{3}(?!\d))", ",", text
    )
    text = text.replace("\u066b", ".")
    text = unicodedata.normalize("NFKC", text)
    text = "".join([str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text])
    text = re.sub("[\u2010-\u2015\u2212\ufe63\uff0d]", "-", text).replace("\u2044", "/")
    text = re.sub(r"\\([$%])", r"\1", text)
    text = re.sub(r"\b(?:Rs\.?|INR|USD|EUR|GBP|JPY|CNY)(?=-?[0-9])", " ", text)
    return re.sub(r"([=<>≈≤≥(\[{])\s*([+-])\s+(?=[0-9.$€£¥₹\\])", r"\1\2", text)


def _lowered(match: re.Match[str]) -> str:
    """An exponent in ASCII: ⁻² is ^{-2}."""
    signs = {"⁺": "+", "⁻": "-"}
    return f"^{{{''.join(signs.get(c) or str(unicodedata.digit(c)) for c in match[0])}}}"


def _value(match: re.Match[str]) -> Value:
    negative = match["sign"] == "-"
    if match["parts"] is not None:
        return tuple(map(_exact, re.split("[:/.-]", match["parts"])))
    if match["number"] is not None and _listed(match):
        return (_exact(match["number"].rpartition(",")[2]),)
    value = _magnitude(match)
    return (-value if negative else value,)


def _listed(match: re.Match[str]) -> bool:
    """Whether commas separate elements after all: [100,200], f(100,200), \\{100,200\\}."""
    if "," not in match["number"] or match.end() != match.end("number"):
        return False
    start, text = match.start("number"), match.string
    before, after = text[max(start - 2, 0) : start], text[match.end() : match.end() + 2]
    called = before[-1:] == "(" and before[:1].isalnum() and len(before) == 2
    return (
        (before[-1:] == "[" and after[:1] == "]")
        or (before == "\\{" and after == "\\}")
        or (called and after[:1] == ")")
    )


def _magnitude(match: re.Match[str]) -> Fraction | Decimal:
    groups = match.groups()
    if match["fraction"] is not None:
        at = _TOKEN.groupindex["whole"]
        over, under = groups[at] or groups[at + 1], groups[at + 2] or groups[at + 3]
        return _sum(_exact(match["whole"] or "0"), _ratio(_exact(over), _exact(under)))
    if match["hex"] is not None:
        return Fraction(int(match["hex"], 16))
    if match["mixed"] is not None:
        part = _ratio(_exact(match["over"]), _exact(match["under"]))
        return _sum(_exact(match["mixed"]), part)
    if match["upper"] is not None:
        return _ratio(_exact(match["upper"]), _exact(match["lower"]))
    at = _TOKEN.groupindex["number"]
    ten = groups[at] or groups[at + 1]
    power = groups[at + 2] or groups[at + 3]
    if ten is not None:
        return _exact(f"{match['number']}e{ten}".replace("e+", "e"))
    value = _exact(match["number"])
    return value if power is None else _raised(value, int(power[:9]), match.group())


def _exact(text: str) -> Fraction | Decimal:
    """The value of a decimal number; a Decimal where it is too large or small to write out."""
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:  # an exponent of more than 18 digits: equal to nothing
        return Decimal("nan")
    if not value.is_finite() or abs(value.adjusted()) > _LARGEST:
        return value if value else Fraction(0)
    return Fraction(value)


def _ratio(over: Fraction | Decimal, under: Fraction | Decimal) -> Fraction | Decimal:
    if isinstance(over, Decimal) or isinstance(under, Decimal):
        return over
    return over / under if under else over


def _sum(a: Fraction | Decimal, b: Fraction | Decimal) -> Fraction | Decimal:
    return a + b if isinstance(a, Fraction) and isinstance(b, Fraction) else a


def _raised(base: Fraction | Decimal, power: int, text: str) -> Fraction | Decimal:
    small = isinstance(base, Fraction) and base.denominator == 1
    if not small or abs(power) * len(str(base)) > _LARGEST or (not base and power < 0):
        return base
    return base**power
