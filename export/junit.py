"""JUnit XML as the CI systems read it: one suite, one test case per check.

There is no standard; the elements, attributes and their order are those that GitHub's actions, GitLab and Jenkins
share.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

__all__ = ["Case", "junit_xml"]

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write, not even as a reference."""


@dataclass(frozen=True)
class Case:
    """A test case: what failed (empty: it passed), its output, and the kind of an error, which is no verdict."""

    name: str
    failure: str
    output: str = ""
    error: str = ""


def junit_xml(suite: str, subject: str, cases: Sequence[Case], seconds: float, output: str) -> bytes:
    """Return the bytes of a JUnit file.

    ``subject`` is the name of what is checked, so that several runs of one job have test cases of different names;
    ``seconds`` the time of the whole suite, ``output`` what it printed.
    """
    class_name = f"deploykit.verify.{_text(subject).replace('.', '_')}"  # a reader takes dots for packages
    failed = sum(bool(case.failure) and not case.error for case in cases)
    counts = {
        "name": _text(suite),
        "tests": str(len(cases)),
        "failures": str(failed),
        "errors": str(sum(bool(case.error) for case in cases)),
        "skipped": "0",
        "time": f"{seconds:.3f}",
    }
    root = ET.Element("testsuites", {name: counts[name] for name in counts if name != "skipped"})
    element = ET.SubElement(root, "testsuite", counts)
    for case in cases:
        # The time of one check is not known: the checks of one run of the networks share it.
        made = ET.SubElement(element, "testcase", {"classname": class_name, "name": _text(case.name)})
        if case.failure:
            kind = "error" if case.error else "failure"
            first, _, _ = case.failure.partition("\n")
            about = {"message": _text(first), "type": _text(case.error or "ParityError")}
            ET.SubElement(made, kind, about).text = _text(case.failure)
        if case.output:
            ET.SubElement(made, "system-out").text = _text(case.output)
    ET.SubElement(element, "system-out").text = _text(output)
    ET.indent(root)
    written: bytes = ET.tostring(root, "utf-8", xml_declaration=True)
    return written + b"\n"


def _text(text: str) -> str:
    """Return the text with escapes for the characters that XML cannot hold; ElementTree escapes the others."""
    return NOT_XML.sub(lambda found: ascii(found[0])[1:-1], text)
