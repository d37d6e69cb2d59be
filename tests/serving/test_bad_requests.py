"""More than a hundred bad requests over all routes: each gets a 4xx in OpenAI's form, which names field and remedy."""

import base64
import http.client
import json
import re
import time

import pytest

from tests.fakes.processor_parts import picture
from tests.fakes.serving_parts import answer, data_url, needs_extra, png, to_openai, wav
from tests.fakes.tiny_chats import CHATS

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
TRANSCRIPTIONS, MODELS = "/v1/audio/transcriptions", "/v1/models"
LONGEST_WAIT = 10.0  # seconds, on a busy machine; each takes some milliseconds
HUGE = 10**4000
DEEP = "[" * 5000 + "]" * 5000


def messages(*parts, **fields) -> dict:
    return {"messages": [{"role": "user", "content": list(parts), **fields}]}


def image(source) -> dict:
    return {"type": "image_url", "image_url": {"url": source}}


def audio(data) -> dict:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def items(*parts) -> dict:
    return {"input": [{"role": "user", "content": list(parts)}]}


# A change of a good request, and a part of the message.
BAD_OPTIONS = [
    ({"temperature": -0.1}, "`temperature`: expected a number of at least 0 and at most 2, got -0.1"),
    ({"temperature": 2.0001}, "`temperature`: expected"),
    ({"temperature": float("nan")}, "`temperature`: expected"),
    ({"temperature": float("inf")}, "`temperature`: expected"),
    ({"temperature": -float("inf")}, "`temperature`: expected"),
    ({"temperature": HUGE}, "`temperature`: expected"),
    ({"temperature": "0.5"}, "`temperature`: expected a number"),
    ({"temperature": True}, "`temperature`: expected a number"),
    ({"temperature": {}}, "`temperature`: expected a number"),
    ({"temperature": [[[]]]}, "`temperature`: expected a number"),
    ({"top_p": 0}, "`top_p`: expected a number above 0 and at most 1"),
    ({"top_p": 1.5}, "`top_p`: expected"),
    ({"top_p": float("nan")}, "`top_p`: expected"),
    ({"top_p": "a"}, "`top_p`: expected"),
    ({"top_k": 0}, "`top_k`: expected a whole number of at least 1"),
    ({"top_k": 2.5}, "`top_k`: expected a whole number"),
    ({"seed": 2**63}, "`seed`: expected a whole number"),
    ({"seed": -HUGE}, "`seed`: expected a whole number"),
    ({"seed": "one"}, "`seed`: expected a whole number"),
    ({"seed": 1.5}, "`seed`: expected a whole number"),
    ({"stream": "yes"}, "`stream`: expected true or false, got 'yes'"),
    ({"stream": 1}, "`stream`: expected true or false"),
    ({"stream_options": "usage"}, "`stream_options`: expected an object"),
    ({"stream_options": {"include_usage": "yes"}}, "`stream_options.include_usage`: expected true or false"),
    ({"stream_options": {"chunks": 3}}, "`stream_options`: expected `include_usage`"),
    ({"tools": [{"type": "function"}]}, "`tools`: .* calls no tools; leave it out"),
    ({"tools": "none"}, "`tools`: 'none' is not served here"),
    ({"tool_choice": "required"}, "`tool_choice`: 'required' is not served here"),
    ({"moderation": {"type": "x"}}, "`moderation`: .* has no moderation"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "`chat_template_kwargs`: .* the server sets it"),
    ({"generation_config": "{}"}, "`generation_config`: '{}' is not served here"),
    ({"model": 7}, "`model`: expected a name, got 7"),
    ({"model": ["a"]}, "`model`: expected a name"),
    ({"model": "gpt-9"}, "`model`: there is no 'gpt-9' here"),
    ({"model": "\ud800"}, "`model`: there is no"),
    ({"model": ""}, "`model`: there is no ''"),
    ({"colour": "red"}, "`colour`: this route has no such field; leave it out"),
    ({"\ud800": 1}, "this route has no such field"),
    ({"": 1}, "this route has no such field"),
]
BAD_CHATS = [
    *BAD_OPTIONS,
    ({"messages": None}, "`messages`: expected a list of at least one message, got None"),
    ({"messages": []}, "`messages`: expected a list of at least one message"),
    ({"messages": "hello"}, "`messages`: expected a list"),
    ({"messages": {"role": "user", "content": "x"}}, "`messages`: expected a list"),
    ({"messages": [None]}, r"`messages\[0\]`: expected a role of system"),
    ({"messages": ["hello"]}, r"`messages\[0\]`: expected a role of system, .*got 'hello'"),
    ({"messages": [[]]}, r"`messages\[0\]`: expected a role"),
    ({"messages": [{}]}, r"`messages\[0\]`: expected a role"),
    ({"messages": [{"role": "user"}]}, r"`messages\[0\].content`: expected a text or a list of parts, got None"),
    ({"messages": [{"role": "user", "content": 5}]}, r"`messages\[0\].content`: expected a text"),
    ({"messages": [{"role": "user", "content": {"text": "x"}}]}, r"`messages\[0\].content`: expected a text"),
    ({"messages": [{"role": "robot", "content": "x"}]}, r"`messages\[0\]`: expected a role of .*got 'robot'"),
    ({"messages": [{"role": None, "content": "x"}]}, r"`messages\[0\]`: expected a role"),
    ({"messages": [{"role": {"a": 1}, "content": "x"}]}, r"`messages\[0\]`: expected a role"),
    ({"messages": [{"role": "user", "content": "\udfff"}]}, r"`messages\[0\].content`: holds half of a surrogate"),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        r"`messages\[0\].tool_calls`: tools are not served here; leave them out",
    ),
    ({"messages": [{"role": "user", "content": "x"}] * 2000}, "`messages`: expected 1024 messages and parts at most"),
    ({"messages": [{"role": "user", "content": "a dog " * 500}]}, "128 positions; shorten it"),
    ({"messages": [{"role": "user", "content": "a" * 200_001}]}, "characters"),
    (messages("x"), r"`messages\[0\].content\[0\]`: expected a part of type text"),
    (messages(None), r"`messages\[0\].content\[0\]`: expected a part"),
    (messages([]), r"`messages\[0\].content\[0\]`: expected a part"),
    (messages({}), r"`messages\[0\].content\[0\]`: expected a part"),
    (messages({"type": "file_url"}), r"`messages\[0\].content\[0\]`: expected a part .*got 'file_url'"),
    (messages({"type": "video_url"}), r"content\[0\].video_url.url`: expected a text, got None"),
    (messages({"type": {"a": []}}), r"`messages\[0\].content\[0\]`: expected a part"),
    (messages({"type": "text"}), r"`messages\[0\].content\[0\].text`: expected a text, got None"),
    (messages({"type": "text", "text": 3}), r"`messages\[0\].content\[0\].text`: expected a text, got 3"),
    (messages({"type": "text", "text": ["x"]}), r"`messages\[0\].content\[0\].text`: expected a text"),
    (messages({"type": "image_url"}), r"content\[0\].image_url.url`: expected a text, got None"),
    (messages({"type": "image_url", "image_url": {}}), r"content\[0\].image_url.url`: expected a text"),
    (messages(image(5)), r"content\[0\].image_url.url`: expected a text, got 5"),
    (messages(image("")), r"content\[0\].image_url.url`: expected a text, got ''"),
    (messages(image("\ud800")), r"content\[0\].image_url.url`: holds half of a surrogate pair"),
    (messages(image("data:image/png;base64,%%%")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("data:image/png;base64,QUJ")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("data:image/png;base64,")), r"`messages\[0\].content\[0\].image_url`|no format|0 bytes"),
    (messages(image("data:image/png")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("data:,")), r"`messages\[0\].content\[0\].image_url`|no format"),
    (messages(image("http://")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("http://[::1")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("http://127.0.0.1/x.png")), r"`messages\[0\].content\[0\].image_url`: .*private"),
    (messages(image("http://a:99999/x")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("ftp://a/b.png")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("file:///etc/passwd")), r"`messages\[0\].content\[0\].image_url`: .*may not be named"),
    (messages(image("javascript:alert(1)")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image("\x00")), r"`messages\[0\].content\[0\].image_url`"),
    (messages(image(data_url(b"no image"))), "no format that Pillow knows"),
    (messages(image(data_url(png(picture())[:50]))), "damaged|cut short|no format"),
    (messages(image(data_url(wav(), "audio/wav"))), "no format that Pillow knows"),
    (messages(audio(5)), r"content\[0\].input_audio.data`: expected a text, got 5"),
    (messages(audio("")), r"content\[0\].input_audio.data`: expected a text, got ''"),
    (messages(audio("%%%")), r"`messages\[0\].content\[0\].input_audio`"),
    (messages(audio(base64.b64encode(b"no audio").decode())), "cannot be decoded"),
    (messages(audio(base64.b64encode(png(picture())).decode())), "cannot be decoded"),
    (messages({"type": "audio_url", "audio_url": {"url": "\n"}}), r"`messages\[0\].content\[0\].audio_url`"),
    (messages(*[image("QUJD")] * 17), "`messages`: expected 16 images, audio files and videos at most, got 17"),
    ({"n": 0}, "`n`: expected a whole number of at least 1 and at most 16"),
    ({"n": 1000}, "`n`: expected a whole number"),
    ({"n": "2"}, "`n`: expected a whole number"),
    ({"max_tokens": 0}, "`max_tokens`: expected a whole number of at least 1"),
    ({"max_tokens": -5}, "`max_tokens`: expected"),
    ({"max_tokens": 1.5}, "`max_tokens`: expected a whole number"),
    ({"max_tokens": HUGE}, "`max_tokens`: expected a whole number of at least 1 and at most 1e\\+09"),
    ({"max_tokens": 500}, "500 tokens are requested .* ask for"),
    ({"max_completion_tokens": "many"}, "`max_completion_tokens`: expected a whole number"),
    ({"stop": ""}, "`stop`: expected a text or a list of texts, none of them empty"),
    ({"stop": []}, "`stop`: expected"),
    ({"stop": [1]}, "`stop`: expected"),
    ({"stop": {"a": "b"}}, "`stop`: expected"),
    ({"stop": ["a"] * 5}, "`stop`: expected 4 texts"),
    ({"stop": "a" * 65}, "`stop`: expected 4 texts of 64 characters"),
    ({"logit_bias": []}, "`logit_bias`: expected token ids with a number"),
    ({"logit_bias": {"a": 1}}, "`logit_bias`: expected token ids"),
    ({"logit_bias": {"-1": 1}}, "`logit_bias`: expected token ids"),
    ({"logit_bias": {"5": "x"}}, "`logit_bias`: expected token ids"),
    ({"logit_bias": {"5": float("nan")}}, "`logit_bias`: expected token ids"),
    ({"logit_bias": {"5": 1e9}}, "`logit_bias`: expected token ids .* from -100 to 100"),
    ({"logit_bias": {"99999": 1}}, "`logit_bias`: expected token ids below"),
    ({"logit_bias": {"\u0665": 1}}, "`logit_bias`: expected token ids"),
    ({"frequency_penalty": 3}, "`frequency_penalty`: expected a number of at least -2 and at most 2"),
    ({"frequency_penalty": float("nan")}, "`frequency_penalty`: expected"),
    ({"presence_penalty": -2.5}, "`presence_penalty`: expected"),
    ({"presence_penalty": "high"}, "`presence_penalty`: expected"),
    ({"logprobs": 3}, "`logprobs`: expected true or false"),
    ({"top_logprobs": 3}, "`top_logprobs`: .* send `logprobs` as true"),
    ({"top_logprobs": 21, "logprobs": True}, "`top_logprobs`: expected a whole number of at least 0 and at most 20"),
    ({"response_format": {"type": "json_object"}}, "`response_format`: .* answers are free text"),
    ({"response_format": "text"}, "`response_format`: 'text' is not served here"),
    ({"functions": [{}]}, "`functions`: .* calls no tools"),
    ({"modalities": ["text", "audio"]}, "`audio`: expected an object such as .*, got None"),
    ({"modalities": ["text", "image"]}, "`model`: it writes no images; use a model with a codec of image"),
    ({"modalities": ["smell"]}, "`modalities`: expected a list of text, image, audio, got .*smell"),
    ({"modalities": {}}, "`modalities`: expected a list"),
    ({"audio": {"voice": "alloy"}}, "`audio`: it needs `modalities` with 'audio'"),
    ({"guidance_scale": "high"}, "`guidance_scale`: expected a number of at least 0 and at most 100"),
    ({"prediction": {"type": "content"}}, "`prediction`: "),
    ({"reasoning_effort": "high"}, "`reasoning_effort`: 'high' is not served here"),
    ({"web_search_options": {}}, "`web_search_options`: .* searches nothing"),
]
BAD_RESPONSES = [
    *BAD_OPTIONS,
    ({"input": None}, "`input`: expected a text or a list of messages, got None"),
    ({"input": []}, "`input`: expected a text"),
    ({"input": 5}, "`input`: expected a text"),
    ({"input": {"role": "user", "content": "x"}}, "`input`: expected a text"),
    ({"input": "\ud800"}, "`input`: holds half of a surrogate pair"),
    ({"input": ["x"]}, r"`input\[0\]`: expected an item of type message, got 'x'; leave others out"),
    ({"input": [{"type": "function_call_output"}]}, r"`input\[0\]`: expected an item of type message"),
    ({"input": [{"type": ["message"]}]}, r"`input\[0\]`: expected an item of type message"),
    ({"input": [{"content": "x"}]}, r"`input\[0\].role`: expected system"),
    ({"input": [{"role": "user"}]}, r"`input\[0\].content`: expected a text or a list of parts"),
    (items("x"), r"`input\[0\].content\[0\]`: expected a part of type input_text"),
    (items({"type": "text", "text": "x"}), r"`input\[0\].content\[0\]`: expected a part of type input_text"),
    (items({"type": "input_text", "text": None}), r"`input\[0\].content\[0\].text`: expected a text"),
    (items({"type": "input_image"}), r"`input\[0\].content\[0\].image_url`: expected a text, got None"),
    (items({"type": "input_image", "image_url": {"url": "x"}}), r"content\[0\].image_url`: expected a text"),
    (items({"type": "input_image", "file_id": "f"}), r"content\[0\].file_id`: .* send the image as `image_url`"),
    (items({"type": "input_image", "image_url": data_url(b"x")}), "no format that Pillow knows"),
    (items({"type": "input_audio", "input_audio": {"format": "wav"}}), r"input_audio.data`: expected a text"),
    (items({"type": "input_file", "file_data": "x"}), r"`input\[0\].content\[0\]`: expected a part"),
    ({"instructions": 5}, "`instructions`: expected a text, got 5"),
    ({"max_output_tokens": 0}, "`max_output_tokens`: expected a whole number of at least 1"),
    ({"max_output_tokens": 5000}, "ask for"),
    ({"include": "all"}, "`include`: expected a list of"),
    ({"include": [{}]}, "`include`: expected a list of"),
    ({"metadata": []}, "`metadata`: expected at most 16 named texts"),
    ({"metadata": {"a": {"b": 1}}}, "`metadata.a`: expected a text"),
    ({"metadata": {"a": "\ud800"}}, "`metadata.a`: holds half of a surrogate pair"),
    ({"previous_response_id": "resp_1"}, "`previous_response_id`: .* send all messages"),
    ({"conversation": "c"}, "`conversation`: .* send all messages"),
    ({"background": True}, "`background`: .* wait for it, or stream it"),
    ({"truncation": "auto"}, "`truncation`: 'auto' is not served here"),
    ({"text": {"format": {"type": "json_schema"}}}, "`text`: answers are free text"),
    ({"text": "plain"}, "`text`: answers are free text"),
    ({"reasoning": {"effort": "high"}}, "`reasoning`: .* does not reason"),
    ({"prompt": {"id": "x"}}, "`prompt`: .* send it as `instructions`"),
    ({"messages": []}, "`messages`: this route has no such field; .* correct it to one of include, input"),
]
BAD_EMBEDDINGS = [
    ({"input": None}, "`input`: expected a text, a list of texts, or content parts, got None"),
    ({"input": []}, "`input`: expected a text"),
    ({"input": {}}, "`input`: expected a text"),
    ({"input": ""}, "`input`: expected a text that is not empty"),
    ({"input": [[]]}, r"`input\[0\]`: expected a text or a list of content parts"),
    ({"input": [1, 2, 3]}, r"`input\[0\]`: token ids are not taken.*; send texts"),
    ({"input": [[[]]]}, r"`input\[0\]\[0\]`: expected a part"),
    ({"input": ["a", 1.5]}, r"`input\[1\]`: expected a text"),
    ({"input": "\ud800"}, "`input`: holds half of a surrogate pair"),
    ({"input": [image("x:y")]}, r"`input\[0\].image_url`"),
    ({"input": "a dog " * 500}, "128 positions; shorten it"),
    ({"input": ["a"] * 1025}, "`input`: expected 1024 messages and parts at most"),
    ({"dimensions": 3}, "`dimensions`: this model has 32, got 3"),
    ({"dimensions": "all"}, "`dimensions`: this model has 32"),
    ({"encoding_format": "int8"}, "`encoding_format`: expected float or base64"),
    ({"encoding_format": {}}, "`encoding_format`: expected float or base64"),
    ({"model": "gpt-9"}, "`model`: there is no 'gpt-9' here"),
    ({"texts": ["a"]}, "`texts`: this route has no such field"),
]
GOOD = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    RESPONSES: {"input": "hello", "max_output_tokens": 2},
    EMBEDDINGS: {"input": "hello"},
}
TABLES = {CHAT: BAD_CHATS, RESPONSES: BAD_RESPONSES, EMBEDDINGS: BAD_EMBEDDINGS}
BODIES = [
    b"",
    b"{",
    b"null",
    b"5",
    b'"hello"',
    b"[]",
    b"[{}]",
    b"{'messages': []}",
    b'{"a": 1,}',
    b"\xff\xfe{}",
    b'{"a": "\xc3"}',
    b"\x00" * 100,
    b'{"a": 1} {"b": 2}',
    b'{"a": ' + str(HUGE).encode() + b"0" * 9000 + b"}",
    b'{"a": ' + DEEP.encode() + b"}",
    b"messages=hello&model=x",
]
WRONG_TYPES = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/octet-stream",
    "",
]


