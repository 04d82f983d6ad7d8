"""Identifiers of persons and machines in a text: patterns, and checks of what they match.

A check takes what only looks alike away: check digits of cards and IBANs, numbering plans of
telephones, addresses that are assigned. Identifiers of reserved ranges (example.com, 192.0.2.0/24,
555-0100, test cards) name nobody, and are none.
"""

import functools
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxlm.data.curate.steps import bounds

KINDS = ("secret", "email", "iban", "card", "ip", "phone")


class Span(NamedTuple):
    """An identifier: text[start:end]."""

    start: int
    end: int
    kind: str


# Finders: a text -> (start, end) of its identifiers of a kind, in order.
Finder = Callable[[str], Iterator[tuple[int, int]]]

EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@"
    r"((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9-])"
)
# RFC 2606 and RFC 6761.
RESERVED_DOMAINS = re.compile(
    r"(?i)(.*\.)?(example|invalid|test|localhost|local|example\.(com|net|org))"
)
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
ASSIGNED_IPV6 = "2000::/3"
DIGITS = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])")
# Beginnings and lengths of card numbers by issuer (ISO/IEC 7812 registrations as published).
CARDS = re.compile(
    r"4\d{12}(\d{3}(\d{3})?)?|(5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}|3(0[0-5]|[689]\d)\d{11}|(6011|64[4-9]\d|65\d\d|62\d\d|35(2[89]|[3-8]\d))\d{12}"
)
TEST_CARDS = (
    "4242424242424242",
    "4111111111111111",
    "4012888888881881",
    "5555555555554444",
    "5105105105105100",
    "378282246310005",
    "371449635398431",
    "6011111111111117",
    "6011000990139424",
    "30569309025904",
    "38520000023237",
    "3530111333300000",
    "3566002020360505",
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d\d(?: ?[A-Z0-9]){11,30}")
# Characters of an IBAN by country (SWIFT's IBAN registry).
_LENGTHS = """AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18
    DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26
    IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18
    NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26
    UA29 VA22 VG24 XK20"""
TEST_BANK = "TEST"  # of no registered bank: the surrogates'
# Forms that services give their tokens, as they publish them, and private keys.
SECRETS = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
    (?:AKIA|ASIA)[A-Z0-9]{16}
    | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_[A-Za-z0-9_]{82}
    | glpat-[A-Za-z0-9_-]{20,64} | xox[abeprs]-[A-Za-z0-9-]{10,250}
    | [rs]k_(?:live|test)_[A-Za-z0-9]{24,247} | AIza[A-Za-z0-9_-]{35}
    | sk-(?:proj-|ant-[a-z0-9]{1,8}-)?[A-Za-z0-9_-]{32,200} | npm_[A-Za-z0-9]{36}
    | pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,250} | hf_[A-Za-z]{34}
    | SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}
    | eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}
    )(?![A-Za-z0-9_-])""",
    re.VERBOSE,
)
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s:,]{0,20000}"
    r"-----END [A-Z ]{0,30}PRIVATE KEY-----"
)
ASSIGNED = re.compile(
    r"(?i)(?<![A-Za-z])(?:password|passwd|pwd|secret|token|credential|api[_-]?key|access[_-]?key"
    r"|secret[_-]?key|private[_-]?key|auth[_-]?key)[\"']?[ \t]{0,4}(?:=|:|:=|=>)[ \t]{0,4}[\"']?"
    r"([A-Za-z0-9+/_-]{20,200}={0,2})(?![A-Za-z0-9+/_=.(\[-])"
)
LEAST_ENTROPY = 3.5  # bits a character
# Runs of digits and of the marks within telephone numbers; longer ones are tables.
RUN = re.compile(r"[+(]{0,2}\d[\d ()./+\u2010-\u2015\xa0-]{5,}")
LONGEST_RUN = 250
# Digits alone, or a decimal, are a telephone number only after a word that says so.
BARE = re.compile(r"\(?\d+([.,]\d+)?\)?")
PHONE_WORD = re.compile(
    # a placeholder is no such word
    r"(?i)(?<!<)\b(?:phone|telephone|tel|call|fax|mobile|cell|whatsapp|text)\b"
    r"[^\w\n]*(?:no|number|us)?[^\w\n]*\Z"
)


@functools.cache
def _assigned_v6() -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network(ASSIGNED_IPV6)


@functools.cache
def iban_lengths() -> dict[str, int]:
    """Characters of an IBAN, by country."""
    return {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split()}


def finders(kinds: Sequence[str], regions: Sequence[str]) -> list[tuple[str, Finder]]:
    """The finder of each kind, in the order of KINDS: what one has found the next ones leave.

    regions: ISO codes of countries whose telephone numbers need no country code.
    Raises: ImportError naming the extra, for telephones.
    """
    known: dict[str, Finder] = {
        "secret": _secrets,
        "email": _emails,
        "iban": _ibans,
        "card": _cards,
        "ip": _addresses,
        "phone": _phones(regions) if "phone" in kinds else _emails,
    }
    return [(kind, known[kind]) for kind in KINDS if kind in kinds]


def find(text: str, by_kind: Sequence[tuple[str, Finder]]) -> list[Span]:
    """Identifiers in a text, in order, none within another. What is found is blanked and the rest
    searched again, until nothing is left."""
    spans: list[Span] = []
    while True:
        new: list[Span] = []
        for kind, finder in by_kind:
            own = [Span(start, end, kind) for start, end in finder(text)]
            text = _blanked(text, own)
            new += own
        if not new:
            return sorted(spans)
        spans += new


def _blanked(text: str, spans: Sequence[Span]) -> str:
    if not spans:
        return text
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], "<" + "\x00" * (span.end - span.start - 2) + ">"]
        end = span.end
    return "".join([*parts, text[end:]])


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = [sum(divmod(2 * int(d), 10)) for d in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def iban_check(iban: str) -> bool:
    """Whether an IBAN without blanks has its country's length and its check digits (ISO 13616)."""
    turned = iban[4:] + iban[:4]
    number = int("".join(str(int(c, 36)) for c in turned))
    return iban_lengths().get(iban[:2]) == len(iban) and number % 97 == 1


