r"""The plain number at a text's end: what counts without a box, and all the faces that do not."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlrt.verifiers.literals import last_number, plain_decimal, readable
from rlrt.verifiers.math import answer_part, at_sight

NUMBERS = {
    "11": "11",
    " 11 \n": "11",
    "+11": "11",
    "-11": "-11",
    "−11": "-11",
    "0": "0",
    "1,234": "1234",
    "1{,}234": "1234",
    "1\\,234,567": "1234567",
    "1,234.50": "1234.50",
    "145.0": "145.0",
    ".5": "0.5",
    "6.02e23": "6.02 \\times 10^{23}",
    "-1.5E-3": "-1.5 \\times 10^{-3}",
    "6.02 \\times 10^{23}": "6.02 \\times 10^{23}",
    "6.02 × 10^23": "6.02 \\times 10^{23}",
    "1/2": "\\frac{1}{2}",
    "-3/4": "-\\frac{3}{4}",
    "\\frac{1}{2}": "\\frac{1}{2}",
    "-\\dfrac{3}{4}": "-\\frac{3}{4}",
    "\\frac{-3}{4}": "-\\frac{3}{4}",
    "\\frac12": "\\frac{1}{2}",
    "1 1/2": "\\frac{3}{2}",
    "-1 1/2": "-\\frac{3}{2}",
    "1\\frac{1}{2}": "\\frac{3}{2}",
    "2 \\tfrac{3}{4}": "\\frac{11}{4}",
}
"""Numbers as they are written, and what math-verify is given."""

ELEVEN = r"""
4 + 7 = 11|4 + 7 =⏎11|x=11|x = 4 + 7, x = 11|x == 11|x ≈ 11|x \approx 11|x ⇒ 11|4 + 7 \Rightarrow 11|#### 11|####11
Therefore the answer is $11$.|The final answer is: 11|Answer: 11|A: 11|He has 11|He pays $11.|It costs \$11|€11
it adds up to 11|a total of 11|The final answer is⏎11|It is 4 + 7 = 11.⏎11|That is all.⏎⏎***⏎11|答案是 11
22 / 2 = 11|x = 4, y = 11|**11**|*11*|`11`|**Answer: 11**|**Answer:** 11|**Answer**: 11|Answer: **$11$.**
**Answer**⏎⏎11|**Answer:**⏎$$11$$|$11$|$$11$$|\(11\)|\[11\]|\[⏎11⏎\]|$$⏎4 + 7 = 11⏎$$|$4 + 7 = 11$|\(x = 11\).
$x$ = 11|11.|11,|11 .|f(4) = 11
### Final Answer⏎⏎11|### Final Answer⏎⏎**$11$**|**Final Answer**⏎⏎$$11$$|So, 11|Thus 11.
The answer is **$11$**.|He pays **$11**.|4 + 7 = **$11.00**⏎⏎So it is $11|答案：11|答案是11|答案是 $11$|It's 11|x = \, 11
x =\quad 11|\textbf{11}
\[ \begin{aligned} x &= 4 + 7 \\ &= 11 \end{aligned} \]|\begin{align*}⏎x &= 4 + 7 \\⏎&= 11⏎\end{align*}
$\mathbf{11}$|₹11|$\frac{22}{2} = 11
"""
"""Texts that end with the answer 11, one behind a | or in a new line; ⏎ is a new line of the text."""

NOTHING = r"""
4 + 7|4 + 7 =|4 + 7 = nothing|4 + 7 = \box{3)|7 + 4 = \text{3}|4 + 7 = \box{12}|There are 7 * 5 = |11 =|= 11 =
= 11 = ?||4 − 7|4 – 7|4 — 7|4×7|4·7|4 ∗ 7|4 ÷ 7|4 ⋅ 7|4 \times 7|4 \cdot 7|4 \div 7|\div 7|2^3|2**3|2 ** 3|2** 3
\sqrt{121}|√49|√ 49|\sqrt 49|4 +⏎7|4⏎+ 7|4⏎+7
4⏎- 7|4⏎-7|4 *⏎⏎7|4 plus⏎7|4 apples and⏎7|4,⏎7|$$4 +$$⏎$$7$$|$4 +$ $7$
4 + **7**|4 + $7$|(4) -7|a -7|4-7|4 -7|- 7|is - 7|* 7|> 7|• 7|1. 4|1) 4|(1) 4|3. 11|No. 11|Step 11|Example 7|x11
x 11|x -11|0x11|11 apples|11%|11°|11^\circ|11!|11?|11...|11..|(11)|11)|[11]|{11}|"11"|11**|11 **|11$|11\)|(x = 11
\frac{x = 11|\text{the answer is 11|f(4 + 7|(4 + 7) 7|so \boxed 11 + 2|\fbox{|7-11|3:11|3: 11|2024-01-11|11/12/2024
1.2.3|4, 7|4,7|4; 7|4 7|4 and 7|4 or 7|4 to 7|from 4 to 7|between 4 and 7|x = 4 or x = 11|x = 4, x = 11|4 mod 7
4 times 7|4 divided by 7|half of 22|10% of 110|log 11|not 11|isn't 11|more than 11|at least 11|x > 11|x >= 11
x != 11|x \neq 11|x ≠ 11|x += 11|22/2|35/1|4/6|\frac{22}{2}|\frac{0}{5}|3 / 4|4 + 3/4|1 + \frac{1}{2}|4/6/7|1 2/4
5 22/7|4 1 1/2|-\frac{-3}{4}|\frac123|½|1½|4⏎---⏎7|4⏎+ 7⏎---⏎11|007
1 000|1'000|3,5|1,23|0,123|12,3456|1.234.567|１1|1e|1e9999
15 \times 10^3|2 \cdot 3 \times 10^2|±11|\pm 11|--11|-$11|x => 11|4 -> 11|3 \to 11|I cannot answer this.
<answer>11</answer>|+|-|.|$|**|$$|\frac{}{}|1/|/2|</b> 11|4 ​7|x² 11
"""
"""Texts that end with no plain number."""


HOSTILE = r"""
4 plus another 7|4 + another 7|Total = 4 apples + another 7
4 added to the 7|Total = 4 + Tom's 7|4 + the remaining 7
4 times the 7|4 + about 7|4 minus his 7|4 added with 7
4 together with 7|4 combined with 7|4 along with 7|4 as well as 7
4 add 7|Add 4 and then add 7|4 subtract 7|4 take away 7
11 take away 4|4 multiplied with 7|4 multiply 7|4 divide 7|twice 7
Twice 7|double 7|triple 7|half the 22|thrice 7|the square of the 7|20% of the 35|half of the total of 22
twice the value of 7|10% of the value of 110|Red: 4 + Blue: 7|Number of red = 4 + number of blue: 7|+ Pears: 7
Start: 4⏎Add: 7|Start with: 4⏎Plus: 7|4⏎Times: 7|4 multiplied by: 7|4 plus: 7|11⏎Subtract: 4|22⏎Divide by: 2
- Apples: 4⏎- Pears: 7|4 +⏎**Pears:** 7|x + 4 where x = 7|x + 4 with x = 7|4 + x, x = 7|f(x) = x + 4 at x = 7
x^2 + 4 evaluated at $x = 7$|4 + y, substitute y = 7|the sum of n from n = 1 to n = 7|from n = 4 to n = 7
\int from x = 0 to x = 7|sum from 1 up to 7|the product from 4 down to 1|from 4 up to 7|up to 7|4 till 7|4 thru 7
x_1 = 4, x_2 = 7|$x_1 = 4$ and $x_2 = 7$|x = 4 ∨ x = 7|x = 4 \lor x = 7|x = 4 \quad x = 7|\(x = 4\), \(x = 7\)
\(x = 4\) and \(x = 7\)|x = 4⏎x = 7|x = 4 oder x = 7|x = 4 或 x = 7|x = 4 et x = 7|x = 4, or else 7|x = 4 / x = 7
- x = 4⏎- x = 7|**x = 4** and **x = 7**|x = 4 \text{ and } x = 7|x = 4 & x = 7|x is not equal to 7
x is greater than or equal to 7|x is less than or equal to 7|doesn't equal 7
does not equal 7|cannot be 7|can't be 7
is not simply 7|x \not= 7|x < = 7|x \ne 7|not exactly 7|is no longer 7|exceeds 7|x exceeds 7|isn't just 7
The answer is definitely not the 7|greater or equal 7|4 más 7|4 mal 7|4 fois 7
4 und 7|4 et 7|4 por 7|4 mais 7|4 menos 7
4 moins 7|4 durch 7|4 乘以 7|4 加上 7|4 减去 7|4 除以 7|4 плюс 7|4 умножить на 7|4 minus 7|4 weniger 7|4 multiplié par 7
4 dividido entre 7|4 à 7|4 bis 7|4 oder 7|4 或者 7|4 加 7|4加7
4乘7|4 kali 7|4 ditambah 7|4 cộng 7|4 nhân 7|4 और 7|4 جمع 7
4 더하기 7|4 かける 7|4 х 7|4 х⏎7|4 加⏎7|4 乘⏎7|4 乘以⏎7|4 más⏎7
4 plus another⏎7|4 ✕⏎7|4 ✖⏎7|4 ➕⏎7|4 ➖⏎7|4 ✖️⏎7|4 ＋⏎7|4 －⏎7|4 ＊⏎7
4 ／⏎7|4 ‒⏎7|4 ―⏎7|4 ‐⏎7|4 +…⏎7|4 + ...⏎7
4 + {}⏎7|4 + \!⏎7|4 +  # apples⏎7|4 + // apples⏎7|(4 +)⏎7|"4 +"⏎7|4 (plus)⏎7
4 `+`⏎7|4 + \phantom{x}⏎7|4 and then⏎7|4⏎⏎+7|$$4$$⏎⏎$$+7$$|$$4$$⏎⏎$$-7$$
11⏎⏎-4|4⏎and⏎7|4⏎add⏎7|4⏎↓⏎7|4 →⏎7|4 ↔⏎7|4 xx 7
4 div 7|4 DIV 7|4 rem 7|4 xor 7|4 XOR 7|4 AND 7|arctan 7
lg 7|factorial 7|ceil 7|floor 7|abs 7|11 base 7|1011 in base 2
base 7|4 raised to the 7|to the 7|4 pow 7|sqr 7
cot 7|sec 7|sinh 7|the square root of the 49|x + 4⏎-----⏎7|4 + 7⏎-----⏎2
4 +⏎---⏎7|(4 + 10)⏎———⏎2|  x⏎_____⏎7|4 + 7⏎=====⏎7|\binom{5}⏎2|\frac{4}⏎7|\sqrt[3]⏎8|\log_2⏎8|4 bags with 7
4 boxes each with 7|4 tickets at $7|4 tickets each $7|4 rows containing 7
4 for 7|4 people paying $7|3 hours 30|5 feet 7
5 dollars 50|4 tens 7|2 dozen 4|4 hundred 7|4 apples, 7
4 red, blue 7|4 red and blue 7|4 to one 7|Solution 2|Method 2
### Solution 2|Approach 2|Figure 7|Table 7|Eq. 7|Equation 7|Chapter 7
Part 7|Day 7|May 7|Option 7|Line 7|ii. 7|Room 7
### 7|## 4⏎## 7|Note 7|Section 7|Page 7|Stage 2|Phase 2|Round 2|Attempt 2|Theorem 2|at 7|Choice (B) 7
$\begin{aligned} x &= 4 + 7|&= 4 + \\ & 7|&= 4 \\ &+ 7|&= 4 \\&\quad + 7|4 \\ 7|\begin{pmatrix} 4 \\ 7|4 + \left( 7
4 \;+\; 7|4 \,+\, 7|4+{7}|{4}+{7}|4{+}7|\text{sum} = 4 + 7
4 \ast 7|4\mathbin{+}7|4 \oplus 7|4 \star 7|4 ⊕ 7|4 ⊗ 7|\left
4 \mid 7|\lfloor 7|\text{apples } 4 + \text{pears } 7|4 \text{ plus } 7|\mathrm{plus}⏎7
"""
"""Texts of an attack on the rule that knew operators instead of announcements: 251 of its 313 were taken for answers."""


def texts(table: str) -> list[str]:
    return [text.replace("⏎", "\n") for text in table.strip().replace("\n", "|").split("|")]


@pytest.mark.parametrize(("text", "given"), NUMBERS.items())
def test_numbers_as_they_are_written(text, given):
    assert last_number(text) == given
    assert last_number(f"The answer is $x = {text.strip()}$.") == given


@pytest.mark.parametrize("text", texts("x = - 7|x = −7|is -7|= ⏎-7|The answer:⏎-7|All.⏎-7|$-7$|**-7**|≈ -7"))
def test_a_minus_that_is_a_sign(text):
    assert last_number(text) == "-7"


@pytest.mark.parametrize("text", texts(ELEVEN))
def test_a_number_plainly_at_the_end_is_the_answer(text):
    assert last_number(text) == "11"
    assert answer_part(f"<think>4 + 8</think>Some words.\n{text}\n") == "\\boxed{11}"


@pytest.mark.parametrize(
    "text",
    [
        *texts(NOTHING),
        *texts(HOSTILE),
        "",
        " ",
        "4 \u200b7",
        "\\boxed{11",
        "\\boxed{}",
        "<think>11",
        "4 +" + " " * 30_000 + "7",
    ],
)
def test_anything_else_is_no_answer(text):
    assert answer_part(text) == ""


def test_a_box_is_judged_alone_but_numbers_that_math_verify_misreads_are_written_for_it():
    for inside in ("11", "4 + 7", "1,234", "x", "22/2", "5 22/7"):
        assert answer_part(f"4 or \\boxed{{{inside}}} or 5") == f"\\boxed{{{inside}}}"
    assert answer_part("\\boxed{1 1/2}") == "\\boxed{\\frac{3}{2}}"
    assert answer_part("\\boxed{6.02e23}") == "\\boxed{6.02 \\times 10^{23}}"
    assert [readable(a) for a in ("-1 1/2", "5 22/7", "1e9999", "x", "")] == [
        "-\\frac{3}{2}",
        "5 22/7",
        "1e9999",
        "x",
        "",
    ]


def test_digits_of_an_expected_number():
    given = ("7", "−7", "1,234", "145.0", ".5", "1/2", "1e5", "9 (apples)", "x", "", "1 1/2", "2 \\times 10^{3}")
    assert [plain_decimal(a) for a in given] == ["7", "-7", "1234", "145.0", "0.5", *[None] * 7]


OPERATORS = [
    *"+-−–—*/^×·÷⋅∗∕⁄±∓%&|<>≤≥≠~:;,@", "**", "//", "<<", "\\times", "\\cdot", "\\div", "\\pm", "\\over", "->", "!=", "<=", "+=",
    "plus", "minus", "times", "over", "mod", "and", "or", "to", "x", "divided by", "\\text{ and }", "",
]  # fmt: skip
BLANKS = st.sampled_from(["", " ", "  ", "\n", " \n ", "\t", "\u00a0", "\\,", "~"])
OPERANDS = (
    st.integers(0, 10**6).map(str)
    | st.decimals(0, 1000, places=2).map(str)
    | st.sampled_from(["x", "\\pi", "(4)", "-3"])
)
BEFORE = st.sampled_from(
    ["", "It is ", "The sum is: ", "$", "\\[", "**", "x = ", "#### ", "11\n", "(", "\\frac{1}{2} + ", "= ", "= 4 + "]
)
AFTER = st.sampled_from(["", " =", "=", ".", "$", "$.", "\\]", "**", " = ?", " = \\box{3}", " = nothing", "\n", " ="])


@settings(max_examples=3000)
@given(BEFORE, OPERANDS, st.sampled_from(OPERATORS), st.tuples(BLANKS, BLANKS), OPERANDS, AFTER)
@example("", "4", "+", ("\n", ""), "7", "")
def test_no_unfinished_sum_is_an_answer(before, a, operator, blanks, b, after):
    """Whatever the expected answer: there is nothing that could be compared with it."""
    text = before + a + blanks[0] + operator + blanks[1] + b + after
    if one_number(a + blanks[0] + operator + blanks[1] + b) or (operator == "" and "\n" in "".join(blanks)):
        return
    assert answer_part(text) == ""
    assert at_sight(b, answer_part(text)) is False


def one_number(text: str) -> bool:
    """Whether operands and operator happen to be one number: 12 beside 34, 3/4, 1,234."""
    return re.fullmatch(r"-?([0-9]+\.?[0-9]*|[0-9]+/[0-9]+|[0-9]+(,|\\,)[0-9]{3}(\.[0-9]+)?)", text) is not None


@given(
    st.integers(-(10**9), 10**9),
    st.integers(1, 10**4),
    st.sampled_from(["{}", "so it is {}.", "4 + 7 = ${}$", "#### {}", "**{}**"]),
)
def test_any_number_is_read_back_as_its_value(over, under, dress):
    value = Fraction(over, under)
    for text in {str(value), f"{over:,}", f"{over / 8}" if abs(over) < 10**6 else "0"}:
        given = last_number(dress.format(text))
        assert given is not None, text
        found = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}|([-\d.]+)", given)
        assert Fraction(found[1] + found[2] + "/" + found[3] if found[2] else found[4]) == Fraction(
            text.replace(",", "")
        )


@pytest.mark.parametrize(
    "unit", [" ", "\n", "1", "**a ", "*", "---\n", "$", "1,", ",234", "{", "1 ", "\\frac{1}", "a'", "1 or ", "= ", "# "]
)
def test_a_long_text_costs_milliseconds(unit):
    begin = time.perf_counter()
    answer_part(unit * (40_000 // len(unit)) + "1/2")
    assert time.perf_counter() - begin < 1.0