def sent(server, method: str, path: str, body: bytes = b"", headers: dict | None = None) -> tuple[int, str, float]:
    """Return the status, the body and the seconds of a request, sent as it is."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode(), time.monotonic() - start
    finally:
        connection.close()


def refused(server, method: str, path: str, body: bytes = b"", headers: dict | None = None) -> dict:
    """Send a bad request; return its error, which has OpenAI's form."""
    status, text, seconds = sent(server, method, path, body, headers)
    assert 400 <= status < 500, f"{status}: {text[:500]}"
    assert seconds < LONGEST_WAIT
    content = json.loads(text)
    assert set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}
    error = content["error"]
    assert error["type"] == "invalid_request_error" and error["code"] == str(status) and error["message"]
    return error


def posted(server, path: str, body, content_type: str = "application/json") -> dict:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return refused(server, "POST", path, data, {"Content-Type": content_type} if content_type else {})


def form(*fields: tuple[str, str | bytes], file: bytes | None = None) -> bytes:
    """Return multipart/form-data with the boundary `x`."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in fields
    ]
    if file is not None:
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        parts.append(head + b"Content-Type: audio/wav\r\n\r\n" + file + b"\r\n")
    return b"".join([*parts, b"--x--\r\n"])


FORM = "multipart/form-data; boundary=x"
BAD_FORMS = [
    (form(), "`file`: expected an audio file"),
    (form(("file", "text")), "`file`: expected an audio file"),
    (form(file=b""), "`file`: "),
    (form(file=b"no audio"), "`file`: .*cannot be decoded"),
    (form(file=png(picture())), "`file`: .*cannot be decoded"),
    (form(file=wav()[:30]), "`file`: "),
    (form(("temperature", "hot"), file=wav()), "`temperature`: expected a number, got 'hot'"),
    (form(("temperature", "nan"), file=wav()), "`temperature`: expected a number of at least 0"),
    (form(("temperature", "1e999"), file=wav()), "`temperature`: expected"),
    (form(("temperature", "-1"), file=wav()), "`temperature`: expected"),
    (form(("temperature", "0"), ("temperature", "1"), file=wav()), "`temperature`: expected it once, got it 2 times"),
    (form(("language", "xx"), file=wav()), "`language`: expected a language among en, fr, got 'xx'"),
    (form(("response_format", "srt"), file=wav()), "`response_format`: srt needs timestamps"),
    (form(("response_format", "vtt"), file=wav()), "`response_format`: vtt needs timestamps"),
    (form(("response_format", "json_object"), file=wav()), "`response_format`: expected json, text, verbose_json"),
    (form(("stream", "perhaps"), file=wav()), "`stream`: expected true or false"),
    (form(("model", "gpt-9"), file=wav()), "`model`: there is no 'gpt-9' here"),
    (form(("timestamp_granularities[]", "word"), file=wav()), "`timestamp_granularities`: .* no timestamps"),
    (form(("include[]", "logprobs"), file=wav()), "`include`: "),
    (form(("colour", "red"), file=wav()), "`colour`: this route has no such field"),
    (form(("prompt", "a dog " * 500), file=wav()), "128 positions; shorten it"),
    (form(file=wav())[:60], "."),
    (b"", "."),
    (b"--x", "."),
    (b"--y\r\n\r\n--y--", "."),
]


def test_the_tables_are_long():
    assert sum(map(len, TABLES.values())) + len(BAD_FORMS) > 200


@needs_extra
@pytest.mark.parametrize("path", list(TABLES))
def test_bad_fields_are_named(server, path):
    good, wrong = GOOD[path], []
    for change, word in TABLES[path]:
        # `json` writes NaN, infinities and halves of surrogate pairs, as many clients do.
        error = posted(server, path, {**good, **change})
        if not re.search(word, error["message"], re.DOTALL):
            wrong.append(f"{str(change)[:80]}: {error['message']}")
    assert not wrong, "\n".join(wrong)
    assert sent(server, "POST", path, json.dumps(good).encode(), {"Content-Type": "application/json"})[0] == 200


@needs_extra
@pytest.mark.parametrize("path", list(TABLES))
def test_bodies_that_are_no_json_object_say_so(server, path):
    for body in BODIES:
        error = posted(server, path, body)
        assert "JSON" in error["message"], (body[:40], error)
    for content_type in WRONG_TYPES:
        error = posted(server, path, GOOD[path], content_type)
        assert "application/json" in error["message"], (content_type, error)


@needs_extra
def test_bad_forms_name_the_field(server):
    for body, word in BAD_FORMS:
        error = posted(server, TRANSCRIPTIONS, body, FORM)
        assert re.search(word, error["message"]), (body[:80], error)
    for content_type in (*WRONG_TYPES, "application/json", "multipart/form-data; boundary="):
        error = posted(server, TRANSCRIPTIONS, form(file=wav()), content_type)
        assert "form" in error["message"], (content_type, error)


@needs_extra
def test_wrong_routes_and_methods_list_the_right_ones(server):
    for method, path in (
        ("GET", CHAT),
        ("PUT", CHAT),
        ("DELETE", RESPONSES),
        ("GET", f"{RESPONSES}/resp_1"),
        ("GET", EMBEDDINGS),
        ("GET", TRANSCRIPTIONS),
        ("POST", MODELS),
        ("DELETE", f"{MODELS}/x"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/audio/speech"),
        ("GET", "/v1/audio/translations"),
        ("GET", "/v1/images/generations"),
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/chat/completions/x"),
        ("GET", "/%00"),
        ("GET", "/%ff"),
        ("GET", "/../../etc/passwd"),
    ):
        assert CHAT in refused(server, method, path, b"{}")["message"]
    for name in ("gpt-9", "..%2f..%2fetc", "%00", "%ff", "a" * 5000):
        assert "`model`: there is no" in refused(server, "GET", f"{MODELS}/{name}")["message"]


@needs_extra
def test_after_all_bad_requests_the_server_answers_as_before(server):
    assert server.says(to_openai(CHATS[0])) == answer(0)
