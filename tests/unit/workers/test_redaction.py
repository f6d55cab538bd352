"""No secret of the environment or of an address is recorded, logged or shown with an error."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

import pytest
from builders import trial

from analysis.__main__ import main as analyse
from trainables.errors import Fault, TrialError, UserError, as_reason, first_line, noted
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
    "S3_HOST_KEY_2": "of the second host",
    "SECRET_PROFILE": "of-a-profile",
    "DB_PASSWD": "of-a-database",
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
def test_values_of_secret_variables_are_blotted_out() -> None:
    told = redacted(f"refused: {dict(os.environ)}, {SECRETS['HF_TOKEN']} and {PEM}")
    assert_safe(told)
    assert told.endswith(", *** and ***")
    assert "'HF_TOKEN': '***'" in told
    assert "'GOOGLE_APPLICATION_CREDENTIALS_JSON': '***'" in told
    assert "http://***@127.0.0.1:9" in told


def test_a_value_of_eight_characters_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "12345678")
    assert redacted("got 12345678") == "got ***"
    assert redacted("12345678") == "***"
    monkeypatch.setenv("SOME_KEY", "1234567")
    assert redacted("got 1234567") == "got 1234567"


def test_of_values_that_are_part_of_another_nothing_of_the_longest_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = "0123456789abcdef"
    for start in range(9):
        monkeypatch.setenv(f"KEY_{start}", longest[start:])
    assert redacted(f"got {longest}") == "got ***"


def test_words_and_paths_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = {
        "TOKENIZERS_PARALLELISM": "false",
        "TOKENIZER": "my-own-tokenizer",
        "TOKENIZER_PATH": "meta-llama/Llama-3.2-1B",
        "api_key_file": "keys/api.txt",
        "SSH_KEY_PATH": "keys/id_rsa",
        "SECRETS_DIR": "run/secrets",
        "TOKEN_HOST": "tokens.example.org",
        "NUM_TOKENS": "1000000000",
        "KEYBOARD_LAYOUT": "llama-3-8b",
        "MONKEY_ISLAND": "my_sweep_7",
        "GOOGLE_APPLICATION_CREDENTIALS": "/etc/keys/gone.json",
        "SSL_KEY": str(tmp_path),
        "SOME_TOKEN": " " * 8,
        "HOSTNAME": "ordinary",
    }
    for name, value in ordinary.items():
        monkeypatch.setenv(name, value)
    told = " at ".join(ordinary.values())
    assert redacted(told) == told


def test_a_long_reason_keeps_its_remedy() -> None:
    told = as_reason(f"the device has too little memory ({'x' * 5000}); try larger GPUs")
    assert told.startswith("the device has too little memory (x")
    assert told.endswith("xx); try larger GPUs")
    assert len(told) == 1005


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3a://AKIAX:sec/ret@bucket/x", "s3a://***@bucket/x"),
        ("s3:/AKIAX:secret@bucket", "s3:/***@bucket"),
        ("https://u:1234@host", "https://***@host"),
        ("https://me:pw@host:8080/a?b=1", "https://***@host:8080/a?b=1"),
        ("redis://:secret@host", "redis://***@host"),
        ("https://hf_secret:@host", "https://***@host"),
        ("s3://u:123456/x@bucket", "s3://***@bucket"),
        (f"https://me:{'p' * 1000}@host", "https://***@host"),
        ("https://host/a?key=AIza&b=1", "https://host/a?key=***&b=1"),
        *((f"x?b=1&Access_Token=x{end}", f"x?b=1&Access_Token=***{end}") for end in " ')\""),
        ("x?X-Amz-Signature=0a&X-Amz-Expires=9", "x?X-Amz-Signature=***&X-Amz-Expires=9"),
        ("x?X-Amz-Credential=AK%2F&sig=b", "x?X-Amz-Credential=***&sig=***"),
        *(
            (f"https://host/a?b=1&{option}=c", f"https://host/a?b=1&{option}=***")
            for option in (
                *("api_key", "apikey", "token", "access_token", "password", "secret"),
                *("X-Amz-Security-Token", "X-Goog-Signature", "signature", "credential"),
            )
        ),
        *(
            (harmless, harmless)
            for harmless in (
                "http://127.0.0.1:9000/a: no, me@host",
                "http://git.lan:3000/team/repo.git@v1.2",
                "ray://head:10001,worker@node",
                "gs://anonymous@bucket/x",
                "s3://bucket/a?b=token&keys=3",
                "the key=value at s3://bucket of us:me:you@home",
                "s3://a:b of me@home",
                "docker://registry/image:tag@sha256",
                "'s3://a','b:c@d','e://f:g','h@i'",
                '"s3://a","b:c@d","e://f:g","h@i"',
            )
        ),
    ],
)
def test_passwords_and_keys_in_addresses_are_blotted_out(address: str, told: str) -> None:
    assert redacted(f"got {address}; no") == f"got {told}; no"


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", [RuntimeError, TrialError])
def test_the_reason_of_a_trial_that_failed_is_safe_and_short(
    kind: type[Exception], tmp_path: Path
) -> None:
    error = kind(f"judge refused: {SECRETS['HF_TOKEN']} {dict(os.environ)} {'x' * 5000}")
    (tmp_path / "error.txt").write_text(f"ray::train()\n{error}\n")
    reason = verdict(trial(0).config, error).reason
    for told in (reason, first_line(error), noted(error), _why_ended(str(tmp_path / "error.txt"))):
        assert_safe(told or "")
        assert "judge refused: *** {" in (told or "")
        assert 1000 < len(told or "") < 1050
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
        ["--output-dir", "s3a://AKIAX:pa55word@bucket/x"],
        ["--output-dir", "s3:/AKIAX:pa55word@bucket/x"],
        ["--output-dir", "s3://AKIAX:pa55word@bucket/x"],
        ["--set", "data.path=https://me:pa55word@host/x.jsonl"],
        ["--set", "model.name=https://me:pa55word@host/x"],
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


def test_so_is_one_of_a_sweep_to_analyse(capsys: pytest.CaptureFixture[str]) -> None:
    assert analyse(["report", "s3a://AKIAX:pa55word@bucket/x"]) == 2
    assert "got s3a://***@bucket/x" in capsys.readouterr().err
