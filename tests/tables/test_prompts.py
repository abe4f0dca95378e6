import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.errors import ConfigError, TableError
from expo_ray.tables import read_prompts
from tests import samples

ROWS = [
    {"prompt": "one"},
    {"instruction": "two", "prompt_id": "b"},
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "three, \u2028 \u00e4"},
        ],
        "prompt_id": "7",
    },
]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def as_pairs(path: Path) -> list[tuple[str, str, int]]:
    return [(p.prompt_id, p.messages[-1]["content"], len(p.messages)) for p in read_prompts(path)]


EXPECTED = [("0", "one", 1), ("b", "two", 1), ("7", "three, \u2028 \u00e4", 2)]


def test_every_format_gives_the_same_prompts(tmp_path: Path) -> None:
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    paths = [
        write(tmp_path, "a.jsonl", lines + "\n"),
        write(tmp_path, "bom.jsonl", "\ufeff" + lines.replace("\n", "\r\n")),
        write(tmp_path, "a.json", json.dumps(ROWS, indent=1)),
        write(tmp_path, "data.json", json.dumps({"data": ROWS})),
        write(tmp_path, "lines.json", lines),
    ]
    table = pa.Table.from_pylist(
        [
            {"prompt": None, "instruction": None, "messages": None, "prompt_id": None, **r}
            for r in ROWS
        ]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    messages = json.dumps(ROWS[2]["messages"], ensure_ascii=False).replace('"', '""')
    csv_text = f'prompt,instruction,messages,prompt_id\r\none,,,\r\n,two,,b\r\n,,"{messages}",7\r\n'
    paths += [tmp_path / "a.parquet", write(tmp_path, "a.csv", csv_text)]
    for path in paths:
        assert as_pairs(path) == EXPECTED, path.name


def test_limit_and_integer_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"prompt": "x", "prompt_id": 5}\nbroken\n')
    assert [p.prompt_id for p in read_prompts(path, limit=1)] == ["5"]
    with pytest.raises(ConfigError):
        read_prompts(path, limit=0)


def test_one_object_is_one_prompt(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{"prompt": [{"role": "user", "content": "hi"}]}')
    assert as_pairs(path) == [("0", "hi", 1)]


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": }\n', "a.jsonl:3"),
        ("a.jsonl", '{"prompt": "x"}\n[1]\n', "a.jsonl:2"),
        ("a.jsonl", '{"prompt": ""}\n', "a.jsonl:1, prompt"),
        ("a.jsonl", '{"output": "y"}\n', "a.jsonl:1"),
        ("a.jsonl", '{"prompt": 3}\n', "a.jsonl:1, prompt"),
        ("a.jsonl", '{"prompt": "x", "prompt_id": 1.5}\n', "a.jsonl:1"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', "a.jsonl:1, messages[0]"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "y"}]}', "a.jsonl:1, messages"),
        ("a.jsonl", '{"prompt": "x", "prompt_id": "1"}\n{"prompt": "y"}\n', "a.jsonl:2"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1"),
        ("a.json", '[\n{"prompt": "x"},\n]', "a.json:3"),
        ("a.json", '[{"prompt": "x"}, null]', "a.json row 1"),
        ("a.csv", 'prompt,prompt_id\n"a\nb",1\nc,2,3\n', "a.csv:4"),
        ("a.csv", 'prompt\nx\n"y', "a.csv:3"),
        ("a.csv", "prompt,answer,answer\nx,1,2\n", "a.csv"),
        ("a.parquet", "not parquet", "a.parquet"),
        ("a.txt", "hello", "a.txt"),
        ("a.jsonl", "", "a.jsonl"),
        ("a.json", "[]", "a.json"),
        ("a.csv", "prompt\n", "a.csv"),
    ],
)
def test_wrong_files_are_refused_with_their_place(
    tmp_path: Path, name: str, text: str, where: str
) -> None:
    with pytest.raises(TableError) as caught:
        read_prompts(write(tmp_path, name, text))
    assert caught.value.where == str(tmp_path / where)
    assert caught.value.got, "what was found there"
    assert caught.value.expected or caught.value.hint, "what to do about it"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["1"]), pa.array(["2"])],
                     names=["prompt", "answer", "answer"])  # fmt: skip
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(TableError, match="two columns have one name") as caught:
        read_prompts(tmp_path / "p.parquet")
    assert caught.value.got == "answer"


def test_the_number_of_fields_is_told(tmp_path: Path) -> None:
    for row, got in (("a,b,c", "3"), ("a", "1")):
        with pytest.raises(TableError) as caught:
            read_prompts(write(tmp_path, "a.csv", f"prompt,prompt_id\n{row}\n"))
        assert (caught.value.got, caught.value.expected) == (got, "2")


def test_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="does not exist"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "x"}\n{"prompt": "\xe4"}')
    with pytest.raises(TableError) as caught:
        read_prompts(tmp_path / "latin.jsonl")
    assert caught.value.where is not None
    assert caught.value.where.endswith("latin.jsonl:2")


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_no_file_content_escapes_the_error_tree(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for suffix in ("jsonl", "json", "csv", "parquet"):
        path = folder / f"fuzz.{suffix}"
        path.write_bytes(data)
        try:
            prompts = read_prompts(path)
        except TableError:
            continue
        assert all(p.messages[-1]["content"].strip() for p in prompts)


def test_prompts_in_the_form_of_alpaca_eval(tmp_path: Path) -> None:
    rows = samples.prompts()
    found = read_prompts(samples.write_lines(tmp_path / "prompts.jsonl", rows))
    assert [p.prompt_id for p in found] == [row["prompt_id"] for row in rows]
    assert [p.messages for p in found] == [
        ({"role": "user", "content": row["instruction"]},) for row in rows
    ]


def test_published_prompts(published_data: Path) -> None:
    prompts = read_prompts(published_data / "alpaca_eval" / "prompts.jsonl")
    assert len(prompts) == 805
    assert prompts[0].prompt_id == "alpaca_eval-0"
    assert prompts[0].messages[0]["content"].startswith("What are the names of some famous actors")
