import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.errors import CheckpointError
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.engines.loading import _holds_as_given, _probe
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables import Message
from tests.pico import pico_config, pico_tokenizer, save_model, save_pair

PROMPTS = ["hi", "a much longer question, twice " * 2, "x", "List three fruits.", "?" * 90]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without tied embeddings: a tied random one only repeats its last token."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(pico_config(tie_word_embeddings=False, initializer_range=0.2))
    return save_model(model, tmp_path_factory.mktemp("engine") / "model")


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    engine = TransformersEngine()
    engine.load(ModelSource(model=str(folder)))
    return engine


def save_fixed_odds(folder: Path, letters: str, *, stray: int, eos: int) -> Path:
    """Save a model that writes letters and a special token, whatever it reads, until it ends."""
    model = LlamaForCausalLM(pico_config(tie_word_embeddings=False))
    likely = {**dict.fromkeys(pico_tokenizer().convert_tokens_to_ids([*letters]), 9.0)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "embed" in name or "norm" in name else 0.0)
        for token, logit in (likely | {stray: 9.0, eos: 6.5}).items():
            model.lm_head.weight[token, 0] = logit
    return save_model(model, folder)


def rows(engine: TransformersEngine, max_tokens: int = 24, **settings: object) -> list[Row]:
    return [
        Row(
            prompt_ids=engine.encode_chat([Message(role="user", content=text)]),
            params=SamplingParams(**settings),
            seed=1000 + i,
            max_tokens=max_tokens,
        )
        for i, text in enumerate(PROMPTS)
    ]


def test_a_row_is_the_same_alone_and_in_any_batch(engine: TransformersEngine) -> None:
    for settings in ({"temperature": 0.7}, {"temperature": 0}, {"top_k": 0, "top_p": 1}):
        together = engine.generate(rows(engine, **settings))
        backwards = engine.generate(rows(engine, **settings)[::-1])[::-1]
        alone = [engine.generate([row])[0] for row in rows(engine, **settings)]
        assert together == alone == backwards
        assert len({result.text for result in together}) == len(PROMPTS)


def test_greedy_is_what_transformers_alone_says(engine: TransformersEngine, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = engine.generate(rows(engine, temperature=0))
    for text, result in zip(PROMPTS, made, strict=True):
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**encoded, max_new_tokens=24, do_sample=False, pad_token_id=0)
        new = out[0, encoded["input_ids"].shape[1] :]
        assert result.text == tokenizer.decode(new, skip_special_tokens=True)
        assert result.prompt_tokens == encoded["input_ids"].shape[1]


def test_the_seed_alone_changes_the_noise(engine: TransformersEngine) -> None:
    first, other = rows(engine, temperature=1)[:1] * 2, rows(engine, temperature=1)[0]
    other.seed = 7
    same, again, different = engine.generate([*first, other])
    assert same == again
    assert same.text != different.text


def test_limits_stop_texts_and_callbacks(engine: TransformersEngine) -> None:
    batch = rows(engine, max_tokens=24)
    whole = engine.generate(batch)
    assert {result.finish_reason for result in whole} == {"length"}
    assert {result.completion_tokens for result in whole} == {24}

    batch[1].max_tokens = 5
    stop = whole[0].text[3:5]
    batch[0].params = SamplingParams(stop=(stop,))
    events: list[object] = []
    batch[2].on_text, batch[2].on_done = events.append, events.append
    batch[3].cancelled = True
    made = engine.generate(batch)
    assert made[0].text == whole[0].text.partition(stop)[0]
    assert made[0].finish_reason == "stop"
    assert made[0].completion_tokens < 24
    assert (made[1].completion_tokens, made[1].finish_reason) == (5, "length")
    assert made[3].completion_tokens == 1
    assert made[4] == whole[4]
    assert events[-1] == made[2] == whole[2]
    assert "".join(str(piece) for piece in events[:-1]) == whole[2].text
    assert len(events) > 5


