"""A second model beside a subject, for evaluations that run the same tokens through both: a role of the subject's own backbone where
that can be, or a model in memory of its own."""

from manners.core.errors import InputError
from manners.evaluate.subject import LocalSubject, Subject
from manners.model.load import ModelSource, load_tokenizer, resolve
from manners.model.logprob import load_frozen
from manners.model.probe import probe
from manners.model.roles import BASE
from manners.model.shift import Speaker


def own(subject: Subject, evaluation: str) -> LocalSubject:
    """The subject as a model in memory. Raises InputError for one that only answers."""
    if not isinstance(subject, LocalSubject):
        raise InputError(f"{subject.name} only answers; eval {evaluation} looks inside, so give it a model, an adapter or a run.")
    return subject


def speaker(subject: LocalSubject) -> Speaker:
    """The subject itself."""
    return Speaker(subject.backbone, subject.role)


def beside(subject: LocalSubject, name: str) -> Speaker:
    """The model called `name`. Adapters on the same base share the subject's weights.

    Raises InputError as `resolve` does, and where a token does not have the same number in both vocabularies.
    """
    source = resolve(name)
    assert subject.fmt is not None
    ours, theirs = subject.fmt.tokenizer.get_vocab(), load_tokenizer(source).get_vocab()
    fewer, more = sorted((ours, theirs), key=len)
    if odd := [token for token, number in fewer.items() if more.get(token) != number]:
        raise InputError(
            f"{subject.name} and {name} have different tokenizers ({len(odd):,} of {len(fewer):,} tokens differ, '{odd[0]}' among them): "
            "the same tokens must go through both, so give a model of the same tokenizer."
        )
    if _place(source) != _place(subject.source):
        backbone, role = load_frozen(source)
        probe(backbone)
        return Speaker(backbone, role)
    if source.adapter == subject.source.adapter:  # None for both: the model itself
        return speaker(subject)
    if source.adapter is None:
        return Speaker(subject.backbone, BASE)
    role = f"beside{len(subject.backbone.roles)}"
    subject.backbone.load_adapter(role, source.adapter, trainable=False)
    return Speaker(subject.backbone, role)


def _place(source: ModelSource) -> str:
    """Where a source's base lies, however its folder was written."""
    return source.base if source.folder is None else str(source.folder.resolve())
