"""Chat formats over templates in the manner of well-known families, written here in short form."""

from typing import NamedTuple

import pytest
from tokenizers import AddedToken

from manners.core.errors import InputError
from manners.core.records import Group, Message, Prompt, Response
from manners.data.chat import ChatFormat
from tests.data.test_chat import CHATML, byte_level, talk, trained, whole


def each(body: str, generation: str = "", start: str = "") -> str:
    """A template that writes `body` for each message m."""
    return f"{start}{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{generation}{{% endif %}}"


ALTERNATE = "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
USER = "{% if m['role'] == 'user' %}"


class Family(NamedTuple):
    """A template, its control tokens, and for a two-turn talk what is asked first, and what the model writes each time."""

    template: str
    tokens: list[str]
    asked: str
    writes: tuple[str, str]
    stop: str


FAMILIES = {
    "chatml": Family(
        CHATML, [], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", ("one<|im_end|>", "two<|im_end|>"), "<|im_end|>"
    ),
    "default-system": Family(
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Small.<|im_end|>\n{% endif %}" + CHATML,
        [],
        "<|im_start|>system\nYou are Small.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ("one<|im_end|>", "two<|im_end|>"),
        "<|im_end|>",
    ),
    "llama2": Family(
        each(ALTERNATE + USER + "<s>[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }} </s>{% endif %}"),
        [],
        "<s>[INST] hi [/INST]",
        (" one </s>", " two </s>"),
        "</s>",
    ),
    "mistral": Family(
        each(USER + "[INST] {{ m['content'] }}[/INST]{% else %} {{ m['content'] }}</s>{% endif %}", start="<s>"),
        ["[INST]", "[/INST]"],
        "<s>[INST] hi[/INST]",
        (" one</s>", " two</s>"),
        "</s>",
    ),
    "llama3": Family(
        each("<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>", "<|head|>assistant<|/head|>\n\n", "<s>"),
        ["<|head|>", "<|/head|>", "<|eot|>"],
        "<s><|head|>user<|/head|>\n\nhi<|eot|><|head|>assistant<|/head|>\n\n",
        ("one<|eot|>", "two<|eot|>"),
        "<|eot|>",
    ),
    "gemma": Family(
        each(
            ALTERNATE + "<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end>\n",
            "<turn>model\n",
            NO_SYSTEM + "{{ bos_token }}",
        ),
        ["<turn>", "<end>"],
        "<s><turn>user\nhi<end>\n<turn>model\n",
        ("one<end>", "two<end>"),
        "<end>",
    ),
    "phi3": Family(
        each("<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n", "<|assistant|>\n"),
        ["<|user|>", "<|assistant|>", "<|end|>"],
        "<|user|>\nhi<|end|>\n<|assistant|>\n",
        ("one<|end|>", "two<|end|>"),
        "<|end|>",
    ),
    "zephyr": Family(
        each("<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n", "<|assistant|>\n"),
        [],
        "<|user|>\nhi</s>\n<|assistant|>\n",
        ("one</s>", "two</s>"),
        "</s>",
    ),
    "deepseek": Family(
        each(USER + "<｜User｜>{{ m['content'] }}{% else %}<｜Assistant｜>{{ m['content'] }}</s>{% endif %}", "<｜Assistant｜>", "<s>"),
        ["<｜User｜>", "<｜Assistant｜>"],
        "<s><｜User｜>hi<｜Assistant｜>",
        ("one</s>", "two</s>"),
        "</s>",
    ),
    "vicuna": Family(
        each(USER + "USER: {{ m['content'] }} {% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}", "ASSISTANT:", "A chat. "),
        [],
        "A chat. USER: hi ASSISTANT:",
        (" one</s>", " two</s>"),
        "</s>",
    ),
    "no-end": Family(  # nothing ends an answer: the end token is put there
        each("{{ m['role'] }}: {{ m['content'] }}\n", "assistant:"),
        [],
        "user: hi\nassistant:",
        (" one</s>", " two</s>"),
        "</s>",
    ),
    "end-only-between": Family(
        each("{% if not loop.first and m['role'] == 'user' %}</s>{% endif %}{{ m['role'] }}> {{ m['content'] }}\n", "assistant>"),
        [],
        "user> hi\nassistant>",
        (" one\n</s>", " two\n</s>"),
        "</s>",
    ),
    "qwen3": Family(  # an empty think block before the last answer only
        each(
            "<|im_start|>{{ m['role'] }}\n{% set c = m['content'] %}{% if m['role'] == 'assistant' %}"
            "{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in c else '' %}"
            "{% set c = c.split('</think>')[-1].lstrip('\n') %}"
            "{% if loop.last %}{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}{% endif %}{{ c }}<|im_end|>\n",
            "<|im_start|>assistant\n",
        ),
        ["<think>", "</think>"],
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ("one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"),
        "<|im_end|>",
    ),
}


