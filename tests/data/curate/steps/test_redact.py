"""Redaction: what is found, what only looks alike, and that twice is the same as once."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.curate.steps import identifiers, redact, surrogates

# Identifiers of each kind with right check digits, in ranges that are assigned.
RIGHT = {
    "email": ["jo.doe+x@mail.corp-x.co.uk", "A_B%c@sub.uni.edu"],
    "ip": ["8.8.8.8", "93.184.216.34", "2a00:1450:4001:81b::200e", "2606:4700::1111"],
    "phone": [
        "+44 20 7183 8750",
        "(212) 736-5000",
        "+49 30 901820",
        "020 7183 8750",
        "+12127365000",
    ],
    "card": ["4556737586899855", "4556 7375 8689 9855", "5425-2334-3010-9903", "374245455400126"],
    "iban": ["GB82WEST12345698765432", "DE89 3704 0044 0532 0130 00", "NO9386011117947"],
    "secret": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "aB3dE6gH9j" * 3 + "kL2mN5",
        "xoxb-1234567890-abcdefghij",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3In0.dozjgNryP4J3jVmNHl0w5N",
        "hf_" + "abcdEFGHij" * 3 + "klMN",
    ],
}
# Of the same look, and none.
WRONG = {
    "email": ["user@example.com", "a@b.invalid", "@handle", "a@b", "x@mail.test", "@app.route"],
    "ip": ["10.1.2.3", "192.0.2.7", "999.8.8.8", "1.2.3.4.5", "v8.8.8.8", "a::b", "12:34:56"],
    "phone": ["202-555-0143", "1609459200000", "2024-01-15 10:22:33", "3.14159265358979"]
    + ["2147483648", "2.2046244202", "21 22 23 24 25", "1" * 300],
    "card": ["4556737586899856", "4111111111111111", "1234567812345670", "4556737586899855123456"]
    + ["45 56 73 75 86 89 98 55"],
    "iban": ["GB82WEST12345698765433", "DE89370400440532013", "ZZ82WEST12345698765432"],
    "secret": [
        "AKIA1234",
        "password: correct-horse-battery",
        "token = get_next_token_from_server",
        "api_key = your_api_key_goes_here_now",
        "sha256:" + "0123456789abcdef" * 4,
    ],
}
SCORERS = {by: redact.Redact(by=by).scorer() for by in ("placeholder", "surrogate")}


def redacted(text, by="placeholder"):
    (scored,) = SCORERS[by]([text])
    return text if scored.text is None else scored.text


@pytest.mark.parametrize("kind", identifiers.KINDS)
def test_identifiers_are_found_and_lookalikes_left(kind):
    for right in RIGHT[kind]:
        text = f"Say {right}, and go."
        (scored,) = SCORERS["placeholder"]([text])
        assert scored.text == f"Say <{kind.upper()}>, and go.", right
        assert scored.scores["spans"] == [[kind, 4, 4 + len(right), 4, 6 + len(kind)]]
        assert {k: scored.scores[k] for k in identifiers.KINDS} == {
            k: int(k == kind) for k in identifiers.KINDS
        }
    for wrong in WRONG[kind]:
        assert redacted(f"Say {wrong}, and go.") == f"Say {wrong}, and go."


def test_digits_alone_are_a_telephone_number_after_a_word():
    assert redacted("Tel. 2127365000 or phone number: 2127365001, id 2127365002") == (
        "Tel. <PHONE> or phone number: <PHONE>, id 2127365002"
    )
    assert redacted("(212) 736-5000 ext. 1234") == "<PHONE>"


def test_a_placeholder_is_no_word_for_a_telephone_number():
    for joint in (" ", "\n", ": "):
        text = f"<PHONE>{joint}2147483648"
        assert redacted(text) == text


def test_a_card_ends_where_other_digits_begin():
    assert redacted("4556 7375 8689 9855 123") == "<CARD> 123"


def test_a_changed_digit_is_no_card_and_no_iban():
    """Check digits notice every single wrong digit (ISO/IEC 7812-1, ISO 13616)."""
    for text, check in (("4556737586899855", identifiers.luhn), ("DE89370400440532013000", None)):
        for place, digit in itertools.product(range(2, len(text)), "0123456789"):
            changed = text[:place] + digit + text[place + 1 :]
            ok = check(changed) if check else identifiers.iban_check(changed)
            assert ok == (changed == text)


def test_secrets_in_assignments_and_keys():
    value = "x8Jk29sLq0PzM4nVb7Tt"
    text = f'API_KEY = \'{value}\'; "password": "{value}", secret-key: {value}'
    clean = 'API_KEY = \'<SECRET>\'; "password": "<SECRET>", secret-key: <SECRET>'
    assert redacted(text) == clean
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK=\n-----END RSA PRIVATE KEY-----"
    assert redacted(f"a\n{key}\nb") == "a\n<SECRET>\nb"
    begun = "-----BEGIN PRIVATE KEY-----\n" * 20_000
    assert redacted(begun) == begun
    assert identifiers.entropy("abcd") == 2 and identifiers.entropy("aaaa") == 0


def test_surrogates_are_stable_within_a_document_and_valid_in_form():
    text = (
        "A@corp.com a@corp.com b@corp.com 8.8.8.8 8.8.4.4 8.8.8.8 2606:4700::1111 "
        "+1 212 736 5000, (212) 736-5000; 4556737586899855; 4556 7375 8689 9855; "
        "GB82WEST12345698765432 and DE89 3704 0044 0532 0130 00 user1@example.com 192.0.2.1"
    )
    clean = redacted(text, "surrogate")
    assert clean == (
        "user2@example.com user2@example.com user3@example.com 192.0.2.2 192.0.2.3 192.0.2.2 "
        "2001:db8::1 +1-202-555-0100, +1-202-555-0101; 4242424242424242; 4242424242424242; "
        "GB75TEST00000000000001 and GB48TEST00000000000002 user1@example.com 192.0.2.1"
    )
    assert identifiers.iban_check("GB75TEST00000000000001")
    assert all(map(identifiers.luhn, identifiers.TEST_CARDS))
    assert all(map(identifiers.CARDS.fullmatch, identifiers.TEST_CARDS))
    for start, end in (row[3:] for row in SCORERS["surrogate"]([text])[0].scores["spans"]):
        assert clean[start:end] not in text and " " not in clean[start:end]


def test_a_range_that_is_used_up_gives_placeholders():
    replacements = surrogates.Surrogates("", True)
    numbers = [replacements.of("card", f"{n}") for n in range(20)]
    assert numbers[:13] == list(identifiers.TEST_CARDS) and set(numbers[13:]) == {"<CARD>"}
    addresses = [replacements.of("ip", f"n{n}") for n in range(1000)]
    assert len({*addresses}) == 1000 and addresses[762] == "198.18.0.1"
    assert identifiers.find(" ".join(addresses), identifiers.finders(["ip"], ())) == []
    phones = [replacements.of("phone", f"{n}") for n in range(1001)]
    assert phones[999] == "+1-713-555-0199" and phones[1000] == "<PHONE>"
    assert identifiers.find(" ".join(phones), identifiers.finders(["phone"], ("US",))) == []


PIECES = st.sampled_from(
    [p for table in (RIGHT, WRONG) for pieces in table.values() for p in pieces]
    + [
        "<EMAIL>",
        "<IP>",
        "user1@example.com",
        "192.0.2.1",
        "+1-202-555-0100",
        "word",
        "1",
        ".",
        "-",
    ]
)
JOINTS = st.sampled_from(["", " ", "\n", ".", "-", ",", ":", "@", "=", "<", '"'])


@given(st.lists(st.tuples(PIECES, JOINTS), max_size=6), st.sampled_from(sorted(SCORERS)))
def test_redacting_twice_is_redacting_once(parts, by):
    text = "".join(part for pair in parts for part in pair)
    (scored,) = SCORERS[by]([text])
    clean = text if scored.text is None else scored.text
    assert SCORERS[by]([clean])[0].text is None
    end = new_end = 0
    for _, start, stop, new_start, new_stop in scored.scores["spans"]:
        assert text[end:start] == clean[new_end:new_start] and start < stop
        end, new_end = stop, new_stop
    assert text[end:] == clean[new_end:]


def test_scores_never_hold_an_identifier():
    text = "; ".join(p for pieces in RIGHT.values() for p in pieces)
    (scored,) = SCORERS["surrogate"]([text])
    assert not [p for pieces in RIGHT.values() for p in pieces if p in str(scored)]
    assert redact.Redact().removal(scored.scores) is None


def test_kinds_and_regions_are_chosen():
    text = "a@corp.com 8.8.8.8 020 7183 8750"
    (scored,) = redact.Redact(kinds=("ip",)).scorer()([text])
    assert scored.text == "a@corp.com <IP> 020 7183 8750" and set(scored.scores) == {"ip", "spans"}
    american = redact.Redact(kinds=("phone",), regions=("US",)).scorer()
    assert american([text])[0].text is None and american(["+44 20 7183 8750"])[0].text == "<PHONE>"
    none = redact.Redact(kinds=("phone",), regions=()).scorer()
    assert none(["(212) 736-5000 +12127365000"])[0].text == "(212) 736-5000 <PHONE>"


def test_fields_are_checked():
    lines = "\n".join(redact.Redact(("mail", "phone"), "mask", ("UK", "GB")).problems())
    assert "kinds: 'mail' given" in lines and "the nearest is email" in lines
    assert "by: 'mask' given" in lines and "regions: 'UK' given" in lines
    assert len(lines.splitlines()) == 3
    assert "one kind or more" in "\n".join(redact.Redact(kinds=()).problems())
    assert set(redact.Redact().versions()) == {"phonenumbers"}
    assert redact.Redact(kinds=("ip",)).versions() == {}


@pytest.mark.parametrize(
    "text",
    ["", "\x00", "\ud800", "@" * 10**6, "a" * 10**6 + "@", "1." * 500_000, ":" * 10**6]
    + ["1 " * 20_000, "GB82" * 200_000, "eyJ" * 300_000, "token=" * 200_000, "a@b." * 250_000],
    ids=lambda text: f"{text[:6]!r}x{len(text)}",
)
def test_strange_and_long_texts_stay(text):
    """Linear work: every pattern is bounded where it may begin again."""
    kept = redacted(text)
    assert kept == text
