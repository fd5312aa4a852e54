"""Requests as OpenAI, DeepSeek and vLLM clients send them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Body(BaseModel):
    """Fields that are not declared are kept apart, to be named in the response's header."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    @property
    def unknown(self) -> list[str]:
        """Names that no field has."""
        return list(self.model_extra or {})


class TextPart(Body):
    """A piece of a message; nothing but text is served."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """A function the model called."""

    name: str
    arguments: str = "{}"  # JSON


class ToolCall(Body):
    """A call in the history."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def thinking(self) -> str:
        """What an assistant thought, under either name."""
        return self.reasoning_content or self.reasoning or ""


class Function(Body):
    """A function the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # JSON schema of the arguments
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name in a tool choice."""

    name: str


class ToolChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """The form of an answer."""

    name: str = "answer"
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """Text, or JSON of a form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Body):
    """What a stream ends with."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False  # the tokens so far in every chunk


class Thinking(Body):
    """DeepSeek's switch."""

    type: Literal["enabled", "disabled"]


class Wish(Body):
    """How completions are drawn; null means the server's default, as in OpenAI's API."""

    model: str | None = None
    n: Annotated[int | None, Field(ge=1)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1, le=2**31)] = None
    min_tokens: Annotated[int | None, Field(ge=0, le=2**31)] = None
    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, le=2**31)] = None  # -1 and 0 truncate nothing
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=100)] = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Whole | None = None
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]] | None, Field(max_length=60)] = None
    ignore_eos: bool | None = None
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_in_chunks(self) -> bool:
        """Whether every chunk counts the tokens so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @model_validator(mode="before")
    @classmethod
    def _refuse_known(cls, fields: Any) -> Any:
        """Fields of other servers that mean something and are not honoured here, unless they ask for nothing."""
        if isinstance(fields, dict):
            for name, idle in UNSUPPORTED.items():
                if name in fields and fields[name] not in idle:  # pyright: ignore[reportUnknownArgumentType]
                    raise ValueError(f"{name} is not supported by this server; leave it out")
        return fields  # pyright: ignore[reportUnknownVariableType]


class ChatRequest(Wish):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=2**31)] = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    thinking: Thinking | None = None
    thinking_token_budget: Annotated[int | None, Field(ge=0, le=2**31)] = None
    min_thinking_tokens: Annotated[int | None, Field(ge=0, le=2**31)] = None  # the thinking does not end before
    continue_final_message: bool | None = None  # the last message is the assistant's, and goes on
    add_generation_prompt: bool | None = None  # the opposite; needs not be given
    chat_template_kwargs: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    trace: bool | None = None  # a stream says how each token came about


class CompletionRequest(Wish):
    """The body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int | None, Field(ge=0, le=2**31)] = None  # 0 scores an echoed prompt alone
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None


class TokenizeRequest(Body):
    """A text, or a dialogue in the model's template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message] | None, Field(min_length=1)] = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class ReloadRequest(Body):
    """How newer weights of the same run are taken up."""

    in_flight: Literal["refuse", "recompute", "continue"] = "recompute"


class GradeRequest(Body):
    """A question and what an assistant said to it."""

    question: str
    answer: str  # the content of its message, or the answer alone


# Known elsewhere, not honoured here: each with the values that ask for nothing. A request with another is refused.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "suffix": (None, ""),
    "functions": (None, []),
    "function_call": (None, "none"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1, 1.0),
    "bad_words": (None, []),
    "prompt_logprobs": (None,),
    "truncate_prompt_tokens": (None,),
    "allowed_token_ids": (None, []),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "structured_outputs": (None,),
    "logits_processors": (None, []),
    "chat_template": (None,),
    "documents": (None, []),
}
