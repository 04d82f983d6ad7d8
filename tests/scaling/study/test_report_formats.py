"""Reports as text, Markdown and LaTeX."""

import pytest

from jaxlm.scaling.study import report_formats

HEADER = ["form", "N*", "R_D"]
ROWS = [["tied | *", "7e10 [5e10, 9e10]", ""], ["data_constrained", "-", "15 %"]]


def test_text_is_aligned_columns():
    want = (
        "  form                             N*   R_D\n"
        "  tied | *          7e10 [5e10, 9e10]\n"
        "  data_constrained                  -  15 %"
    )
    assert report_formats.table(HEADER, ROWS) == want
    assert report_formats.heading("a_b # %") == "a_b # %"
    assert report_formats.bullets(["one", "two"]) == "  one\n  two"


def test_markdown_shows_what_the_text_does():
    """Undone, its escapes give the cells back; pipes within a cell do not part it."""
    lines = report_formats.table(HEADER, ROWS, "markdown").splitlines()
    assert [len(line) for line in lines] == [len(lines[0])] * 4
    assert lines[1].replace(" ", "").replace("-", "") == "|:|:|:|"
    row = lines[2].replace("\\|", "\0").strip("|").split("|")
    assert [c.replace("\0", "|").replace("\\", "").strip() for c in row] == ROWS[0]
    assert report_formats.heading("N* at C", "markdown") == "## N\\* at C"
    assert report_formats.heading("study", "markdown", 1) == "# study"
    items = ["# no", "2) b", "- of `it`"]
    assert report_formats.bullets(items, "markdown") == "- \\# no\n- 2\\) b\n- \\- of \\`it\\`"


def test_latex_escapes_and_rules():
    got = report_formats.table(HEADER, ROWS, "latex").splitlines()
    assert got[0] == r"\begin{tabular}{lrr}" and got[-1] == r"\end{tabular}"
    assert [got[1], got[3], got[-2]] == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert got[2] == r"form & N* & R\_D \\"
    assert got[5] == r"data\_constrained & - & 15 \% \\"
    shown = report_formats.escaped("\\ & % $ # _ { } ~ ^ < > |", "latex").split()
    assert shown == [
        *(r"\textbackslash{}", r"\&", r"\%", r"\$", r"\#", r"\_", r"\{", r"\}"),
        *(r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}"),
        r"\textbar{}",
    ]
    assert report_formats.heading("a & b", "latex", 3) == r"\subsection*{a \& b}"
    # an item that starts with a bracket is no option of \item
    assert r"\item {}[5, 6]" in report_formats.bullets(["[5, 6]"], "latex")


def test_refusals():
    with pytest.raises(ValueError, match="format: 'html' is none of text, markdown, latex"):
        report_formats.join([], "html")
    with pytest.raises(ValueError, match=r"rows\[1\] has 2 cells, the header 3"):
        report_formats.table(HEADER, [ROWS[0], ROWS[1][:2]])
    assert report_formats.join(["a", "", "b"]) == "a\n\nb" and report_formats.bullets([]) == ""