def entropy(text: str) -> float:
    """Bits a character, by the frequencies of the characters in the text itself."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        for match in EMAIL.finditer(text):
            if not RESERVED_DOMAINS.fullmatch(match[1]):
                yield match.span()


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    """IP addresses that are assigned: private and documentation's are not. In order."""
    spans = [m.span() for m in IPV4.finditer(text) if _assigned(m[0])]
    if ":" in text:
        spans += [m.span() for m in IPV6.finditer(text) if _assigned(m[0])]
    yield from sorted(spans)


def _assigned(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and (address.version == 4 or address in _assigned_v6())


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in DIGITS.finditer(text):
        length = _card_length(match[0])
        if length:
            yield match.start(), match.start() + length


def _card_length(text: str) -> int:
    """Characters of the card number at the beginning of digits that may go on after a blank or a
    hyphen; 0 where none is, or one for tests."""
    for length in range(len(text), 12, -1):
        if length == len(text) or text[length] in " -":
            *groups, last = re.split("[ -]", text[:length])
            digits = "".join([*groups, last])
            grouped = last and all(len(group) >= 4 for group in groups)
            if grouped and CARDS.fullmatch(digits) and luhn(digits):
                return 0 if digits in TEST_CARDS else length
    return 0


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in IBAN.finditer(text):
        size = iban_lengths().get(match[0][:2], 0)
        places = [i for i, c in enumerate(match[0]) if c != " "][:size]
        if not size or len(places) < size:
            continue
        end = match.start() + places[-1] + 1
        iban = match[0][: places[-1] + 1].replace(" ", "")
        alone = end == len(text) or not text[end].isalnum()
        if alone and iban_check(iban) and iban[4:8] != TEST_BANK:
            yield match.start(), end


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    spans = [m.span() for m in SECRETS.finditer(text)]
    spans += [m.span() for m in PRIVATE_KEY.finditer(text)]
    for match in ASSIGNED.finditer(text):
        value = match[1]
        mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
        if mixed and entropy(value) >= LEAST_ENTROPY:
            spans.append(match.span(1))
    yield from _apart(spans)


def _apart(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans in order, without those that begin within an earlier one."""
    end = 0
    for span in sorted(spans):
        if span[0] >= end:
            yield span
            end = span[1]


def numbered_regions() -> set[str]:
    """ISO codes of regions with a known numbering plan. Raises: ImportError naming the extra."""
    with bounds.of_extra("pii"):
        import phonenumbers
    return set(phonenumbers.SUPPORTED_REGIONS)


def _phones(regions: Sequence[str]) -> Finder:
    with bounds.of_extra("pii"):
        import phonenumbers as library
    # A number without its country's code needs the grouping of its country, too.
    strict, valid = library.Leniency.STRICT_GROUPING, library.Leniency.VALID
    searches = [(None, valid), *((region, strict) for region in regions)]

    def phones(text: str) -> Iterator[tuple[int, int]]:
        spans = set()
        for run in RUN.finditer(text):
            if len(run[0]) > LONGEST_RUN or sum(map(str.isdigit, run[0])) < 7:
                continue
            start = max(0, run.start() - 2)  # what is around it tells, too: times, extensions
            piece = text[start : run.end() + 12]
            for region, leniency in searches:
                for match in library.PhoneNumberMatcher(piece, region, leniency):
                    begin, end = start + match.start, start + match.end
                    named = PHONE_WORD.search(text[max(0, begin - 20) : begin])
                    plain = BARE.fullmatch(match.raw_string) and not named
                    if begin < run.end() and not plain and not _fictitious(match.number):
                        spans.add((begin, end))
        yield from _apart(spans)

    return phones


def _fictitious(number) -> bool:
    """Whether a number of the North American plan is of those for fiction, 555-0100 to 0199."""
    national = re.fullmatch(r"\d{3}55501\d\d", f"{number.national_number}")
    return number.country_code == 1 and national is not None
