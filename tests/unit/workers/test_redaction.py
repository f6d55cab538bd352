"""No secret of the environment or of an address is recorded, logged or shown with an error."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

import pytest
from builders import trial

from trainables.errors import Fault, TrialError, UserError, error_with_notes, first_line
from trainables.redaction import redacted
from trainables.workers.trial_log import log_to
from trainables.workers.trial_outcome import verdict
from tune.cli import main
from tune.tune_events import _why_ended

PEM = "-----BEGIN KEY-----\nMIIEvQIB\n-----END KEY-----"
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef",
    "HF_TOKEN": "hf_SECRETtoken",
    "AWS_SECRET_ACCESS_KEY": "/sEc+ReT/",
    "judge_password": "p'a\"ss word",
    "GOOGLE_APPLICATION_CREDENTIALS_JSON": PEM,
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxyPW@127.0.0.1:9")


def assert_safe(text: str) -> None:
    found = [v for v in (*SECRETS.values(), "proxyPW") if v in text or repr(v)[1:-1] in text]
    assert not found


@pytest.mark.usefixtures("environment")
def test_values_of_secret_variables_are_hidden() -> None:
    text = redacted(f"refused: {dict(os.environ)}, {SECRETS['HF_TOKEN']} and {PEM}")
    assert_safe(text)
    assert text.endswith(", *** and ***")
    assert "'HF_TOKEN': '***'" in text
    assert "'GOOGLE_APPLICATION_CREDENTIALS_JSON': '***'" in text
    assert "http://***@127.0.0.1:9" in text


def test_words_and_paths_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = {
        "TOKENIZERS_PARALLELISM": "false",
        "TOKENIZER": "my-own-tokenizer",
        "NUM_TOKENS": "1000000000",
        "SSL_KEY": str(tmp_path),
        "SOME_TOKEN": " " * 8,
    }
    for name, value in ordinary.items():
        monkeypatch.setenv(name, value)
    text = " at ".join(ordinary.values())
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3a://AKIAX:sec/ret@bucket/x", "s3a://***@bucket/x"),
        ("s3:/AKIAX:secret@bucket", "s3:/***@bucket"),
        ("https://me:pw@host:8080/a?b=1", "https://***@host:8080/a?b=1"),
        ("https://host/a?key=AIza&b=1", "https://host/a?key=***&b=1"),
        ("x?X-Amz-Signature=0a&X-Amz-Expires=9", "x?X-Amz-Signature=***&X-Amz-Expires=9"),
        *(
            (harmless, harmless)
            for harmless in (
                "http://127.0.0.1:9000/a: no, me@host",
                "http://git.lan:3000/team/repo.git@v1.2",
                "s3://bucket/a?b=token&keys=3",
                "docker://registry/image:tag@sha256",
            )
        ),
    ],
)
def test_passwords_and_keys_in_addresses_are_hidden(address: str, shown: str) -> None:
    assert redacted(f"got {address}; no") == f"got {shown}; no"


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", [RuntimeError, TrialError])
def test_the_reason_of_a_trial_that_failed_is_safe_and_short(
    kind: type[Exception], tmp_path: Path
) -> None:
    error = kind(f"judge refused: {SECRETS['HF_TOKEN']} {dict(os.environ)} {'x' * 5000}")
    (tmp_path / "error.txt").write_text(f"ray::train()\n{error}\n")
    reason = verdict(trial(0).config, error).reason
    for text in (
        reason,
        first_line(error),
        error_with_notes(error),
        _why_ended(str(tmp_path / "error.txt")),
    ):
        assert_safe(text or "")
        assert "judge refused: *** {" in (text or "")
        assert 1000 < len(text or "") < 1050
    fault = UserError([Fault("data.path", f"no such file: https://me:{'a' * 9}@host")])
    assert verdict(trial(0).config, fault).reason == "data.path: no such file: https://***@host"


@pytest.mark.usefixtures("environment")
def test_a_trial_s_log_has_no_secrets(tmp_path: Path) -> None:
    with log_to(tmp_path / "trial.log"):
        try:
            raise RuntimeError(f"judge refused: {dict(os.environ)}")
        except RuntimeError:
            traceback.print_exc()
            logging.getLogger().warning("token %s", SECRETS["HF_TOKEN"])
    log = (tmp_path / "trial.log").read_text()
    assert_safe(log)
    assert "RuntimeError: judge refused: {" in log
    assert log.endswith("token ***\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output-dir", "s3:/AKIAX:pa55word@bucket/x"],
        ["--set", "data.path=https://me:pa55word@host/x.jsonl"],
    ],
    ids=lambda arguments: arguments[1][:9],
)
def test_an_address_that_is_refused_is_shown_without_its_password(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quickstart", *arguments, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert "pa55word" not in out + err
