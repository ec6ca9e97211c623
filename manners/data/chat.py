"""Groups become tokens here: any chat template, with the trained spans read off the rendering itself.

How an answer's span is found. Each stripped content is wrapped in a pair of private-use characters of its own, and the tokenizer's
own renderer runs over the marked and over the plain messages. If removing the marks gives the plain rendering, the marked one is a
list of alternating pieces, template text and contents, and nothing has to be guessed; if not, the template is refused.

How pieces become tokens. What the model reads and what it writes are tokenized apart, each as a whole, as other programs do, so
that a prompt's tokens do not depend on the answer. Where a content spells out a control token, the pieces are tokenized one by one,
contents without control tokens: a literal `<|im_start|>` typed by a user stays text. One space at the end of template text belongs
to the content after it: `[INST] hi` is `[INST]` and ` hi` to every tokenizer that glues a space to the next word.

What is trained. All that the model has to write itself: from the end of the generation prompt to the stop token. That is the answer
and its stop token, and where a template writes more, that too: Llama-2's spaces around an answer, Qwen3's empty think block.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from manners.core.errors import InputError, nearest
from manners.core.records import TEXT_ROLE, Group, Message, Prompt, Response, TokenGroup, TokenResponse
from manners.data.tokens import Encoder, Refused, begin_ids

PLAIN_TEMPLATE: str = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '### System\\n' + message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'user' -%}{{ '### Prompt\\n' + message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'tool' -%}{{ '### Tool\\n' + message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '### Response\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{%- else -%}{{ raise_exception('unknown role ' + message['role']) }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '### Response\\n' }}{%- endif -%}"
)
"""Manners' own plain format: no control token but the one that ends an answer, so it suits any tokenizer."""

CHATML_TEMPLATE: str = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

_MARKS = {plane: re.compile(f"([{chr(plane)}-{chr(plane + 0xFFFF)}])") for plane in (0xF0000, 0x100000)}
"""Unicode's two supplementary private-use planes: a group is marked with the one that its contents do not use."""
_THINK_END = "</think>"
_ADVICE = "use format=plain or another template"


class _Piece(NamedTuple):
    """A run of the rendering: a content (slot 2i + 1 is message i, 2i its reasoning), or template text (slot -1)."""

    text: str
    slot: int


