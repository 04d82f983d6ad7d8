"""Surrogates of identifiers: of the same form, from ranges that are reserved, so nobody's."""

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator

from jaxlm.data.curate.steps import identifiers

# RFC 5737 and RFC 2544.
NETWORKS = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15")
# RFC 3849.
NETWORK_V6 = "2001:db8::/32"
AREAS = ("202", "212", "213", "305", "312", "404", "415", "512", "617", "713")


class Surrogates:
    """Replacements in one document: the same for the same identifier, other ones for others.

    text: the document, whose own reserved identifiers are no surrogates. used: False replaces by
    placeholders alone, as is done where a range is used up.
    """

    def __init__(self, text: str, used: bool):
        self._own = set(re.findall(r"[\w.+@:-]+", text)) if used else set()
        self._known: dict[tuple[str, str], str] = {}
        self._new: dict[str, Iterator[str]] = (
            {kind: make() for kind, make in MAKERS.items()} if used else {}
        )

    def of(self, kind: str, identifier: str) -> str:
        """The replacement of an identifier; its spaces, hyphens and case make no difference."""
        plain = re.sub(r"[^\w@.:+]", "", identifier).lower()
        if kind in ("phone", "card"):
            plain = re.sub(r"\D", "", identifier)
        if (kind, plain) not in self._known:
            form = "ip6" if kind == "ip" and ":" in identifier else kind
            candidates = (c for c in self._new.get(form, ()) if c.replace(" ", "") not in self._own)
            self._known[kind, plain] = next(candidates, f"<{kind.upper()}>")
        return self._known[kind, plain]


def _emails() -> Iterator[str]:
    return (f"user{n}@example.com" for n in itertools.count(1))


def _addresses() -> Iterator[str]:
    return (str(host) for net in NETWORKS for host in ipaddress.ip_network(net).hosts())


def _addresses_v6() -> Iterator[str]:
    return map(str, ipaddress.ip_network(NETWORK_V6).hosts())


def _phones() -> Iterator[str]:
    return (f"+1-{area}-555-{n:04}" for area in AREAS for n in range(100, 200))


def _cards() -> Iterator[str]:
    return iter(identifiers.TEST_CARDS)


def _ibans() -> Iterator[str]:
    """British IBANs of a bank that there is not."""
    for number in itertools.count(1):
        account = f"{identifiers.TEST_BANK}{number:014}"
        digits = "".join(str(int(c, 36)) for c in account + "GB00")
        yield f"GB{98 - int(digits) % 97:02}{account}"


MAKERS: dict[str, Callable[[], Iterator[str]]] = {
    "email": _emails,
    "ip": _addresses,
    "ip6": _addresses_v6,
    "phone": _phones,
    "card": _cards,
    "iban": _ibans,
}