def test_the_end_of_text_token_ends_a_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(pico_config(tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens are equally likely: greedy takes the first
    engine = TransformersEngine()
    for eos, reason in ((0, "stop"), (5, "length")):
        model.generation_config.eos_token_id = [7, eos]
        engine.load(ModelSource(model=str(save_model(model, tmp_path / str(eos)))))
        [made] = engine.generate(rows(engine, max_tokens=4, temperature=0)[:1])
        tokens = 1 if reason == "stop" else 4
        assert made == Generated(
            text="",
            finish_reason=reason,
            prompt_tokens=6,
            completion_tokens=tokens,
            token_ids=(0,) * tokens,
        )
        heeding, ignoring = rows(engine, max_tokens=4, temperature=0)[:2]
        ignoring.ignore_eos = True
        both = engine.generate([heeding, ignoring])
        assert [result.completion_tokens for result in both] == [tokens, 4]
        assert both[1].finish_reason == "length"


def test_special_tokens_in_mid_text_are_kept_for_tables_and_hidden_from_clients(
    tmp_path: Path,
) -> None:
    engine = TransformersEngine()
    engine.load(ModelSource(model=str(save_fixed_odds(tmp_path / "m", "ab", stray=5, eos=2))))
    batch = [row for seed in range(4) for row in rows(engine, temperature=1, top_k=0, top_p=1)]
    for seed, row in enumerate(batch):
        row.seed = seed
    shown = engine.generate(batch)
    for row in batch:
        row.keep_special_tokens = True
    kept = engine.generate(batch)
    for row in batch:
        row.params = row.params.model_copy(update={"stop": ("never",)})
    streamed = engine.generate(batch)
    assert streamed == kept
    assert [made.text.replace("<|system|>", "") for made in kept] == [m.text for m in shown]
    num_kept = sum("<|system|>" in made.text for made in kept)
    assert num_kept > len(kept) // 2
    ended = [made for made in kept if made.finish_reason == "stop"]
    assert len(ended) > 4
    assert not any(made.text.endswith((">", "</s>")) for made in ended)
    cut = [made for made in kept if made.finish_reason == "length"]
    assert any(made.text.endswith("<|system|>") for made in cut), "a loop of them is no clean end"
    for row in batch:
        row.params = row.params.model_copy(update={"stop": ("<|system|>",)})
    stopped = engine.generate(batch)
    assert [made.text for made in stopped] == [m.text.partition("<|system|>")[0] for m in kept]


def test_weights_that_give_no_numbers_give_an_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(pico_config(tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight[9].fill_(float("inf"))
    engine = TransformersEngine()
    engine.load(ModelSource(model=str(save_model(model, tmp_path / "bad"))))
    [made] = engine.generate(rows(engine)[:1])
    assert made.error is not None
    assert made.completion_tokens == 1


def test_loading_in_place_gives_the_weights_of_the_checkpoint(
    pico_pair: tuple[Path, Path],
) -> None:
    initial, aligned = pico_pair
    engine = TransformersEngine()
    texts = {}
    for path in (aligned, initial, aligned):
        engine.load(ModelSource(model=str(path)))
        assert engine.weights_digest == weights_digest(open_checkpoint(path))
        result = [made.text for made in engine.generate(rows(engine))]
        assert texts.setdefault(path, result) == result
    assert texts[initial] != texts[aligned]
    assert engine.max_model_len == 256
    model = engine._loaded.model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_live_pair_is_the_written_checkpoint(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    from expo_ray.extrapolation import extrapolate

    initial, aligned = map(str, pico_pair)
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.5, address="inline")
    written, live = TransformersEngine(), TransformersEngine()
    written.load(ModelSource(model=str(tmp_path / "out")))
    live.load(ModelSource(model=aligned, initial=initial, alpha=0.5))
    assert live.weights_digest == written.weights_digest
    assert live.generate(rows(live)) == written.generate(rows(written))
    zero = TransformersEngine()
    zero.load(ModelSource(model=aligned, initial=initial, alpha=0.0))
    assert zero.weights_digest == weights_digest(open_checkpoint(aligned))


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save_model(LlamaForCausalLM(pico_config()), tmp_path / "lm")
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    with pytest.raises(CheckpointError, match=r"layers\.2"):
        TransformersEngine().load(ModelSource(model=str(folder)))


LOADS = """
import sys
from pathlib import Path
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.source import ModelSource

def memory(kind):
    [line] = [l for l in open("/proc/self/status") if l.startswith(kind)]
    return int(line.split()[1]) * 1024

small, initial, aligned = sys.argv[1:]
engine = TransformersEngine()
engine.load(ModelSource(model=small))
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of imports
for alpha in (0.3, 0.5):
    engine.load(ModelSource(model=aligned, initial=initial, alpha=alpha))
print((memory("VmHWM") - before) / sum(p.nbytes for p in engine._loaded.model.parameters()))
"""


def test_a_pair_is_loaded_and_replaced_in_the_memory_of_one_model(
    folder: Path, tmp_path: Path
) -> None:
    """Each replica streams both inputs: k replicas on a node do not hold k copies of them."""
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8}
    initial, aligned = save_pair(tmp_path, **shape)
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(folder), str(initial), str(aligned)],
        capture_output=True,
        text=True,
        check=True,
    )
    # float32 in memory: 1 is the model; both inputs, in bfloat16, would add another 1.
    assert 0.9 < float(done.stdout) < 1.5


@pytest.mark.parametrize("is_tied", [True, False])
def test_another_alpha_of_the_pair_goes_into_the_same_model(is_tied: bool, tmp_path: Path) -> None:
    pair = save_pair(tmp_path, tie_word_embeddings=is_tied)
    initial, aligned = map(str, pair)
    live = TransformersEngine()
    live.load(ModelSource(model=aligned, initial=initial, alpha=0.5))
    model = live._loaded.model
    for alpha in (2.0, 0.0, -1.0):
        source = ModelSource(model=aligned, initial=initial, alpha=alpha)
        live.load(source)
        anew = TransformersEngine()
        anew.load(source)
        assert live._loaded.model is model
        assert live.weights_digest == anew.weights_digest
        expected = anew._loaded.model.state_dict()
        assert all(torch.equal(expected[k], v) for k, v in model.state_dict().items())
    other = ModelSource(model=initial, initial=initial, alpha=1.0)
    live.load(other)
    assert live._loaded.model is not model


def test_a_model_that_does_not_hold_its_tensors_as_given_is_loaded_anew() -> None:
    linear = torch.nn.Linear(3, 3)
    given = {name: _probe(tensor) for name, tensor in linear.state_dict().items()}
    assert _holds_as_given(linear, given)
    assert not _holds_as_given(linear, {"weight": given["weight"]})
    assert not _holds_as_given(linear, {**given, "other": given["bias"]})
    with torch.no_grad():
        linear.weight.copy_(linear.weight.T.clone())
    assert not _holds_as_given(linear, given)
