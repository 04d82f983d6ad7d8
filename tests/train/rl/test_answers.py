"""What is a number in an answer: a table of answers labelled by hand."""

import time
from fractions import Fraction

import pytest

from jaxlm.train.rl import answers, reward_functions

F = Fraction
# What a text states last: one value, or the parts of a time, ratio, date or version; None is none.
STATED = [
    # lists and thousands: a run of digits and commas was one number, so that [1,2] was 12
    ("[1,2]", 2), ("f(3,4)", 4), ("(1, 2)", 2), ("3,5", 5), ("1,2345", 2345), ("1,20,300", 300),
    ("[100,200]", 200), ("f(3,400)", 400), ("\\{100,200\\}", 200), ("0,123", 123), ("1,2,3", 3),
    ("[1,200,35]", 35), ("1,200", 1200), ("1,234,567.89", F("1234567.89")), ("$1,200.", 1200),
    ("12,345 and", 12345), ("(1,200)", 1200), ("1\u202f200", 1200),
    ("1\u00a0200\u00a0000", 1200000),
    ("1_000", 1000), ("1{,}200", 1200), ("12\\,000", 12000), ("1 200", 200), ("2020, 2021", 2021),
    # signs: U+2212 was no minus, and 12-15 ended in -15
    ("x = −5", -5), ("x = -5", -5), ("x = - 5", -5), ("–5 degrees", -5), ("(−3)", -3), ("is +7", 7),
    ("-$5", -5), ("$-5", -5), ("$-5$", -5), ("-.5", F("-.5")), ("-1/2", F(-1, 2)), ("−½", F(-1, 2)),
    ("12-15", 15), ("12–15", 15), ("in 2019-2020", 2020), ("pages 12 - 15", 15), ("7−5", 5),
    ("5 - 3 = 2", 2), ("A-5", 5), ("COVID-19", 19), ("(4)-3", 3), ("- 5 apples", 5),
    ("50%-60%", 60),
    ("$5-$10", 10), ("[-1,-2]", -2), ("±3", 3), ("（−４）", -4),
    # parentheses are no sign
    ("(5)", 5), ("a drink ($5)", 5),
    # decimals, powers, fractions
    ("3.50", F("3.5")), (".5", F("0.5")), ("0.1", F(1, 10)), ("is 42.", 42), ("42, then", 42),
    ("1e23", 10**23), ("6.02e23", 602 * 10**21), ("1E-3", F(1, 1000)), ("2.5e+2", 250),
    ("6.02 × 10^{23}", 602 * 10**21), ("6.02 x 10^23", 602 * 10**21),
    ("3 \\times 10^{-2}", F(3, 100)),
    ("10^5", 10**5), ("10⁵", 10**5), ("2^10", 1024), ("2**10", 1024), ("10⁻²", F(1, 100)),
    ("3/4", F(3, 4)), ("3 / 4", F(3, 4)), ("1 1/2", F(3, 2)), ("½", F(1, 2)), ("3½", F(7, 2)),
    ("\\frac{3}{4}", F(3, 4)), ("-\\dfrac12", F(-1, 2)), ("\\frac{-3}{4}", F(-3, 4)),
    ("2\\frac{1}{3}", F(7, 3)), ("24/0", 24),
    # units, currencies, scripts
    ("50%", 50), ("12.5 percent", F("12.5")), ("50\\%", 50), ("€5,50", 50), ("\\$5", 5),
    ("USD5", 5),
    ("5kg", 5), ("5 km/h", 5), ("12 m²", 12), ("12 m^2", 12), ("9 cm^{2}", 9), ("the 3rd", 3),
    ("٣٤", 34), ("４２", 42), ("答案是42。", 42), ("**42**", 42), ("**5** 3", 3), ("`7`", 7),
    ("0x1F", 31), ("007", 7),
    # no numbers of their own
    ("H2O", None), ("x_1", None), ("x^2", None), ("x_{12}", None), ("B12", None), ("", None),
    ("one", None), ("v1.5", None), ("x^{-2}", None), ("-", None), ("5 x_1", 5),
    # several parts
    ("12:30", (12, 30)), ("3:4", (3, 4)), ("at 12:30:15.", (12, 30, 15)), ("1.2.3", (1, 2, 3)),
    ("12/25/2024", (12, 25, 2024)), ("2024-12-25", (2024, 12, 25)), ("step 3: 4", 4),
    # the last box decides
    ("\\boxed{5} in 3 ways", 5), ("\\boxed{1,200}", 1200), ("\\boxed{\\frac{1}{2}} 7", F(1, 2)),
    ("\\boxed{1} or \\boxed{2}", 2), ("\\boxed{x} = 3", None), ("\\boxed{x = -5", -5),
]  # fmt: skip

# (response, answer, whether the reward is 1)
COMPARED = [
    ("[1,2]", "12", 0), ("f(3,4)", "34", 0), ("x = −5", "5", 0), ("x = −5", "-5", 1),
    ("1e23", "6.02e23", 0), ("pages 12-15", "15", 1), ("in 2019-2020", "2020", 1),
    ("so 1,200 then", "#### 1200.0", 1), ("0.5", "1/2", 1), ("0.333", "1/3", 0), ("0.1", ".10", 1),
    ("50%", "50", 1), ("50%", "0.5", 0), ("11:30", "12:30", 0), ("12:30", "12:30", 1),
    ("on 12/25/2024", "2024", 1), ("2:4", "1:2", 0), ("0.1e1", "1", 1),
    ("9007199254740993", "9007199254740992", 0), ("x", "x", 0), ("", "0", 0),
    ("1e999999999", "1e999999998", 0),
    ("1e999999999", "1e999999999", 1), ("9" * 5000, "9" * 5000, 1),
    ("1e99999999999999999999", "1", 0),
]  # fmt: skip


def test_what_a_text_states_last():
    wrong = []
    for text, wanted in STATED:
        parts = wanted if isinstance(wanted, tuple) or wanted is None else (wanted,)
        if answers.last(text) != parts:
            wrong.append((text, wanted, answers.last(text)))
    assert not wrong and len(STATED) > 100


@pytest.mark.parametrize("name", ["number", "tagged_answer"])
def test_rewards_compare_values(name):
    for said, right, wanted in COMPARED:
        text = said if name == "number" else f"<think>7</think><answer>{said}</answer> 8"
        sample = reward_functions.Sample("", text, {"answer": right}, True)
        given = reward_functions.BUILT_IN[name]([sample])[0]
        # a text equal to the answer is right in tags, number or not
        assert given == (wanted or (name == "tagged_answer" and said == right)), (said, right)


def test_long_texts_take_a_moment():
    """A response is a policy's: it may be anything."""
    clock = time.process_time()
    parts = ("1", "1,", "1:", "-", "1.", "1 ", "1/", "1^", "{", "\\frac{1", "\\boxed{", "= ", "1  ")
    for part in parts:
        answers.last(part * 5_000)
    for text in ("2^9999999999", "5" + " " * 50_000, "=" + " " * 50_000, "9" * 50_000 + "e"):
        answers.last(text)
    assert time.process_time() - clock < 5
