"""The tree of errors that `vrepl.errors` shows its readers is the tree that there is."""

from __future__ import annotations

import re

from vrepl import errors
from vrepl.errors import VreplError

LINE = re.compile(
    r"^ {4}(?P<indent>[│ ]*)(?:[├└]── )?(?P<name>[A-Z]\w+) +(?P<code>\d+)? *(?P<says>\S.*?) *(?P<again>\(retryable\))?$"
)


def documented() -> list[tuple[int, str, int | None, bool]]:
    """Depth, name, exit code and whether it is retryable, of each line of the docstring's tree."""
    text = (errors.__doc__ or "").partition("\n\n")[2]
    found = [match for line in text.splitlines() if (match := LINE.match(line))]
    return [
        (
            0 if "──" not in match.group(0) else len(match["indent"]) // 4 + 1,
            match["name"],
            int(match["code"]) if match["code"] else None,
            bool(match["again"]),
        )
        for match in found
    ]


def defined() -> list[tuple[int, str, int | None, bool]]:
    """Likewise of the classes, in the order of their definition, each after its base."""
    here = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, VreplError)]

    def below(kind: type[VreplError], depth: int) -> list[tuple[int, str, int | None, bool]]:
        code = kind.exit_code if depth else None
        rows = [(depth, kind.__name__, code, kind.retryable)]
        for each in here:
            if each.__base__ is kind:
                rows += below(each, depth + 1)
        return rows

    return below(VreplError, 0)


def test_the_documented_tree_is_the_defined_one() -> None:
    assert documented() == defined()
