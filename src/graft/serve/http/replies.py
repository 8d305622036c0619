"""What is answered, as OpenAI's API has it; fields that it does not have are said to be ours."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Reason = Literal["stop", "length"]


class PromptDetails(BaseModel):
    """Ours: `virtual_tokens`, which the adapter puts before every prompt; they take places in the context and are in prompt_tokens."""

    virtual_tokens: int


class Used(BaseModel):
    """Tokens of all prompts (virtual ones among them), and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopToken(BaseModel):
    """A token and its log-probability; `bytes` are its text's, None where it is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ToldToken(TopToken):
    """A token of the answer, with the likeliest ones in its place."""

    top_logprobs: list[TopToken]


class ChatLogprobs(BaseModel):
    """The answer's tokens, one after another."""

    content: list[ToldToken]
    refusal: None = None


class Reply(BaseModel):
    """The message answered."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatCompletion(BaseModel):
    """A whole answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Used


class Delta(BaseModel):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """What is new of one of n answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Reason | None = None


class ChatChunk(BaseModel):
    """An event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Used | None = None


class TextLogprobs(BaseModel):
    """Lists as long as there are tokens; of an echoed prompt's first token nothing is known."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of n answers to one of the prompts: number prompt * n + answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Reason | None


class TextCompletion(BaseModel):
    """Whole answers to prompts, or an event of streamed ones."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Used | None


class Model(BaseModel):
    """The base, or an adapter. Beyond OpenAI's fields all is ours.

    `parent`: an adapter's base. `methods` are known once an adapter has been read (`loaded`), or from its config. `bytes`: what it takes of
    host memory, or its files before it is read. `virtual_tokens`: those it puts before a prompt.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "graft"
    parent: str | None
    methods: str | None
    virtual_tokens: int | None
    bytes: int | None
    loaded: bool
    on_device: bool
    chat: Annotated[bool, Field(description="Whether there is a chat template.")]
    max_model_len: Annotated[int, Field(description="Tokens of a prompt, virtual ones, and an answer together.")]


class Models(BaseModel):
    """All of them, the base first."""

    object: Literal["list"] = "list"
    data: list[Model]


class Deleted(BaseModel):
    """An adapter that is no more."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "ready"]