class ChatFormat:
    """How messages become tokens: a tokenizer and a chat template.

    `name` is "plain", "chatml", "template" (the tokenizer's own) or "custom". `stop_ids` holds the token that ends an answer: the
    control token that the template writes after an answer (white space may come between), else the tokenizer's end token, which
    is then inserted after each answer. `counts` says what was met while encoding.
    """

    name: str
    template: str
    stop_ids: frozenset[int]
    counts: Counter[str]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, template: str) -> None:
        """Made by `ChatFormat.of`. Raises InputError for a template that cannot be used with this tokenizer."""
        self.name, self.template, self.counts = name, template, Counter()
        self._tokenizer: Any = tokenizer
        self._encoder = Encoder(tokenizer)
        self._merges = self._splits_think = False
        self._header = ""
        try:
            self._probe()
        except Refused as why:
            raise InputError(f"The chat template ({name}) cannot be used: {why}; {_ADVICE}.") from None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, which: str = "auto") -> "ChatFormat":
        """The format named by `which`.

        "auto" is the tokenizer's own template if it has one, else "plain"; "template" insists on the tokenizer's own; "chatml"
        needs a tokenizer with its two control tokens; anything with Jinja marks is a template itself. Raises InputError.
        """
        loose: Any = tokenizer
        own = loose.get_chat_template() if loose.chat_template else None
        # Nothing else adds a begin token to a rendering, so a template of ours writes it itself where one belongs.
        begin = "{{- bos_token -}}" if begin_ids(tokenizer) else ""
        if which == "template" and own is None:
            raise InputError("This tokenizer has no chat template of its own: use format=plain.")
        if which in ("auto", "template") and own is not None:
            return cls(tokenizer, "plain" if own == begin + PLAIN_TEMPLATE else "template", own)
        if which in ("auto", "plain"):
            if loose.eos_token_id is None:
                raise InputError("This tokenizer has no end token (eos_token), which the plain format needs: set one.")
            return cls(tokenizer, "plain", begin + PLAIN_TEMPLATE)
        if which == "chatml":
            special = {token.content for token in loose.added_tokens_decoder.values() if token.special}
            missing = sorted({"<|im_start|>", "<|im_end|>"} - special)
            if missing:
                raise InputError(f"format=chatml needs {' and '.join(missing)} as special tokens: use format=plain.")
            return cls(tokenizer, "chatml", begin + CHATML_TEMPLATE)
        if "{{" in which or "{%" in which:
            return cls(tokenizer, "custom", which)
        known = ("auto", "plain", "template", "chatml")
        raise InputError(f"Unknown chat format '{which}': {nearest(which, known)} A Jinja chat template is taken too.")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the format was made for."""
        return self._tokenizer

    # Text in, tokens out ------------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation under the template. Raises InputError with the template's complaint if it refuses."""
        try:
            return self._rendering([self._dicts(self._clean(messages), None)], add_generation_prompt)[0]
        except Refused as why:
            raise InputError(f"{_sentence(why)}; {_ADVICE}.") from None

    def natural_ids(self, messages: Sequence[Message]) -> list[int] | None:
        """Tokens that the tokenizer makes of the whole rendering as one text, to compare with.

        None where a message spells out a control token, which would then be taken for one. Raises InputError as `render` does.
        """
        if any(self._encoder.literals(message.content) for message in messages):
            return None
        counts = self.counts.copy()
        text = self.render(messages)
        self.counts = counts
        return self._encoder.encode(text, first=True)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """What a sampler is given: the prompt and the generation prompt. For plain text nothing, or the begin token."""
        if not prompt.messages:
            return list(self._encoder.begin)
        try:
            turns = self._clean(prompt.messages)
            plane = _plane(turns)
            return self._tokens(self._pieces(self._marked([turns], plane, True)[0], plane), turns, begins=True)[0]
        except Refused as why:
            raise InputError(f"{_sentence(why)}; {_ADVICE}.") from None

    def encode(self, group: Group, *, max_length: int | None = None) -> TokenGroup:
        """The group as token ids, each response ending with its stop token, with the trained tokens marked.

        With `max_length` a response that makes prompt and response longer than that is cut at its end (no stop token; counted).
        Raises InputError, naming the row, for what cannot be encoded: an empty answer, a conversation that the template refuses
        or does not show in full, a response of which the cut leaves no trained token.
        """
        where = f"Row {group.row + 1} of the data: " if group.row >= 0 else ""
        plain_text = any(turn.role == TEXT_ROLE for response in group.responses for turn in response.turns)
        try:
            prompt_ids, responses = self._encode_text(group) if plain_text else self._encode_chat(group)
            if max_length is not None:
                responses = [self._cut(response, len(prompt_ids), max_length) for response in responses]
        except Refused as why:
            raise InputError(f"{where}{why if where else _sentence(why)}; {_ADVICE}.") from None
        except InputError as error:
            raise InputError(f"{where}{error if where else _sentence(error)}") from None
        return TokenGroup(prompt_ids, responses, row=group.row, margin=group.margin, probability=group.probability)

    def fits(self, group: Group, max_length: int) -> bool:
        """Whether prompt and longest response are at most `max_length` tokens. Leaves `counts` as they are."""
        counts = self.counts.copy()
        tokens = self.encode(group)
        self.counts.clear()
        self.counts.update(counts)
        return len(tokens.prompt_ids) + max((len(r.token_ids) for r in tokens.responses), default=0) <= max_length

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a sampled answer: all before the first stop token, without special tokens, stripped."""
        end = next((i for i, token in enumerate(token_ids) if token in self.stop_ids), len(token_ids))
        kept = list(token_ids[:end])
        return self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    # Groups -------------------------------------------------------------------------------------------------------------------

    def _encode_text(self, group: Group) -> tuple[list[int], list[TokenResponse]]:
        """Plain text: the begin token if the tokenizer adds one, then the text and the end token, all trained."""
        end = self._tokenizer.eos_token_id
        if end is None:
            raise InputError("plain text needs a tokenizer with an end token (eos_token).")
        responses = []
        for response in group.responses:
            if group.prompt.messages or len(response.turns) != 1 or response.turns[0].role != TEXT_ROLE:
                raise InputError("plain text is one turn of its own, without a prompt and without other turns.")
            text = _whole(response.turns[0].content)
            if not text.strip() and not response.token_ids:
                raise InputError("the text is empty: drop the row.")
            ids = list(response.token_ids or [*self._run([_Piece(text, 1)], first=True), end])
            responses.append(TokenResponse(ids, [True] * len(ids)))
        return list(self._encoder.begin), responses

    def _encode_chat(self, group: Group) -> tuple[list[int], list[TokenResponse]]:
        """A conversation: the prompt once, then each response as its rendering continues the prompt's."""
        prompt = self._clean(group.prompt.messages)
        count = len(prompt)
        sampled = [_sampled(response) for response in group.responses]
        texts = [r for r, ids in zip(group.responses, sampled, strict=True) if ids is None]
        wholes = [prompt + self._clean(self._checked(response).turns) for response in texts]
        plane = _plane([*prompt, *(turn for whole in wholes for turn in whole[count:])])
        asked = self._marked([prompt], plane, True)[0] if prompt else ""
        told = self._marked(wholes, plane, False)
        pieces = [self._pieces(marked, plane) for marked in told]
        for whole, parts in zip(wholes, pieces, strict=True):
            self._check_located(parts, whole, count)

        prompt_ids: list[int] | None = None
        if all(marked.startswith(asked) for marked in told) and prompt:
            prompt_ids = self._tokens(self._pieces(asked, plane), prompt, begins=True)[0]
            tails = [self._pieces(marked[len(asked) :], plane) for marked in told]
        else:
            # The template does not write in training what it writes before sampling, or there is no prompt. Then the prompt ends
            # where the first answer begins, unless the sampler was given something else.
            self.counts["generation prompt differs from training"] += bool(prompt)
            if len(texts) < len(sampled):
                prompt_ids = self._tokens(self._pieces(asked, plane), prompt, begins=True)[0]
            tails = []
            for whole, parts in zip(wholes, pieces, strict=True):
                start = next(i for i, p in enumerate(parts) if p.slot // 2 >= count and whole[p.slot // 2].role == "assistant")
                head = self._tokens(parts[:start], whole, begins=True)[0]
                if prompt_ids is None:
                    prompt_ids = head
                elif head != prompt_ids and len(texts) == len(sampled):
                    raise Refused("the chat template writes the same prompt differently for different responses")
                tails.append(parts[start:])

        written = iter([self._response(tail, whole) for tail, whole in zip(tails, wholes, strict=True)])
        return prompt_ids or [], [TokenResponse(ids, [True] * len(ids)) if ids else next(written) for ids in sampled]

    def _response(self, tail: list[_Piece], turns: Sequence[Message]) -> TokenResponse:
        """The tokens of the pieces below the prompt, up to the last stop token."""
        ids, trained = self._tokens(tail, turns, begins=False, prompt=False)
        end = len(trained) - trained[::-1].index(True)
        return TokenResponse(ids[:end], trained[:end])

    def _checked(self, response: Response) -> Response:
        """The response itself, if it has an assistant turn and no empty one. Raises InputError."""
        answers = [turn.content.strip() for turn in response.turns if turn.role == "assistant"]
        if not answers:
            raise InputError("a response has no assistant turn, so there is nothing to train on: drop the row.")
        if not all(answers):
            raise InputError("an assistant turn is empty: fill it or drop the row.")
        if self._splits_think and any(answer.endswith(_THINK_END) for answer in answers):
            raise InputError(f"an assistant turn has no answer after {_THINK_END}: fill it or drop the row.")
        return response

    def _check_located(self, pieces: Sequence[_Piece], turns: Sequence[Message], count: int) -> None:
        """Raises Refused unless every trained content stands in the rendering once; counts other contents left out."""
        seen = Counter(piece.slot for piece in pieces)
        last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
        for index, turn in enumerate(turns):
            trained = index >= count and turn.role == "assistant"
            if trained and seen[2 * index + 1] != 1:
                raise Refused(f"the chat template writes an answer {seen[2 * index + 1]} times instead of once")
            if turn.content and not seen[2 * index + 1]:
                self.counts["messages left out by the template"] += 1
            if turn.role == "assistant" and self._reasoning(turn.content)[0] and not seen[2 * index]:
                if trained and index == last:
                    raise Refused(f"the chat template leaves out what an answer says before {_THINK_END}")
                self.counts["reasoning of earlier turns left out by the template"] += 1

    def _cut(self, response: TokenResponse, prompt: int, max_length: int) -> TokenResponse:
        """The response cut so that it fits below a prompt of so many tokens. Raises InputError if nothing trained is left."""
        room = max(max_length - prompt, 0)
        if len(response.token_ids) <= room:
            return response
        if not any(response.trained[:room]):
            total = prompt + len(response.token_ids)
            raise InputError(
                f"the prompt has {prompt} of {total} tokens, so no trained token is left within max_length={max_length}: "
                f"raise max_length (to {total} to keep it all) or drop the row."
            )
        self.counts["truncated"] += 1
        return TokenResponse(response.token_ids[:room], response.trained[:room])

    # Rendering ----------------------------------------------------------------------------------------------------------------

    def _clean(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with stripped contents, same-role neighbours merged if the template refuses them."""
        turns = [Message(m.role, _whole(m.content).strip()) for m in messages]
        if not self._merges:
            return turns
        merged = []
        for role, run in groupby(turns, key=lambda turn: turn.role):
            same = list(run)
            if len(same) > 1 and role != "tool":
                self.counts["same-role neighbours merged"] += len(same) - 1
                same = [Message(role, "\n\n".join(turn.content for turn in same))]
            merged += same
        return merged

    def _reasoning(self, content: str) -> tuple[str, str]:
        """An assistant's reasoning and its answer, if the template takes them apart; else no reasoning and the content."""
        if not self._splits_think or _THINK_END not in content:
            return "", content
        reasoning, _, answer = content.rpartition(_THINK_END)
        return reasoning.strip().removeprefix("<think>").strip(), answer.strip()

    def _dicts(self, turns: Sequence[Message], plane: int | None) -> list[dict[str, str]]:
        """The messages as templates read them, contents marked in private-use plane `plane` unless that is None."""

        def mark(text: str, slot: int) -> str:
            # An empty content stays unmarked: templates may ask whether there is any.
            return f"{chr(plane + 2 * slot)}{text}{chr(plane + 2 * slot + 1)}" if text and plane is not None else text

        dicts = []
        for index, turn in enumerate(turns):
            reasoning, answer = self._reasoning(turn.content) if turn.role == "assistant" else ("", turn.content)
            content = mark(answer, 2 * index + 1)
            if answer != turn.content:
                content = f"<think>\n{mark(reasoning, 2 * index)}\n{_THINK_END}\n\n{content}"
            dicts.append({"role": turn.role, "content": content})
        return dicts

    def _rendering(self, conversations: list[list[dict[str, str]]], generation: bool) -> list[str]:
        """The renderings, by the tokenizer's own (sandboxed) renderer. Raises Refused with the template's complaint."""
        if not conversations:
            return []
        try:
            return self._tokenizer.apply_chat_template(
                conversations, chat_template=self.template, add_generation_prompt=generation, tokenize=False
            )
        except Exception as error:  # a template is someone else's program: it may fail in any way
            raise Refused(f"the chat template refuses this conversation: {str(error) or type(error).__name__}") from None

    def _marked(self, conversations: Sequence[Sequence[Message]], plane: int, generation: bool) -> list[str]:
        """The renderings with each content between its marks. Raises Refused if the marks change anything else."""
        rendered = self._rendering([self._dicts(turns, where) for turns in conversations for where in (plane, None)], generation)
        for marked, plain in zip(rendered[::2], rendered[1::2], strict=True):
            if _MARKS[plane].sub("", marked) != plain:
                raise Refused("the chat template looks into the messages or changes them, so answers cannot be told from the rest")
        return rendered[::2]

    def _pieces(self, marked: str, plane: int) -> list[_Piece]:
        """The marked rendering as template text, content, template text, ..., with the space before a content given to it."""
        parts = _MARKS[plane].split(marked)  # text, mark, content, mark, text, ...
        pieces = []
        for text, opening, content, closing in zip(parts[:-1:4], parts[1::4], parts[2::4], parts[3::4], strict=False):
            slot, odd = divmod(ord(opening) - plane, 2)
            if odd or ord(closing) != ord(opening) + 1:
                break
            space = " " if text.endswith(" ") else ""
            pieces += [_Piece(text.removesuffix(" "), -1), _Piece(space + content, slot)]
        if len(pieces) * 2 + 1 != len(parts):
            raise Refused("the chat template takes messages apart, so answers cannot be told from the rest")
        return [*pieces, _Piece(parts[-1], -1)]

    def _probe(self) -> None:
        """Learns from small conversations what the template refuses, takes apart, and writes around answers."""
        user, answer, plane = Message("user", "u"), Message("assistant", "v"), next(iter(_MARKS))

        def after(*turns: Message) -> str | None:
            """Template text after the first answer, None if the template refuses the conversation."""
            try:
                pieces = self._pieces(self._marked([turns], plane, False)[0], plane)
            except Refused:
                return None
            return next((pieces[i + 1].text for i, p in enumerate(pieces[:-1]) if p.slot == 3), None)

        alone = self._pieces(self._marked([[user, answer]], plane, False)[0], plane)
        if not any(piece.slot == 3 for piece in alone):
            raise Refused("it does not write an answer that is given as text")
        for turns in ([user, user, answer], [user, answer, answer]):
            try:
                self._rendering([self._dicts(turns, None)], False)
            except Refused:
                self._merges = True
        thought = Message("assistant", f"<think>\nr\n{_THINK_END}\n\nv")
        if after(user, thought) is None:
            self._splits_think = True
        asked, bare = (self._rendering([self._dicts([user], None)], generation)[0] for generation in (True, False))
        self._header = asked.removeprefix(bare) if asked.startswith(bare) else ""
        last, middle = after(user, answer) or "", after(user, answer, user, answer) or ""
        self._find_stop(last, middle)

    def _find_stop(self, last: str, middle: str) -> None:
        """Sets the stop token from template text after a last answer and after one in the middle. Raises Refused."""
        end, inner = (self._encoder.pattern.match(text.lstrip()) for text in (last, middle))
        self._stop_space = ""
        if end is not None:
            stop = end[0]
        elif inner is not None and inner[0] == self._tokenizer.eos_token:
            stop, self._stop_space = inner[0], middle[: len(middle) - len(middle.lstrip())]
        else:
            stop = self._tokenizer.eos_token
        if stop is None:
            raise Refused("it writes no control token after an answer and the tokenizer has no end token (eos_token)")
        end_id: int = self._tokenizer.eos_token_id if stop == self._tokenizer.eos_token else self._encoder.control[stop]
        self._stop = end_id
        self.stop_ids = frozenset({self._stop})
        # gpt-oss ends its last answer with one token and earlier ones with another, which does not end what a sampler draws.
        ends = {stop, inner[0]} if end is not None and inner is not None else {stop}
        self._end_pattern = re.compile(r"(\s*)(" + "|".join(map(re.escape, ends)) + ")")

    # Pieces to tokens ---------------------------------------------------------------------------------------------------------

    def _tokens(
        self, pieces: Sequence[_Piece], turns: Sequence[Message], *, begins: bool, prompt: bool = True
    ) -> tuple[list[int], list[bool]]:
        """Tokens of the pieces, and which of them a model has to write.

        Only what a model reads is parted from what it writes; within each the text is tokenized as a whole. `begins` says that
        the pieces begin the rendering, `prompt` that all of them are read. If neither, text at their start is the model's.
        """
        ids: list[int] = []
        trained: list[bool] = []
        run: list[_Piece] = []
        stops: list[int] = []

        def flush(writes: bool) -> None:
            new = self._run(run, first=begins and not ids)
            run.clear()
            ids.extend(new)
            trained.extend([writes] * len(new))

        def answers(slot: int) -> bool:
            return slot >= 0 and turns[slot // 2].role == "assistant"

        before = -1
        for at, (text, slot) in enumerate(pieces):
            if slot >= 0:
                run.append(_Piece(text, slot))
                before = slot
                continue
            after = pieces[at + 1].slot if at + 1 < len(pieces) else -1
            inside = before >= 0 and before // 2 == after // 2
            if answers(before) and not inside:
                end = self._end_pattern.match(text)
                if end is None:
                    run.append(_Piece(self._stop_space, -1))
                    flush(not prompt)
                    ids.append(self._stop)
                    trained.append(True)
                elif not prompt:
                    run.append(_Piece(end[1], -1))
                    flush(True)
                    text = text[len(end[1]) :]
                    stops.append(len(ids))
            if answers(after) and not inside and not prompt:
                cut = text.rindex(self._header) + len(self._header) if self._header in text else len(text)
                run.append(_Piece(text[: cut if before >= 0 else 0], -1))
                flush(False)
                run.append(_Piece(text[cut if before >= 0 else 0 :], -1))
            else:
                run.append(_Piece(text, -1))
        flush(answers(before) and pieces[-1].slot >= 0)
        for stop in stops:
            trained[stop] = ids[stop] == self._stop
        return ids, trained

    def _run(self, run: Sequence[_Piece], *, first: bool) -> list[int]:
        """Tokens of a run of pieces: as one text, unless a content holds literal control tokens, which are counted."""
        literal = sum(len(self._encoder.literals(text)) for text, slot in run if slot >= 0)
        if not literal:
            return self._encoder.encode("".join(text for text, _ in run), first=first)
        self.counts["control tokens kept as text"] += literal
        ids: list[int] = []
        for text, slot in run:
            encode = self._encoder.encode if slot < 0 else self._encoder.encode_content
            ids += encode(text, first=first and not ids)
        return ids


def _sampled(response: Response) -> list[int] | None:
    """Token ids that a sampler drew, to be used as they are; None for a response that is text. Raises InputError."""
    if response.token_ids is None or len(response.turns) > 1:
        return None
    if not response.token_ids:
        raise InputError("a sampled response has no tokens: drop it.")
    return list(response.token_ids)


def _plane(turns: Iterable[Message]) -> int:
    """The private-use plane that no content uses. Raises InputError if there is none."""
    used = {ord(char) & ~0xFFFF for turn in turns if not turn.content.isascii() for char in set(turn.content)}
    free = [plane for plane in _MARKS if plane not in used]
    if not free:
        raise InputError("a conversation uses both of Unicode's private-use planes, which mark the answers here: clean the text.")
    return free[0]


def _whole(text: str) -> str:
    """The text with each half of a surrogate pair, which no tokenizer takes, as a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _sentence(error: Exception) -> str:
    """The error's text with a capital letter."""
    text = str(error)
    return text[:1].upper() + text[1:]
