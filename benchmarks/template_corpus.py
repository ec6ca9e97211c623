"""Every chat template of a folder through Manners' chat format: which come out exactly, and which are refused by name.

    python -m benchmarks.template_corpus FOLDER

A template is exact if, for a short and a longer conversation, the tokens are those of the rendering up to the last stop token, and
the trained ones hold each answer with its stop token and no word of the user. The tokenizer is byte-level, with the template's own
control tokens added. A test runs this over what is installed; no template of others is kept in the repository.
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from manners.core.errors import InputError
from manners.core.records import Group, Message, Prompt, Response, TokenGroup
from manners.data.chat import ChatFormat
from manners.data.checks import count, fault

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
CONTROL = re.compile(r"<[|｜]?[A-Za-z_/][\w/▁ ]*[|｜]?>|\[/?[A-Z_]{3,}\]")
"""What templates write that looks like a control token."""
ADVICE = re.compile(r"^The chat template \(\w+\) cannot be used: |; use format=plain or another template\.$")
"""What frames a refusal's reason."""
TALKS = (("Qone?", "Aone."), ("Qone?", "Aone.", "Qtwo?", "Atwo."))


class Verdict(NamedTuple):
    """What became of a template: "exact", "refused" or "wrong", why, and the token that ends an answer."""

    outcome: str
    why: str = ""
    stop: str = ""


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the control tokens that the template spells out."""
    found = sorted(set(CONTROL.findall(template)) - {BEGIN, END, PAD})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([PAD, BEGIN, END, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in found])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = template
    return tokenizer


def judge(template: str) -> Verdict:
    """Run a template through the chat format. Never raises for what a template does."""
    tokenizer = tokenizer_for(template)
    sources = [_group(talk) for talk in TALKS]
    try:
        fmt = ChatFormat.of(tokenizer)
        groups = [fmt.encode(source) for source in sources]
    except InputError as refusal:
        return Verdict("refused", ADVICE.sub("", str(refusal)))
    stop = tokenizer.decode(sorted(fmt.stop_ids))
    wrong = fault(count(groups, fmt, sources), fmt)
    for talk, source, tokens in zip(TALKS, sources, groups, strict=True):
        wrong = wrong or _wrong(fmt, tokenizer, talk, source, tokens, stop)
    return Verdict("wrong" if wrong else "exact", wrong or "", stop)


def _group(talk: tuple[str, ...]) -> Group:
    turns = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(talk))
    return Group(Prompt(turns[:1]), [Response(turns[1:])])


def _wrong(
    fmt: ChatFormat, tokenizer: PreTrainedTokenizerFast, talk: tuple[str, ...], source: Group, tokens: TokenGroup, stop: str
) -> str | None:
    """What is wrong with the tokens of a conversation."""
    response = tokens.responses[0]
    text = tokenizer.decode([*tokens.prompt_ids, *response.token_ids])
    rendered = fmt.render([*source.prompt.messages, *source.responses[0].turns])
    if stop not in rendered:  # the template ends answers with nothing, so the stop token was put there
        text = text.replace(stop, "")
    elif stop not in rendered[rendered.index(talk[-1]) :]:  # it ends all answers but the last
        text = text.removesuffix(stop)
    if not rendered.startswith(text):
        return "the tokens are not the rendering"
    trained = tokenizer.decode([token for token, on in zip(response.token_ids, response.trained, strict=True) if on])
    if re.findall(r"[QA](?:one|two)[?.]", trained) != list(talk[1::2]):
        return f"the trained tokens are {trained!r}"
    return None


def main(folder: str) -> None:
    """Print a line a template and the counts."""
    table = Table("template", "outcome", "stop token", "why", box=None, pad_edge=False)
    counts: Counter[str] = Counter()
    for path in sorted(Path(folder).rglob("*.jinja")):
        verdict = judge(path.read_text(encoding="utf-8"))
        counts[verdict.outcome] += 1
        table.add_row(str(path.relative_to(folder)), verdict.outcome, verdict.stop, verdict.why)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    console.print(f"{counts.total()} templates: " + ", ".join(f"{counts[name]} {name}" for name in ("exact", "refused", "wrong")))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m benchmarks.template_corpus FOLDER")
    main(sys.argv[1])
