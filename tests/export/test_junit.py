"""JUnit files: what their readers share of the format, and characters that XML cannot hold."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from deploykit.export.junit import Case, junit_xml

ATTRIBUTES = {
    "testsuites": ({"name"}, {"tests", "failures", "errors", "time"}),
    "testsuite": ({"name", "tests"}, {"failures", "errors", "skipped", "time"}),
    "testcase": ({"name", "classname"}, set()),
    "failure": ({"type", "message"}, set()),
    "error": ({"type", "message"}, set()),
    "system-out": (set(), set()),
}
"""Element -> the attributes that it must have, and those that it may have besides."""

CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["testcase", "system-out"],
    "testcase": ["failure", "error", "system-out"],
    "failure": [],
    "error": [],
    "system-out": [],
}
"""Element -> what may be in it, in this order."""


def check_junit(data: bytes) -> ET.Element:
    """Check a file against the format that GitHub's actions, GitLab and Jenkins read, and return its suite."""
    root = ET.fromstring(data)
    assert root.tag == "testsuites"
    for element in root.iter():
        needed, optional = ATTRIBUTES[element.tag]
        assert needed <= set(element.attrib) <= needed | optional
        order = [CHILDREN[element.tag].index(child.tag) for child in element]
        assert order == sorted(order)
    (suite,) = root
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases) == len({(c.attrib["classname"], c.attrib["name"]) for c in cases})
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
    assert int(suite.attrib["errors"]) == len(suite.findall("testcase/error"))
    assert float(suite.attrib["time"]) >= 0
    return suite


def test_cases_that_pass_fail_and_end_with_an_error() -> None:
    cases = [
        Case("good", "", "said"),
        Case("bad", "by 2 px\nlimit: 1 px", "more"),
        Case("broken", "no file", error="NotFoundError"),
    ]
    suite = check_junit(junit_xml("a suite", "m.onnx", cases, 1.5, "all"))
    assert suite.attrib == {
        "name": "a suite",
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
        "time": "1.500",
    }
    good, bad, broken = suite.findall("testcase")
    assert good.attrib == {"classname": "deploykit.verify.m_onnx", "name": "good"}
    assert [child.text for child in good] == ["said"]
    (failure,) = bad.findall("failure")
    assert failure.attrib == {"message": "by 2 px", "type": "ParityError"}
    assert failure.text == "by 2 px\nlimit: 1 px"
    assert broken.find("error") is not None
    assert broken.find("failure") is None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('<a & "b">', '<a & "b">'),
        ("]]>", "]]>"),
        ("bell\x07 and \x1b[0m", "bell\\x07 and \\x1b[0m"),
        ("half \udce9 a pair", "half \\udce9 a pair"),
        ("\ufffe", "\\ufffe"),
        ("é 語 😀", "é 語 😀"),
    ],
)
def test_every_text_can_be_written_and_read(text: str, read: str) -> None:
    suite = check_junit(junit_xml(text, text, [Case(text, text, text)], 0.0, text))
    assert suite.attrib["name"] == read
    case = suite[0]
    assert case.attrib["name"] == read
    assert (case[0].text, case[1].text, suite[1].text) == (read, read, read)
