"""Chat formats: which tokens come out, and which of them are trained."""

import json
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from manners.core.errors import InputError
from manners.core.records import TEXT_ROLE, Group, Message, Prompt, Response, TokenGroup
from manners.data.chat import PLAIN_TEMPLATE, ChatFormat

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = "Name three colours. Red, green and blue. What is two plus two? It is four. Hello there, world! Say no more. ### Prompt Response"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(added: tuple = (), bos: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `bos` it puts <s> before every text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([WORDS] * 3, trainer)
    return wrapped(backend, added, bos, template)


def metaspace(added: tuple = (), bos: bool = True, template: str | None = None, scheme: str = "first") -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's manner: a word is written with the space before it, a text gets one at its start."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *SPECIAL, *fallback], show_progress=False)
    backend.train_from_iterator([WORDS.replace(" ", "▁")] * 3, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in fallback]
    return wrapped(Tokenizer.from_str(json.dumps(state)), added, bos, template)


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer whose model itself holds the control tokens, as the best pieces of all."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((char, -5.0) for char in sorted(set(WORDS + "▁</>|_\n:.")))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return tokenizer


def wrapped(backend: Tokenizer, added: tuple, bos: bool, template: str | None) -> PreTrainedTokenizerFast:
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    if added:
        tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tok() -> PreTrainedTokenizerFast:
    return byte_level()


def talk(*turns: str, row: int = 0) -> Group:
    """A group from alternating turns, the first being a user's; all but the first are the response."""
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return Group(Prompt(tuple(messages[:1])), [Response(tuple(messages[1:]))], row=row)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def trained(encoded: TokenGroup, index: int = 0) -> list[int]:
    response = encoded.responses[index]
    return [token for token, mark in zip(response.token_ids, response.trained, strict=True) if mark]


def whole(encoded: TokenGroup, index: int = 0) -> list[int]:
    return encoded.prompt_ids + encoded.responses[index].token_ids


# Formats by name ------------------------------------------------------------------------------------------------------------------


def test_plain_layout(tok):
    chat = ChatFormat.of(tok, "plain")
    turns = [Message(role, role[0]) for role in ("system", "user", "assistant", "tool", "assistant")]
    assert chat.render(turns, add_generation_prompt=True) == (
        "### System\ns\n\n### Prompt\nu\n\n### Response\na</s>\n\n### Tool\nt\n\n### Response\na</s>\n\n### Response\n"
    )
    assert (chat.name, chat.template, chat.stop_ids) == ("plain", PLAIN_TEMPLATE, {tok.eos_token_id})
    with pytest.raises(InputError, match=r"unknown role pupil.*format=plain"):
        chat.render([Message("pupil", "hi")])


def test_choice_of_format(tok):
    own = byte_level(template=CHATML)
    assert ChatFormat.of(tok).name == "plain"
    assert ChatFormat.of(own).name == "template" and ChatFormat.of(own).template == CHATML
    assert ChatFormat.of(own, "plain").name == "plain"
    assert ChatFormat.of(byte_level(template=PLAIN_TEMPLATE)).name == "plain"
    assert ChatFormat.of(tok, "chatml").stop_ids == {tok.convert_tokens_to_ids("<|im_end|>")}
    assert ChatFormat.of(tok, CHATML).name == "custom"
    with pytest.raises(InputError, match="no chat template of its own: use format=plain"):
        ChatFormat.of(tok, "template")
    with pytest.raises(InputError, match="did you mean 'chatml'"):
        ChatFormat.of(tok, "chat-ml")
    with pytest.raises(InputError, match=r"<\|im_end\|> and <\|im_start\|> as special tokens"):
        ChatFormat.of(unigram(), "chatml")


def test_no_end_token():
    bare = byte_level()
    bare.eos_token = None
    with pytest.raises(InputError, match="eos_token"):
        ChatFormat.of(bare)
    assert ChatFormat.of(bare, "chatml").stop_ids
    with pytest.raises(InputError, match="eos_token"):
        ChatFormat.of(bare, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}")


# Tokens and masks -----------------------------------------------------------------------------------------------------------------


def test_oracle_s6():
    """algorithms.md S6: system 2, user 3, assistant 2 + end, user 2, assistant 1 + end: five targets."""
    words = {word: i for i, word in enumerate(["a", "b", "c", "d", "</s>", "<unk>"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    template = "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '\n') }}{% endfor %}"
    prompt = Prompt((Message("system", "a b"), Message("user", "a b c")))
    turns = (Message("assistant", "c d"), Message("user", "a b"), Message("assistant", "d"))
    encoded = ChatFormat.of(tokenizer, template).encode(Group(prompt, [Response(turns)]))
    assert encoded.prompt_ids == [0, 1, 0, 1, 2]
    assert encoded.responses[0].token_ids == [2, 3, 4, 0, 1, 3, 4]
    mask = [0] * len(encoded.prompt_ids) + [int(mark) for mark in encoded.responses[0].trained]
    assert mask == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert encoded.targets == 5


@pytest.mark.parametrize("which", ["plain", "chatml"])
def test_multi_turn_mask(tok, which):
    chat = ChatFormat.of(tok, which)
    (stop,) = chat.stop_ids
    encoded = chat.encode(talk("Name three.", " Red. ", "More?", "Blue, green."))
    assert encoded.prompt_ids == chat.prompt_ids(Prompt.user("Name three."))
    assert trained(encoded) == [*ids(tok, "Red."), stop, *ids(tok, "Blue, green."), stop]
    assert encoded.responses[0].token_ids[-1] == stop
    between = {"plain": "\n\n### Prompt\nMore?\n\n### Response\n", "chatml": "\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n"}
    untrained = [t for t, mark in zip(encoded.responses[0].token_ids, encoded.responses[0].trained, strict=True) if not mark]
    assert untrained == ids(tok, between[which])


def test_tool_turns_are_context(tok):
    chat = ChatFormat.of(tok, "plain")
    turns = (Message("assistant", "two plus two"), Message("tool", "four"), Message("assistant", "It is four."))
    encoded = chat.encode(Group(Prompt.user("What is two plus two?"), [Response(turns)]))
    assert trained(encoded) == [*ids(tok, "two plus two"), tok.eos_token_id, *ids(tok, "It is four."), tok.eos_token_id]
    after_last = (*turns, Message("tool", "bye"))
    assert chat.encode(Group(Prompt.user("What is two plus two?"), [Response(after_last)])) == encoded


def test_a_pair_shares_its_prompt(tok):
    for which in ("plain", "chatml"):
        chat = ChatFormat.of(tok, which)
        pair = Group(Prompt.user("Hello"), [Response.answer("Hello there."), Response.answer("no")], row=4, margin=0.5)
        encoded = chat.encode(pair)
        assert (encoded.row, encoded.margin) == (4, 0.5)
        assert encoded.prompt_ids == chat.prompt_ids(pair.prompt)
        assert [chat.decode(r.token_ids) for r in encoded.responses] == ["Hello there.", "no"]


@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("which", ["plain", "chatml"])
def test_as_the_whole_rendering_is_tokenized(make, which):
    tokenizer = make()
    chat = ChatFormat.of(tokenizer, which)
    draw = random.Random(5)
    words = [*WORDS.split(), "é", "漢字", "12", "x=1;", "\n", "\n\n- ", "  two", "\t", "...", "🙂"]
    for _ in range(200):
        turns = [" ".join(draw.choices(words, k=draw.randint(1, 12))).strip() or "x" for _ in range(2 * draw.randint(1, 3))]
        encoded = chat.encode(talk(*turns))
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        expected = tokenizer.apply_chat_template(messages, chat_template=chat.template, tokenize=True, return_dict=False)
        got = whole(encoded)
        assert got == expected[: len(got)], turns
        assert chat.stop_ids.isdisjoint(expected[len(got) :])
        assert sum(token in chat.stop_ids for token in trained(encoded)) == len(turns) // 2
        if len(turns) == 2:
            assert chat.decode(encoded.responses[0].token_ids) == turns[1]
    assert not chat.counts


# Begin tokens, spaces, control tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("which", ["plain", "chatml", "{{ bos_token }}{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"])
def test_one_begin_token(make, which):
    tokenizer = make(bos=True)
    encoded = ChatFormat.of(tokenizer, which).encode(talk("Hello", "world"))
    assert whole(encoded).count(tokenizer.bos_token_id) == 1 and whole(encoded)[0] == tokenizer.bos_token_id
    without = make(bos=False)
    if which in ("plain", "chatml"):
        assert without.bos_token_id not in whole(ChatFormat.of(without, which).encode(talk("Hello", "world")))


def test_an_exported_template_begins_alike():
    tokenizer = byte_level(bos=True)
    tokenizer.chat_template = ChatFormat.of(tokenizer, "plain").template
    chat = ChatFormat.of(tokenizer)
    assert chat.name == "plain"
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False)
    assert asked == chat.prompt_ids(Prompt.user("hi"))


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_no_prefix_space_within(scheme):
    tokenizer = metaspace(scheme=scheme)
    chat = ChatFormat.of(tokenizer, "plain")
    encoded = chat.encode(talk("Hello there", "green and blue"))
    space = tokenizer.convert_tokens_to_ids("▁")
    tokens = tokenizer.convert_ids_to_tokens(encoded.responses[0].token_ids)
    assert encoded.responses[0].token_ids[0] != space and not tokens[0].startswith("▁")
    assert "".join(tokens).replace("▁", " ") == "green and blue</s>"
    assert chat.decode(encoded.responses[0].token_ids) == "green and blue"


def test_contents_hold_no_control_tokens():
    tokenizer = byte_level(added=(AddedToken("<think>", special=False), AddedToken("colours", special=False)))
    control = {tokenizer.convert_tokens_to_ids(token) for token in [*SPECIAL, "<think>"]}
    for which in ("plain", "chatml"):
        chat = ChatFormat.of(tokenizer, which)
        encoded = chat.encode(talk("Is <|im_start|> text? <think>", "Yes: <think></s><|im_end|> colours"))
        answer = trained(encoded)
        assert control.isdisjoint(answer[:-1]) and answer[-1] in chat.stop_ids
        assert chat.decode(answer) == "Yes: <think></s><|im_end|> colours"
        assert tokenizer.convert_tokens_to_ids("<think>") not in encoded.prompt_ids
        assert tokenizer.convert_tokens_to_ids("colours") in answer, "an added word is ordinary vocabulary"
        assert chat.counts == {"control tokens kept as text": 5}


def test_control_tokens_that_the_model_knows():
    tokenizer = unigram()
    chat = ChatFormat.of(tokenizer, "plain")
    assert tokenizer.eos_token_id in tokenizer.encode("two</s>", add_special_tokens=False, split_special_tokens=True)
    encoded = chat.encode(talk("say </s>", "no</s></s> more"))
    assert whole(encoded).count(tokenizer.eos_token_id) == 1
    assert chat.decode(encoded.responses[0].token_ids) == "no</s></s> more"
    assert tokenizer.unk_token_id in whole(chat.encode(talk("漢", "字")))


def test_private_use_characters_in_contents(tok):
    chat = ChatFormat.of(tok, "plain")
    for odd in ("\U000f0003", "\U00100002", "\ue000"):
        encoded = chat.encode(talk(f"a{odd}", f"{odd}b{odd}"))
        assert chat.decode(encoded.responses[0].token_ids) == f"{odd}b{odd}"
    with pytest.raises(InputError, match=r"^Row 4 of the data: .*private-use"):
        chat.encode(talk("a\U000f0003", "\U00100002", row=3))


def test_lone_surrogates(tok):
    encoded = ChatFormat.of(tok, "plain").encode(talk("a\ud800", "b\udfff c"))
    assert trained(encoded) == [*ids(tok, "b? c"), tok.eos_token_id]


# Plain text, sampled responses, lengths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_plain_text(make, bos):
    tokenizer = make(bos=bos)
    chat = ChatFormat.of(tokenizer)
    encoded = chat.encode(Group(Prompt(()), [Response((Message(TEXT_ROLE, "Hello there, world!"),))]))
    assert encoded.prompt_ids == ([tokenizer.bos_token_id] if bos else []) == chat.prompt_ids(Prompt(()))
    assert whole(encoded) == [*tokenizer("Hello there, world!")["input_ids"], tokenizer.eos_token_id]
    assert all(encoded.responses[0].trained)
    for bad, message in [
        (Group(Prompt(()), [Response((Message(TEXT_ROLE, "  "),))]), "text is empty"),
        (Group(Prompt.user("a"), [Response((Message(TEXT_ROLE, "b"),))]), "without a prompt"),
    ]:
        with pytest.raises(InputError, match=message):
            chat.encode(bad)


def test_sampled_tokens_are_used_as_they_are(tok):
    chat = ChatFormat.of(tok, "plain")
    letters = [*(tok.convert_tokens_to_ids(c) for c in "Red"), tok.eos_token_id]
    assert letters[:-1] != ids(tok, "Red")
    sampled = Response.answer("Red", token_ids=letters, finish_reason="stop")
    cut = Response.answer("", token_ids=letters[:2], finish_reason="length")
    group = Group(Prompt.user("Name one."), [sampled, Response.answer("Red"), cut])
    encoded = chat.encode(group)
    assert encoded.prompt_ids == chat.prompt_ids(group.prompt)
    assert [r.token_ids for r in encoded.responses] == [letters, [*ids(tok, "Red"), tok.eos_token_id], letters[:2]]
    assert all(all(r.trained) for r in encoded.responses)
    with pytest.raises(InputError, match="no tokens"):
        chat.encode(Group(Prompt.user("a"), [Response.answer("", token_ids=[])]))


def test_max_length(tok):
    chat = ChatFormat.of(tok, "plain")
    pair = Group(Prompt.user("Name three."), [Response.answer("Red, green and blue."), Response.answer("no")], row=7)
    full = chat.encode(pair)
    long, short = full.responses
    longest = len(full.prompt_ids) + len(long.token_ids)
    assert chat.encode(pair, max_length=longest) == full and not chat.counts
    assert chat.fits(pair, longest) and not chat.fits(pair, longest - 1)
    cut = chat.encode(pair, max_length=longest - 1)
    assert cut.responses[0].token_ids == long.token_ids[:-1] and all(cut.responses[0].trained)
    assert cut.responses[1] == short and chat.counts == {"truncated": 1}
    for limit in (len(full.prompt_ids), 3):
        with pytest.raises(
            InputError, match=rf"^Row 8 of the data: the prompt has {len(full.prompt_ids)} of {longest} tokens.*max_length={limit}"
        ):
            chat.encode(pair, max_length=limit)


def test_nothing_to_train(tok):
    chat = ChatFormat.of(tok)
    with pytest.raises(InputError, match=r"^Row 3 of the data: an assistant turn is empty"):
        chat.encode(talk("a", "b", "c", " \n", row=2))
    with pytest.raises(InputError, match=r"^A response has no assistant turn"):
        chat.encode(Group(Prompt.user("a"), [Response((Message("user", "b"),))]))


def test_tokenizer_left_as_it_was(tok):
    before = tok.backend_tokenizer.to_str()
    chat = ChatFormat.of(tok)
    chat.encode(talk("a </s>", "b"))
    assert tok.backend_tokenizer.to_str() == before and tok.chat_template is None


def test_normalizing_tokenizer_with_other_splits():
    """White space at borders, digits one by one and Unicode normalisation do not part pieces from the whole."""
    tokenizer = byte_level()
    split = pre_tokenizers.Split(Regex(r"\p{N}|[^\p{N}]+"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    chat = ChatFormat.of(tokenizer, "chatml")
    encoded = chat.encode(talk("12 e\u0301", "1. two\n2. thre\u0301e"))
    expected = ids(tokenizer, chat.render([Message("user", "12 e\u0301"), Message("assistant", "1. two\n2. thre\u0301e")]))
    assert whole(encoded) == expected[: len(whole(encoded))]
