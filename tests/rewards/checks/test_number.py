"""The last number of a response against the answer, in the forms that models and data sets use."""

from __future__ import annotations

from fractions import Fraction

import pytest

from expo_ray.rewards.checks.kind import BrokenCheckError, Checked
from expo_ray.rewards.checks.number import NumberCheck, said_number
from expo_ray.rewards.checks.plain_numbers import found_numbers, only_number

CHECK = NumberCheck()

PLAIN = {
    "42": 42,
    "1,234.5": Fraction(2469, 2),
    "1{,}234.5": Fraction(2469, 2),
    "-5": -5,
    "\u22125": -5,
    "= - 3": -3,
    "x = 3": 3,
    "$x=3$": 3,
    "3/4": Fraction(3, 4),
    r"\frac{3}{4}": Fraction(3, 4),
    r"-\frac12": Fraction(-1, 2),
    r"2\frac{1}{2}": Fraction(5, 2),
    "2 1/2": Fraction(5, 2),
    "$10,000": 10_000,
    r"\$10,000": 10_000,
    "5 km": 5,
    r"72\text{ apples}": 72,
    "12 cm^3": 12,
    "5 m/s^2": 5,
    r"30^\circ": 30,
    "1e5": 100_000,
    r"6.02 \times 10^{23}": 602 * 10**21,
    "2^{10}": 1024,
    "5 million": 5_000_000,
    ".5": Fraction(1, 2),
    "3.": 3,
}


@pytest.mark.parametrize(("text", "value"), PLAIN.items())
def test_a_plain_number_is_read_exactly(text: str, value: Fraction | int) -> None:
    found = only_number(text)
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize(
    "text", ["", "Paris", "3+4", "2x", "(1,2)", r"2\sqrt{3}", r"\pi/2", "3 or 4", "5!", "1/0"]
)
def test_what_says_more_than_a_number_is_none(text: str) -> None:
    assert only_number(text) is None


def test_the_last_number_of_prose() -> None:
    found = {
        "10 - 3": 3,
        "the numbers 3-10": 10,
        "- 3 apples": 3,
        "from -2 to -7.": -7,
        "9" * 1000: None,
        "none": None,
    }
    for text, value in found.items():
        found = found_numbers(text)
        number = found[-1].number if found else None
        assert (number and number.value) == value, text


RIGHT = [
    ("42", "The answer is 42."),
    ("42", r"\boxed{42}"),
    ("42", "The answer is forty-two (42). It took 3 steps."),
    ("6", r"\boxed{5}, no: \boxed{6}"),
    ("1/2", "I get 0.5"),
    ("0.5", r"\boxed{\frac{1}{2}}"),
    ("-3", "x = -3"),
    ("50%", "0.5"),
    ("50%", "50"),
    ("50", r"50\%"),
    ("1234.5", "So 1,234.5 in total"),
    ("1,000,000", "1 million"),
    ("Natalia sold 48/2 = 24 clips.\n#### 72", "She sold 72 clips"),
    ("72", "So 48 + 24.\n#### 72"),
    ("5", "The answer is 3+2=5. Step 7 is done"),
    ("5 km", "5 kilometres"),
    ("18", "The answer is $18."),
    ("5", "Answer: **5**"),
    ("12", r"\boxed{12\text{ cm}^2}"),
    ("100000", "10^5"),
]
RIGHT_FORMULAS = [
    ("7", r"so \boxed{3+4}"),
    ("3", r"\boxed{x=3}"),
    (r"\sqrt{2}", r"\boxed{\sqrt 2}"),
    (r"\sqrt{2}", r"the answer is $\sqrt{2}$."),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    ("(1,2)", "The answer is (1, 2)."),
    (r"\{1,2\}", r"\boxed{\{2,1\}}"),
    ("1,2,3", r"\boxed{1, 2, 3}"),
    ("[1,2]", r"so \[ [1,2] \]"),
    ("x+1", r"\boxed{1+x}"),
    (r"\frac{\pi}{2}", r"\boxed{\pi/2}"),
    (r"\infty", r"\boxed{\infty}"),
]
WRONG = [
    ("-3", "x = 3"),
    ("50%", "60%"),
    ("42", "24"),
    ("3", "I do not know"),
    ("3", ""),
    ("3", r"\boxed{}"),
    ("3", r"\boxed{3\text{ or }4}"),
    ("42", r"42? No: \boxed{41}"),
    ("10", "The answer is 11, not 10? No. It stays: the answer is 11"),
    (r"2\sqrt{3}", "2"),
    ("(1,2)", "(2,1)"),
    ("[1,2]", r"\boxed{(1,2)}"),
]


@pytest.mark.parametrize(("answer", "response"), [*RIGHT, *RIGHT_FORMULAS])
def test_right_answers(answer: str, response: str) -> None:
    assert reward(answer, response) == 1


@pytest.mark.parametrize(("answer", "response"), WRONG)
def test_wrong_answers(answer: str, response: str) -> None:
    assert reward(answer, response) == 0


@pytest.mark.parametrize("answer", ["Paris", "", "between 3 and 5", "the red one"])
def test_an_answer_that_is_no_number_breaks_the_check_and_not_the_response(answer: str) -> None:
    fault = CHECK.target_fault(answer)
    assert fault is not None
    with pytest.raises(BrokenCheckError, match="neither a number nor a formula"):
        reward(answer, "4")


def reward(answer: str, response: str) -> float:
    return CHECK.reward(Checked(messages=[], response=response, columns={"answer": answer}))


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("The answer is 42 apples, which is more than the 30 before.", "42", 1),
        ("The answer is 42 apples, which is more than the 30 before.", "30", 0),
        ("The answer is 18 dollars (9 eggs x $2).", "18", 1),
        ("The answer is 6 * 7 = 42.", "42", 1),
        ("#### Answer\n42", "42", 1),
        ("#### Step 3: add\n40+2=42", "42", 1),
        ("It costs 7.\n#### 42", "42", 1),
        (r"The answer is $5\pi$.", "5", 0),
        (r"The answer is $\sqrt{2}$.", "2", 0),
        (r"The answer is $\sqrt{4}$.", "2", 1),
        ("The answer is 2x", "2", 0),
        ("The answer is x^2", "2", 0),
        ("The answer is 5 m", "5", 1),
        ("The answer is - 5", "-5", 1),
        ("The answer is minus 5.", "-5", 1),
        ("It is negative 5", "-5", 1),
        ("The ratio is 3:4", "3:4", 1),
        ("3:4", "3:4", 1),
        ("The ratio is 3:5", "3:4", 0),
    ],
)
def test_prose_around_a_number_is_read_as_it_is_meant(
    response: str, answer: str, expected: float
) -> None:
    checked = Checked(messages=[], response=response, columns={"answer": answer})
    assert NumberCheck().reward(checked) == expected


def test_formulas_that_differ_are_different_votes() -> None:
    assert said_number(r"So it is $2\sqrt{3}$") != said_number(r"So it is $5\sqrt{3}$")
    assert said_number("The answer is 1,234 apples") == said_number("#### 1234")