def formed(name: str) -> tuple:
    family = FAMILIES[name]
    tokens = tuple(AddedToken(token, special="think" not in token, normalized=False) for token in family.tokens)
    tokenizer = byte_level(added=tokens, template=family.template)
    return family, tokenizer, ChatFormat.of(tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    family, tokenizer, chat = formed(name)
    assert chat.name == "template"
    assert chat.stop_ids == {tokenizer.convert_tokens_to_ids(family.stop)}
    encoded = chat.encode(talk("hi", "one", "more", "two"))
    assert tokenizer.decode(encoded.prompt_ids) == family.asked
    assert encoded.prompt_ids == chat.prompt_ids(Prompt.user("hi"))
    assert encoded.prompt_ids == tokenizer.encode(family.asked, add_special_tokens=False)
    assert tokenizer.decode(trained(encoded)) == "".join(family.writes)
    assert encoded.responses[0].trained[-1] and sum(t in chat.stop_ids for t in trained(encoded)) == 2
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == family.asked.count("<s>")
    assert not chat.counts
    rendered = tokenizer.encode(chat.render([Message("user", "hi"), Message("assistant", "one")]), add_special_tokens=False)
    single = whole(chat.encode(talk("hi", "one")))
    # llama3: this tokenizer cuts "\n\n" in two before a word. A sampler's prompt has no word after it, and training follows that.
    if name not in ("no-end", "end-only-between", "llama3"):
        assert single == rendered[: len(single)]


@pytest.mark.parametrize("name", FAMILIES)
def test_control_tokens_stay_text(name):
    family, tokenizer, chat = formed(name)
    text = f"a {family.stop} <s>{''.join(family.tokens[:1])} b"
    encoded = chat.encode(talk(text, text))
    assert whole(encoded).count(next(iter(chat.stop_ids))) == whole(chat.encode(talk("x", "x"))).count(next(iter(chat.stop_ids)))
    assert text in tokenizer.decode(trained(encoded)) and text in tokenizer.decode(encoded.prompt_ids)


def test_think_blocks_are_the_templates_own():
    _, tokenizer, chat = formed("qwen3")
    encoded = chat.encode(talk("hi", "<think>hm</think>one"))
    assert tokenizer.decode(trained(encoded)) == "<think>\nhm\n</think>\n\none<|im_end|>"
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert trained(encoded).count(begin) == trained(encoded).count(end) == 1 and trained(encoded)[0] == begin
    earlier = chat.encode(talk("hi", "<think>hm</think>one", "more", "two"))
    assert "hm" not in tokenizer.decode(whole(earlier))
    assert chat.counts == {"reasoning of earlier turns left out by the template": 1}
    with pytest.raises(InputError, match="no answer after </think>"):
        chat.encode(talk("hi", "<think>hm</think>"))


def test_reasoning_dropped_is_refused():
    drops = each("<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1].strip() }}<|im_end|>\n", "<|im_start|>assistant\n")
    chat = ChatFormat.of(byte_level(), drops)
    assert chat.encode(talk("hi", "one")).targets
    with pytest.raises(
        InputError, match="Row 1 of the data: the chat template leaves out what an answer says before </think>; use format=plain"
    ):
        chat.encode(talk("hi", "<think>hm</think>one"))


def test_neighbours_are_merged_only_where_refused():
    turns = (Message("user", "a"), Message("user", "b"))
    group = Group(Prompt(turns), [Response((Message("assistant", "c"), Message("assistant", "d")))])
    _, tokenizer, chat = formed("gemma")
    encoded = chat.encode(group)
    assert tokenizer.decode(whole(encoded)) == "<s><turn>user\na\n\nb<end>\n<turn>model\nc\n\nd<end>"
    assert encoded.prompt_ids == chat.prompt_ids(group.prompt)
    assert chat.counts["same-role neighbours merged"] == 3
    _, tokenizer, chat = formed("chatml")
    assert tokenizer.decode(trained(chat.encode(group))) == "c<|im_end|>d<|im_end|>" and not chat.counts


def test_refusals_name_the_complaint():
    _, _, chat = formed("gemma")
    group = Group(Prompt((Message("system", "s"), Message("user", "u"))), [Response.answer("a")], row=5)
    with pytest.raises(InputError, match=r"^Row 6 of the data: .*refuses this conversation: System role not supported; use format=plain"):
        chat.encode(group)
    with pytest.raises(InputError, match=r"System role not supported"):
        chat.prompt_ids(group.prompt)
    for template, complaint in [
        (each("{{ m['content'][0]['text'] }}</s>"), "does not write an answer that is given as text"),
        (each("{{ m['content'][0].upper() + m['content'][1:] }}</s>"), "looks into the messages"),
        (each("{{ m['content'].__class__.__mro__ }}"), "refuses this conversation: access to attribute '__class__'"),
        (each(USER + "{{ m['content'] }}{% endif %}"), "does not write an answer"),
        (each("{{ m['content'] | reverse }}"), "takes messages apart"),
        ("{% for m in messages %}", "refuses this conversation"),
    ]:
        with pytest.raises(InputError, match=rf"The chat template \(custom\) cannot be used: .*{complaint}.*format=plain"):
            ChatFormat.of(byte_level(), template)


def test_answers_that_are_left_out_or_repeated():
    chat = ChatFormat.of(byte_level(), each("{{ m['content'] }}</s>{% if loop.index > 3 %}{{ m['content'] }}{% endif %}"))
    assert chat.encode(talk("a", "b")).targets
    with pytest.raises(InputError, match="writes an answer 2 times instead of once"):
        chat.encode(talk("a", "b", "c", "d"))


def test_left_out_messages_are_counted():
    drops = each("{% if m['role'] != 'system' %}{{ m['role'] + '\n' + m['content'] }}</s>{% endif %}", "assistant\n")
    chat = ChatFormat.of(byte_level(), drops)
    chat.encode(Group(Prompt((Message("system", "s"), Message("user", "u"))), [Response.answer("a")]))
    assert chat.counts == {"messages left out by the template": 1}


def test_generation_prompt_unlike_training():
    opens = each("<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n", "<|im_start|>assistant\n<think>\n")
    tokenizer = byte_level(template=opens)
    chat = ChatFormat.of(tokenizer)
    pair = Group(Prompt.user("hi"), [Response.answer("one"), Response.answer("two")])
    encoded = chat.encode(pair)
    assert tokenizer.decode(encoded.prompt_ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.decode(r.token_ids) for r in encoded.responses] == ["one<|im_end|>", "two<|im_end|>"]
    assert chat.counts == {"generation prompt differs from training": 1}
    mixed = chat.encode(Group(pair.prompt, [Response.answer("x", token_ids=[9, 3]), Response.answer("two")]))
    assert mixed.prompt_ids == chat.prompt_ids(pair.prompt)
    assert [r.token_ids for r in mixed.responses] == [[9, 3], encoded.responses[1].token_ids]


def test_earlier_answers_may_end_otherwise():
    """gpt-oss: <|return|> ends the last answer, <|end|> earlier ones. Only the former is learnt and stopped at."""
    template = each(
        "<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}"
        "{% if loop.last and m['role'] == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}",
        "<|start|>assistant",
    )
    tokens = tuple(AddedToken(token, special=True) for token in ("<|start|>", "<|message|>", "<|return|>", "<|end|>"))
    tokenizer = byte_level(added=tokens, template=template)
    chat = ChatFormat.of(tokenizer)
    encoded = chat.encode(talk("hi", "one", "more", "two"))
    assert chat.stop_ids == {tokenizer.convert_tokens_to_ids("<|return|>")}
    assert tokenizer.decode(trained(encoded)) == "<|message|>one<|message|>two<|return|>"
    assert tokenizer.decode(encoded.responses[0].token_ids).count("<|end|>") == 2


def test_end_tokens_that_eat_the_line_break():
    """Phi-3 flags its tokens to strip what follows; pieces are then cut as the whole is."""
    tokens = tuple(AddedToken(token, special=True, rstrip=True) for token in ("<|user|>", "<|assistant|>", "<|end|>"))
    tokenizer = byte_level(added=tokens, template=FAMILIES["phi3"].template)
    chat = ChatFormat.of(tokenizer)
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(["hi", "one", "more", "two"])]
    expected = tokenizer.encode(chat.render(turns), add_special_tokens=False)
    got = whole(chat.encode(talk("hi", "one", "more", "two")))
    assert got == expected[: len(got)] and len(got) == len(expected)
