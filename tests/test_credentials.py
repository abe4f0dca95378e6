"""Keys as files and secret stores leave them, and what is shown of them afterwards: nothing."""

import logging
import pickle

import httpx
import pytest

from expo_ray import redaction
from expo_ray.credentials import read_api_key
from expo_ray.errors import ConfigError, ServingError
from expo_ray.redaction import MASK, RedactingFormatter, redacted
from expo_ray.rewards import RewardModelSpec
from expo_ray.rewards.interface import RewardScore

NAME = "SOME_NAME_OF_MINE"


@pytest.fixture(autouse=True)
def forget_keys() -> None:
    """Short keys of other tests would be masked inside those of these."""
    redaction._remembered.clear()


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {}\t\n\n", "{}"])
def test_white_space_around_a_key_is_dropped(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, around.format("plain.key/1"))
    assert read_api_key(NAME) == "plain.key/1"


def test_no_variable_asks_for_no_key() -> None:
    assert read_api_key(None) is None


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("quiet.one\nquiet.two", "a control character, number 10 of 19"),
        ("quiet.one\x7fx", "a control character, number 10 of 11"),
        ("quiet.\N{LATIN SMALL LETTER E WITH ACUTE}", "a character outside ASCII, number 7 of 7"),
        ("quiet\N{ZERO WIDTH SPACE}", "a character outside ASCII, number 6 of 6"),
    ],
)
def test_a_key_that_no_header_carries_is_refused_unseen(
    value: str, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, value)
    with pytest.raises(ConfigError, match="no HTTP header") as refusal:
        read_api_key(NAME)
    assert refusal.value.exit_code == 2
    assert refusal.value.got == got
    assert "quiet" not in str(refusal.value)
    assert NAME in str(refusal.value)


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_missing_key_is_refused(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    if value is not None:
        monkeypatch.setenv(NAME, value)
    with pytest.raises(ConfigError, match="not set" if value is None else "empty"):
        read_api_key(NAME)


def test_the_key_of_a_judge_is_looked_at_before_any_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXPO_RAY_JUDGE_API_KEY", "first.line\nsecond")
    with pytest.raises(ConfigError, match="no HTTP header"):
        RewardModelSpec.parse("judge:http://127.0.0.1:1/v1#m")


def test_whatever_was_read_as_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "no-form:known \\ here\n")
    key = read_api_key(NAME)
    assert key is not None
    for shown in (key, repr(key), f"{key}\n".encode(), httpx.URL("http://h/", params={"q": key})):
        error = ServingError("failed", got=f"Illegal header value {shown}", where=f"x {shown}")
        for text in (str(error), str(error.as_dict()), str(pickle.loads(pickle.dumps(error)))):
            assert "known" not in text
            assert MASK in text


def test_secret_variables_are_masked_and_plain_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/plain+words")
    monkeypatch.setenv("MY_DATABASE_PASSWORD", "correct horse")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SOME_TOKEN", "false")
    said = redacted("wJalr/plain+words; wJalr%2Fplain%2Bwords; correct horse; false")
    assert said == f"{MASK}; {MASK}; {MASK}; false"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://user:pa@ss@host:80/v1?x=1", f"http://{MASK}@host:80/v1?x=1"),
        ("socks5://me:word@proxy", f"socks5://{MASK}@proxy"),
        ("https://h/k?X-Amz-Signature=ab12&x=1", f"https://h/k?X-Amz-Signature={MASK}&x=1"),
        ("https://h/k?a=1&access_token=abc>", f"https://h/k?a=1&access_token={MASK}>"),
        ("{'Authorization': 'Bearer abc.d'}", f"{{'Authorization': '{MASK}'}}"),
        ("(b'Authorization', b'Basic dXNlcg==')", f"(b'Authorization', b'{MASK}')"),
        ("authorization: Bearer opaque", f"authorization: {MASK}"),
        ("x-api-key=opaque", f"x-api-key={MASK}"),
        ("Illegal header value b'Bearer opaque-1\\n'", f"Illegal header value b'Bearer {MASK}'"),
        ("Incorrect API key provided: sk-12345678.", f"Incorrect API key provided: {MASK}."),
        ("hf_abcdefghijklmnop1234 is expired", f"{MASK} is expired"),
        ("AKIAABCDEFGHIJKLMNOP", MASK),
    ],
)
def test_forms_of_secrets_are_masked(text: str, left: str) -> None:
    assert redacted(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "hf://owner/name@main",
        "hf://gpt2@main",
        "s3://bucket/prefix/a@b",
        "http://127.0.0.1:8000/v1/models?page=2",
        "the API key is missing or wrong",
        "Bearer authentication is required",
        "--api-key-env NAME",
        "model.layers.0.self_attn.k_proj.weight",
        "special_tokens=true, max_tokens=5, key=value",
        "task-force-of-ten",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_the_log_and_its_tracebacks_hold_none() -> None:
    try:
        raise ValueError("https://me:word@host/")
    except ValueError as error:
        record = logging.LogRecord(
            "x", 30, "f", 1, "%s", ("Bearer a1b2c3",), (ValueError, error, error.__traceback__)
        )
    line = RedactingFormatter("%(message)s").format(record)
    assert "a1b2c3" not in line
    assert "me:word" not in line
    assert "Traceback" in line


def test_the_reason_of_a_row_holds_none() -> None:
    assert "word" not in str(RewardScore.failed("no answer from http://me:word@judge/v1").error)


@pytest.mark.timeout(60)
def test_long_text_of_strangers_takes_no_long_time() -> None:
    for text in ("a." * 10**6, "eyJaaaaaaaa-" * 10**5, "a:/" * 10**5):
        assert redacted(text) == text
