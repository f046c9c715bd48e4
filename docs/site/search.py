"""The search of a site in English and Chinese: Chinese is indexed, and looked for, by every two characters in a row.

Chinese has no spaces between words, and Sphinx's own Chinese search needs a dictionary of another package.
"""

from __future__ import annotations

import re

from sphinx.search.en import SearchEnglish

__all__ = ["SearchEnglishAndChinese"]

HAN = r"\u3400-\u9fff\uf900-\ufaff"


class SearchEnglishAndChinese(SearchEnglish):
    """English words by their stems, and Chinese by pairs of characters."""

    js_splitter_code = f"""
function splitQuery(query) {{
  const words = query.split(/[^\\p{{Letter}}\\p{{Number}}_\\p{{Emoji_Presentation}}]+/gu).filter((word) => word);
  return words.flatMap((word) => word.match(/[{HAN}]+|[^{HAN}]+/g)).flatMap((part) =>
    /[{HAN}]{{2}}/.test(part) ? [...part.slice(1)].map((_, at) => part.slice(at, at + 2)) : [part]);
}}
"""

    def split(self, input: str) -> list[str]:
        """Return the words and the pairs of a text."""
        parts = [part for word in super().split(input) for part in re.findall(f"[{HAN}]+|[^{HAN}]+", word)]
        return [piece for part in parts for piece in self._pieces(part)]

    @staticmethod
    def _pieces(part: str) -> list[str]:
        if len(part) < 2 or not re.match(f"[{HAN}]", part):
            return [part]
        return [part[at : at + 2] for at in range(len(part) - 1)]
