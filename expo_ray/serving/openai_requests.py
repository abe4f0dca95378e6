"""The bodies of requests: what would change the answer and is not supported is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from expo_ray.serving.request_fields import (
    heeded_fields,
    heeded_in_turn,
    heeded_stream_options,
)
from expo_ray.serving.sampling import SamplingParams
from expo_ray.tables.prompts import Message


def require_characters(text: str) -> str:
    """Return a text of whole characters.

    Raises:
        ValueError: It holds half of a surrogate pair, which no tokenizer reads.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no character") from error
    return text


Text = Annotated[str, AfterValidator(require_characters)]


class TextPart(BaseModel):
    """One part of a turn's content."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


def join_parts(content: object) -> object:
    """Return the text of a list of text parts, and anything else as it is.

    Raises:
        ValueError: A part is something else.
    """
    if not isinstance(content, list):
        return content
    if not content or not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        raise ValueError("only text parts are supported")
    return "".join(TextPart.model_validate(part).text for part in content)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _one_prompt(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, options: Any) -> Any:
        return heeded_stream_options(options, cls.model_fields)


class TextFormat(BaseModel):
    """`response_format`: text, which is what there is without it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class ChatMessage(BaseModel):
    """One turn of a chat; text parts are joined."""

    role: Text = Field(min_length=1)
    content: Annotated[Text, BeforeValidator(join_parts)]

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, turn: Any) -> Any:
        return heeded_in_turn(turn, cls.model_fields)


class GenerationBody(BaseModel):
    """What chat completions and completions share."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: Text | None = Field(None, description="None is whatever is served.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    stop: Annotated[
        list[Annotated[Text, Field(min_length=1)]] | None, BeforeValidator(_as_list)
    ] = None
    seed: int | None = None
    ignore_eos: bool = Field(
        False, description="As vLLM's: go on to the limit on tokens, for load tests."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    skip_special_tokens: bool = Field(
        True, description="Whether special tokens that the model writes are left out of the text."
    )
    include_stop_str_in_output: bool = Field(
        False, description="Whether a stop text that ends the response is part of it."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: TextFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, body: Any) -> Any:
        return heeded_fields(body, cls.model_fields)

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for `stream: true`")
        return self

    def sampling(self, max_tokens: int) -> SamplingParams:
        """Return the sampling settings; OpenAI's defaults where the client names none."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            max_tokens=max_tokens,
            stop=tuple(self.stop or ()),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    add_generation_prompt: bool | None = None
    """Whether the template opens the assistant's turn; it does unless the last turn goes on."""
    continue_final_message: bool = False
    """Whether the response goes on with the last turn instead of answering it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template, such as `enable_thinking`."""

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens contradict each other")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "continue_final_message and add_generation_prompt contradict each other"
            )
        return self

    def chat(self) -> list[Message]:
        """Return the turns as other rooms know them."""
        return [Message(role=m.role, content=m.content) for m in self.messages]


class CompletionBody(GenerationBody):
    """POST /v1/completions, one prompt."""

    prompt: Annotated[Text, BeforeValidator(_one_prompt)]


class RewardsBody(BaseModel):
    """POST /v1/rewards: a chat that ends with the assistant's turn."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: Text | None = None
    reference: Annotated[Text | None, BeforeValidator(join_parts)] = None
    """For pairwise models: another response to the same prompt, which this one is compared with."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, body: Any) -> Any:
        return heeded_fields(body, cls.model_fields)


class AlphaBody(BaseModel):
    """POST /v1/alpha."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    alpha: float | None = Field(None, description="Beside rules, for tensors without a rule.")
    alpha_rules: dict[str, Any] | list[Any] | None = Field(
        None, description="What a file for --alpha-rules holds."
    )
    drain_seconds: float = Field(
        300.0,
        gt=0,
        le=86400,
        description="How long requests that are being answered may take to finish.",
    )
