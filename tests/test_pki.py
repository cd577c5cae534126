# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""The command that makes certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsd import pki


def test_everything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pki.main([str(tmp_path), "--client", "alice"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"--object tls-creds-x509,id=tls0,endpoint=server,dir={tmp_path}/server",
        f"--object tls-creds-x509,id=tls0,endpoint=client,dir={tmp_path}/client-alice",
    ]
    for name in ("ca/ca-key.pem", "server/server-key.pem", "client-alice/client-key.pem"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.rglob("*.new"))


def test_the_authority_stays(tmp_path: Path) -> None:
    pki.make(str(tmp_path), [], [], 2)
    before = (tmp_path / "ca/ca-cert.pem").read_bytes()
    old_server = (tmp_path / "server/server-cert.pem").read_bytes()
    pki.make(str(tmp_path), [], [], 2)
    assert (tmp_path / "ca/ca-cert.pem").read_bytes() == before
    assert (tmp_path / "server/server-cert.pem").read_bytes() != old_server


@pytest.mark.parametrize(
    "words", [["--days", "0"], ["--client", "../x"], ["--client", ""], ["--client", ".."]]
)
def test_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pki.main([str(tmp_path / "new"), *words]) == 1
    assert capsys.readouterr().err.startswith("qsd pki: ")
    assert not (tmp_path / "new").exists()


def test_damaged_authority(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pki.make(str(tmp_path), [], [], 2)
    (tmp_path / "ca/ca-key.pem").write_text("x")
    assert pki.main([str(tmp_path)]) == 1
    assert "cannot be used" in capsys.readouterr().err
