"""The four counts of trust: right on every family of templates, and each fault found when it is planted."""

import pytest

from manners.core.errors import InputError
from manners.core.records import TEXT_ROLE, Group, Message, Prompt, Response, TokenGroup, TokenResponse
from manners.data.chat import ChatFormat
from manners.data.checks import count, trust
from tests.data.test_chat import CHATML, byte_level, metaspace, talk
from tests.data.test_chat_templates import FAMILIES, each, formed

FAULTLESS = {"stop_untrained": 0, "truncated": 0, "begin_doubled": 0, "truncated_share": 0.0}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_trusted(name):
    _, _, fmt = formed(name)
    sources = [talk("hi", "one"), talk("hi", "one", "more", "two")]
    counts = trust([fmt.encode(source) for source in sources], fmt, sources, 1024)
    assert counts == {**FAULTLESS, "answers": 2, "stop_trained": 2, "rows": 2, "boundary_differs": 0}


def test_plain_text_ends_in_the_end_token_whatever_the_template():
    for tokenizer in (byte_level(template=CHATML), metaspace(template=CHATML)):
        fmt = ChatFormat.of(tokenizer)
        assert tokenizer.eos_token_id not in fmt.stop_ids
        source = Group(Prompt(()), [Response((Message(TEXT_ROLE, "Once upon"),))])
        counts = trust([fmt.encode(source)], fmt, [source])
        assert counts == {**FAULTLESS, "answers": 1, "stop_trained": 1, "rows": 1, "boundary_differs": 0}


def test_prompts_have_no_answers_to_check():
    fmt = ChatFormat.of(byte_level(template=CHATML))
    source = Group(Prompt.user("hi"), [])
    assert trust([fmt.encode(source)], fmt, [source])["answers"] == 0


def test_truncated_answers_are_counted_and_no_fault():
    fmt = ChatFormat.of(byte_level(template=CHATML))
    source = talk("hi", "one two three four five six")
    whole = fmt.encode(source)
    length = len(whole.prompt_ids) + len(whole.responses[0].token_ids)
    for limit in (length - 1, length - 3):
        cut = trust([fmt.encode(source, max_length=limit)], fmt, [source], limit)
        assert (cut["truncated"], cut["stop_trained"], cut["truncated_share"]) == (1, 0, 1.0)
        assert count([whole], fmt, [source], limit)["truncated"] == 1, "to be cut"
    assert trust([whole], fmt, [source], length)["truncated"] == 0, "it fits to the token"


def test_a_sampled_answer_may_end_by_length():
    fmt = ChatFormat.of(byte_level(template=CHATML))
    source = Group(Prompt.user("hi"), [Response.answer("x", token_ids=[20, 21], finish_reason="length")])
    counts = trust([fmt.encode(source)], fmt, [source], 1024)
    assert (counts["stop_trained"], counts["stop_untrained"]) == (0, 0)
    source.responses[0].finish_reason = "stop"
    with pytest.raises(InputError, match="1 of 1 answers do not train their stop token"):
        trust([fmt.encode(source)], fmt, [source], 1024)


def marked(group: TokenGroup, place: int) -> TokenGroup:
    """The group with one token of its answer, which was trained, not trained."""
    trained = list(group.responses[0].trained)
    assert trained[place]
    trained[place] = False
    return TokenGroup(group.prompt_ids, [TokenResponse(group.responses[0].token_ids, trained)])


def test_an_untrained_stop_token_is_a_fault_at_the_end_and_between_turns():
    fmt = ChatFormat.of(byte_level(template=CHATML))
    source = talk("hi", "one", "more", "two")
    group = fmt.encode(source)
    response = group.responses[0]
    stops = [i for i, token in enumerate(response.token_ids) if token in fmt.stop_ids and response.trained[i]]
    assert len(stops) == 2 and sum(token in fmt.stop_ids for token in response.token_ids) == 3, "the user's is not trained"
    for place in stops:
        with pytest.raises(InputError, match=r"^1 of 1 answers do not train their stop token \(<\|im_end\|>\), so .*\.$"):
            trust([marked(group, place)], fmt, [source], 1024)
    assert trust([marked(group, stops[0] - 1)], fmt, [source], 1024)["stop_untrained"] == 0, "another token is no stop token"
    short = TokenGroup(group.prompt_ids, [TokenResponse(response.token_ids[:-1], response.trained[:-1])])
    with pytest.raises(InputError, match="stop token"):
        trust([short], fmt, [source], 1024)


def test_another_end_of_earlier_answers_is_no_fault():
    """gpt-oss ends them with a token that does not end what a sampler draws."""
    ends = each("{{ m['role'] + '\n' + m['content'] }}{% if loop.last %}</s>{% else %}<|im_end|>{% endif %}", "assistant\n")
    fmt = ChatFormat.of(byte_level(template=ends))
    source = talk("hi", "one", "more", "two")
    assert trust([fmt.encode(source)], fmt, [source])["stop_trained"] == 1


def test_a_doubled_begin_token_is_a_fault():
    for text in ("{{ bos_token }}<s>", "<s>"):
        tokenizer = byte_level(template=text + CHATML)
        fmt = ChatFormat.of(tokenizer)
        source = talk("hi", "one")
        group = fmt.encode(source)
        if text == "<s>":
            assert trust([group], fmt, [source])["begin_doubled"] == 0
        else:
            with pytest.raises(InputError, match=r"^1 of 1 rows begin with two begin tokens \(<s>\)"):
                trust([group], fmt, [source])
    begun = ChatFormat.of(byte_level(bos=True, template=CHATML), "plain")
    source = talk("<s>", "one")
    assert trust([begun.encode(source)], begun, [source])["begin_doubled"] == 0, "typed by the user it is text"
    text = Group(Prompt(()), [Response((Message(TEXT_ROLE, "Once"),))])
    doubled = TokenGroup([], [TokenResponse([tokenizer.bos_token_id] * 2 + [tokenizer.eos_token_id], [True] * 3)])
    with pytest.raises(InputError, match="two begin tokens"):
        trust([doubled], begun, [text])


def test_the_boundary_is_compared_with_the_tokenizer_on_the_whole():
    """A template that ends its generation prompt within a word: `fo` and `ur` are the token `four` to the tokenizer."""
    tokenizer = byte_level(
        template=each("{{ m['role'] }}{{ ' fo' if m['role'] == 'assistant' else ' ' }}{{ m['content'] }}", "assistant fo")
    )
    fmt = ChatFormat.of(tokenizer)
    sources = [talk("hi", "ur and more"), talk("hi", "\nx")]
    for source, differs in zip(sources, (True, False), strict=True):
        prompt = fmt.prompt_ids(source.prompt)
        whole = tokenizer.encode(fmt.render([*source.prompt.messages, *source.responses[0].turns]), add_special_tokens=False)
        assert (whole[: len(prompt)] != prompt) is differs
    groups = [fmt.encode(source) for source in sources]
    before = fmt.counts.copy()
    assert count(groups, fmt, sources)["boundary_differs"] == 1
    assert fmt.counts == before, "counting leaves no trace"
    pair = Group(Prompt.user("hi"), [Response.answer("one"), Response.answer("two")])
    encoded = fmt.encode(pair)
    encoded.prompt_ids[-1] += 1
    assert count([encoded], fmt, [pair])["boundary_differs"] == 1, "a row counts once"
    literal = talk("<|im_end|>", "one")
    assert count([fmt.encode(literal)], fmt, [literal])["boundary_differs"] == 0, "the tokenizer would take it for the token"
