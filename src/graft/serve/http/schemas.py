"""What a request may say, as OpenAI's API has it. The document is made from these classes, and they are all that checks a body.

Nothing is ignored: a field that the engine cannot obey is absent, and refused by name, or takes only the value that changes nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MOST = 2**31 - 1


def whole(value: Any) -> Any:
    """A number as JSON Schema reads it: 2.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)
Neutral = Annotated[float, Field(ge=0, le=0, description="Only 0: penalties are not supported.")]
TokenId = Annotated[int, Field(ge=0, le=MOST), WHOLE]
PromptText = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]


class Asked(BaseModel):
    """Fields are what they say they are, numbers no strings; others are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(Asked):
    """`include_usage`: a last event with the usage; `continuous_usage_stats`: the usage so far in every event."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Request(Asked):
    """What both endpoints know."""

    model: Annotated[str, Field(min_length=1, max_length=256, description="An adapter's name, or the base's.")]
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy.")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MOST, description="Only the k likeliest tokens are drawn from; 0 for all."), WHOLE] | None = None
    seed: Annotated[int, Field(description="Seeds that differ by 2^63 are one."), WHOLE] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: Annotated[bool, Field(description="Go on after the end of sequence.")] | None = None
    presence_penalty: Neutral | None = None
    frequency_penalty: Neutral | None = None
    user: Annotated[str, Field(max_length=512, description="Not used.")] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_at_end(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_always(self) -> bool:
        """Whether every event of a stream has it."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: Annotated[
        PromptText
        | Annotated[list[PromptText], Field(min_length=1, max_length=64)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=64)],
        Field(description="A text, texts, a text's token ids, or lists of token ids."),
    ]
    n: Annotated[int, Field(ge=1, le=16, description="Answers to each prompt."), WHOLE] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MOST, description="16 when left out. Less are answered where less fit."), WHOLE] | None = None
    echo: Annotated[bool, Field(description="Answer the prompt too; with logprobs the prompt's are told.")] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20, description="So many of the likeliest tokens in each place."), WHOLE] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [one for one in self.prompt if isinstance(one, int)]
        return [ids] if ids else [one for one in self.prompt if not isinstance(one, int)]


class TextPart(Asked):
    """A part of a message. There are no others: the base reads text."""

    type: Literal["text"]
    text: str


class Message(Asked):
    """One message of a chat. "developer" is another word for "system"."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Annotated[str, Field(max_length=128, description="Not used.")] | None = None

    def plain(self) -> dict[str, str]:
        """The message as templates know it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class TextFormat(Asked):
    """The only format of an answer."""

    type: Literal["text"]


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    n: Annotated[int, Field(ge=1, le=128, description="Answers."), WHOLE] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST, description="All that fit when left out."), WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST, description="max_tokens by its newer name."), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, description="With more than 0, logprobs are told."), WHOLE] | None = None
    response_format: TextFormat | None = None

    @property
    def told(self) -> int | None:
        """How many alternatives are told, or None."""
        return (self.top_logprobs or 0) if self.logprobs or self.top_logprobs else None
