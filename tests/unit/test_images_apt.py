"""Which keyring an entry of the host's apt sources names."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral_worker.images.apt import _signed_by

STANZAS = """\
# A comment of its own, which is no stanza to apt.

# And another,
# of two lines.

Types: deb
URIs: http://mirror.test/one
Signed-By: /keys/one.gpg

#Types: deb
#Signed-By: /keys/none.gpg

Types: deb
# Signed-By: /keys/commented-out.gpg
URIs: http://mirror.test/two
signed-by: /keys/two.gpg
\x20
Types: deb
URIs: http://mirror.test/three
"""
LINES = """\
# deb [signed-by=/keys/none.gpg] http://mirror.test/none

deb [arch=amd64 signed-by=/keys/one.gpg,/keys/more.gpg] http://mirror.test/one
deb http://mirror.test/two
"""


@pytest.mark.parametrize(
    ("entry", "keyring"),
    [
        (1, "/keys/one.gpg"),
        (2, "/keys/two.gpg"),
        (3, None),
        (4, None),
        (0, None),
        ("x", None),
    ],
)
def test_stanzas_are_counted_as_apt_counts_them(
    tmp_path: Path, entry: int | str, keyring: str | None
) -> None:
    (tmp_path / "debian.sources").write_text(STANZAS)

    assert _signed_by(f"{tmp_path}/debian.sources:{entry}") == keyring


@pytest.mark.parametrize(("entry", "keyring"), [(3, "/keys/one.gpg"), (4, None), (5, None)])
def test_of_the_older_format_every_line_is_counted(
    tmp_path: Path, entry: int, keyring: str | None
) -> None:
    (tmp_path / "sources.list").write_text(LINES)

    assert _signed_by(f"{tmp_path}/sources.list:{entry}") == keyring


def test_a_file_that_is_gone_names_none(tmp_path: Path) -> None:
    assert _signed_by(f"{tmp_path}/debian.sources:1") is None
