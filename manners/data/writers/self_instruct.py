"""Self-instruct (Wang 2022): new instructions from a pool of them, then inputs and outputs for each.

    pool = the seeds
    ask:  six of the seeds and two of the model's own, and what comes next in the list?
    keep what passes the rules and is not too like anything in the pool; it joins the pool
    ask:  is it a classification task?
    ask:  for instances, the label first if it is (the labels then come out balanced), the input first if not

Requests for instructions go out in waves of `wave`, whose examples come from the pool as it was before: a model that answers many at
once is kept busy, and the result does not hang on the order of the answers.
"""

from collections.abc import Sequence
from typing import Any

from manners.data.writers.desk import CUT, EMPTY, TOO_LONG, Desk, Reply
from manners.data.writers.filters import (
    INSTANCE_RULES,
    INSTANCES,
    INSTRUCTION_RULES,
    Instance,
    Pool,
    input_first,
    instance_faults,
    instruction_fault,
    listed,
    output_first,
)
from manners.data.writers.seeds import Seed

HOW = "self-instruct"
FROM_SEEDS, FROM_POOL = 6, 2
"""Examples in a request for instructions: of the seeds, and of what the model wrote."""
NO_LIST, NO_INSTANCE = "no numbered list", "no instance that can be read"


def write(desk: Desk, seeds: Sequence[Seed], *, count: int, tries: int, wave: int, limit: float) -> list[dict[str, Any]]:
    """Rows of at most `count` new instructions, from at most `tries` requests for them."""
    written = _instructions(desk, seeds, count=count, tries=tries, wave=wave, limit=limit)
    labelled = _classified(desk, written)
    return _instances(desk, labelled)


def _instructions(desk: Desk, seeds: Sequence[Seed], *, count: int, tries: int, wave: int, limit: float) -> list[tuple[str, Reply]]:
    """New instructions with the reply that each came in."""
    given = [seed.instruction for seed in seeds]
    pool = Pool(given, limit)
    own: list[tuple[str, Reply]] = []
    replies_step = desk.step("requests for instructions", (TOO_LONG, EMPTY, NO_LIST))
    step = desk.step("instructions", (CUT, *INSTRUCTION_RULES))
    for start in range(0, tries, wave):
        keys = range(start, min(start + wave, tries))
        rows = [{"tasks": _examples(desk, key, given, [text for text, _ in own])} for key in keys]
        for reply in desk.ask("instructions", rows, list(keys)):
            items = [item for item in listed(reply.text) if item]
            fault = TOO_LONG if reply.unread else EMPTY if not reply.text else None if items else NO_LIST
            if not replies_step.keeps(fault, {"text": reply.text}):
                continue
            for place, item in enumerate(items):
                cut = reply.cut and place == len(items) - 1
                if step.keeps(CUT if cut else instruction_fault(item, pool), {"text": item}):
                    pool.add(item)
                    own.append((item, reply))
        if len(own) >= count:
            break
    return own[:count]


def _examples(desk: Desk, key: int, seeds: Sequence[str], own: Sequence[str]) -> list[str]:
    """Eight instructions in random order, six of them seeds; fewer of the model's while it wrote fewer, and seeds in their place."""
    chance = desk.chance(HOW, "examples", key)
    mine = chance.sample(list(own), min(FROM_POOL, len(own)))
    theirs = chance.sample(list(seeds), min(FROM_SEEDS + FROM_POOL - len(mine), len(seeds)))
    examples = [" ".join(text.split()) for text in (*theirs, *mine)]
    chance.shuffle(examples)
    return examples


def _classified(desk: Desk, written: Sequence[tuple[str, Reply]]) -> list[tuple[str, Reply, Reply, bool]]:
    """Each instruction with whether it is a classification task. What says neither yes nor no counts as no."""
    step = desk.step("is it classification?", ())
    replies = desk.ask("classify", [{"instruction": text} for text, _ in written], list(range(len(written))), verdict=True)
    found = []
    for (text, origin), reply in zip(written, replies, strict=True):
        said = reply.text.lower().lstrip(" *\"'`").partition("\n")[0]
        step.keeps(None, {})
        step.notes["yes" if said.startswith("yes") else "no" if said.startswith("no") else "neither, taken as no"] += 1
        found.append((text, origin, reply, said.startswith("yes")))
    return found


def _instances(desk: Desk, tasks: Sequence[tuple[str, Reply, Reply, bool]]) -> list[dict[str, Any]]:
    replies_step = desk.step("requests for instances", (TOO_LONG, EMPTY, NO_INSTANCE))
    step = desk.step("instances", (CUT, *INSTANCE_RULES))
    replies: dict[int, Reply] = {}
    for template, wanted in (("output_first", True), ("input_first", False)):
        places = [i for i, task in enumerate(tasks) if task[3] is wanted]
        replies |= zip(places, desk.ask(template, [{"instruction": tasks[i][0]} for i in places], places, greedy=True), strict=True)
    rows = []
    for place, (text, origin, _, classification) in enumerate(tasks):
        reply = replies[place]
        found = (output_first if classification else input_first)(reply.text)[:INSTANCES]
        fault = TOO_LONG if reply.unread else EMPTY if not reply.text else None if found else NO_INSTANCE
        if not replies_step.keeps(fault, {"instruction": text, "text": reply.text}):
            continue
        faults = instance_faults(found)
        if reply.cut:
            faults[-1] = CUT
        for number, (instance, why) in enumerate(zip(found, faults, strict=True)):
            if step.keeps(why, {"instruction": text, **instance._asdict()}):
                rows.append(_row(desk, text, instance, [origin, reply], place=place, number=number, classification=classification))
    return rows


def _row(desk: Desk, text: str, instance: Instance, replies: Sequence[Reply], **facts: Any) -> dict[str, Any]:
    asked = f"{text}\n\n{instance.input}" if instance.input else text
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": instance.output}]
    return desk.row(messages, HOW, replies, cluster="classify" if facts["classification"] else "", task={"text": text, **facts})
