"""Small labelled data made by a program, for recipes that ask what instruction data is worth: eight tasks of the template library, and sums
told as stories with their working.

    python -m manners.data.tasks FOLDER        # writes the files that ship in manners/data/starter/tasks

Six tasks are for training (a file each of fields for `manners data render`), two are only asked. What is asked is made of other rows than
what is trained on; each prompt goes through one of its task's templates. Sentences are put together of parts: they are plain, correct and
alike, and nobody should mistake them for what people write.
"""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from manners.core.files import write_jsonl
from manners.data.templates import NotApplicable, load_all

SEED = 11
TRAIN, SEEN, UNSEEN = 96, 10, 60
"""Rows of each task's file; prompts of each trained task; prompts of each task that is only asked."""
PROBLEMS, PROBLEMS_TEST, PROBLEMS_HELD_OUT = 288, 120, 60
Row = dict[str, Any]
Draw = random.Random

# fmt: off
THINGS = ("soup", "hotel room", "raincoat", "film", "bicycle", "lamp", "novel", "taxi ride", "tent", "coffee", "radio", "concert",
          "garden chair", "sandwich", "train journey", "rucksack", "kettle", "museum", "haircut", "pillow")
PRAISE = ("was better than I had hoped", "was a pleasure from beginning to end", "is worth every penny", "made my whole week",
          "is the best that I have had in years", "was so good that I told all my friends", "did just what was promised")
BLAME = ("was a waste of money", "was worse than I had feared", "broke my patience within a minute", "is not worth a penny",
         "was the worst that I have had in years", "left me cold and cross", "did nothing of what was promised")
LATER = ("I will come back.", "Never again.", "My sister was with me.", "It was a Tuesday.", "We paid by card.", "")
NEWS = (
    (("Ministers", "The president", "Two neighbouring states", "Voters", "The border guards"),
     ("signed a treaty", "met for talks", "closed an embassy", "called an election", "sent aid to the north"),
     ("on Monday", "after a long night", "in spite of protests", "for the first time")),
    (("The home side", "The champion", "A young goalkeeper", "The relay team", "The visitors"),
     ("won the final", "lost by a single point", "broke the record", "scored in the last minute", "reached the semi-final"),
     ("on Sunday", "in heavy rain", "before a full stadium", "after extra time")),
    (("The airline", "A maker of chips", "The largest bank", "The supermarket chain", "Shareholders"),
     ("raised the forecast for profits", "cut four hundred jobs", "agreed to a merger", "sold the branch abroad", "expects higher prices"),
     ("this quarter", "on Thursday", "as shares fell", "for next year")),
    (("Astronomers", "A team of chemists", "Biologists", "The space probe", "Researchers"),
     ("found water on a distant moon", "measured the age of the rock", "described a beetle", "tested a vaccine", "mapped the ocean floor"),
     ("with a new instrument", "after ten years of work", "in a laboratory", "for the first time")),
)
PEOPLE = ("A boy", "A woman", "An old man", "Two girls", "A postman", "Three children")
DOING = (  # what is seen, what it is a kind of, what cannot be at the same time
    ("playing the violin", "making music", "fast asleep"), ("riding a horse", "on the back of an animal", "sitting in a boat"),
    ("eating an apple", "eating fruit", "not eating anything"), ("swimming in the lake", "in the water", "standing on dry land"),
    ("reading a newspaper", "reading something", "looking at nothing but the sky"),
    ("climbing a ladder", "going upwards", "lying on the ground"),
)
PLACES = ("near the station", "behind the school", "in the old town", "at the foot of the hill", "beside the market")
OPEN = ("in a hurry", "from another country", "hungry", "waiting for a friend", "here every day")
DEEDS = (("built", "the bridge"), ("painted", "the gate"), ("repaired", "the clock"), ("opened", "the shop"),
         ("sold", "the mill"), ("wrote", "the song"))
DOERS = ("the mayor", "a carpenter", "Mrs Lowe", "two brothers", "the new owner", "a teacher", "my uncle", "the gardener")
YEARS = tuple(range(1902, 1999, 7))
NAMES = ("Anna", "Bertil", "Clara", "Dev", "Elena", "Farid", "Grace", "Henrik", "Imani", "Jonas", "Kiri", "Leo", "Mara", "Nadia")
KINDS = {
    "fruit": ("apple", "pear", "plum", "cherry", "banana", "melon"), "tool": ("hammer", "saw", "chisel", "drill", "spanner", "file"),
    "bird": ("sparrow", "owl", "heron", "robin", "eagle", "gull"), "colour": ("red", "green", "purple", "yellow", "brown", "blue"),
    "vehicle": ("tram", "lorry", "bicycle", "ferry", "bus", "tractor"), "metal": ("iron", "copper", "silver", "tin", "lead", "zinc"),
    "drink": ("tea", "milk", "juice", "coffee", "lemonade", "water"), "instrument": ("violin", "trumpet", "drum", "flute", "harp", "piano"),
}
TOWNS = ("Alderton", "Brackley", "Corwen", "Dunmore", "Eastfield", "Fenwick")
JOBS = ("baker", "nurse", "driver", "painter", "farmer", "judge", "plumber")
PETS = ("a cat", "a dog", "a parrot", "two rabbits", "a tortoise")
GOODS = ("apples", "stamps", "marbles", "pencils", "eggs", "shells", "buttons", "cards")
# fmt: on


# --- a row of each task -----------------------------------------------------------------------------------------------------


def sentiment(draw: Draw, place: int) -> Row:
    """A remark on a thing, glad (1) or not (0)."""
    label = place % 2
    later = draw.choice([said for said in LATER if said != ("Never again.", "I will come back.")[1 - label]][: 6 if label else 5])
    later = "" if later == ("Never again." if label else "I will come back.") else later
    return {"text": f"The {draw.choice(THINGS)} {draw.choice((BLAME, PRAISE)[label])}. {later}".strip(), "label": label}


def topic(draw: Draw, place: int) -> Row:
    """A line of news of one of four sections."""
    label = place % 4
    return {"text": " ".join(map(draw.choice, NEWS[label])) + ".", "label": label}


def inference(draw: Draw, place: int) -> Row:
    """What is seen, and what follows (0), may be (1) or cannot be (2)."""
    label = place % 3
    who, doing = draw.choice(PEOPLE), draw.choice(DOING)
    verb = "are" if who.split()[0] in ("Two", "Three") else "is"
    they = who.replace("A ", "The ").replace("An ", "The ").replace("Two", "The two").replace("Three", "The three")
    then = (doing[1], draw.choice(OPEN), doing[2])[label]
    return {"premise": f"{who} {verb} {doing[0]} {draw.choice(PLACES)}.", "hypothesis": f"{they} {verb} {then}.", "label": label}


def paraphrase(draw: Draw, place: int) -> Row:
    """A deed told twice (1), or two deeds that differ in who, what or when (0)."""
    label = place % 2
    (verb, thing), who, year = draw.choice(DEEDS), draw.choice(DOERS), draw.choice(YEARS)
    first = f"In {year} {who} {verb} {thing}."
    past = {"wrote": "written"}.get(verb, verb)
    if not label:
        change = draw.choice(("who", "year"))
        who = draw.choice([d for d in DOERS if d != who]) if change == "who" else who
        year = draw.choice([y for y in YEARS if y != year]) if change == "year" else year
    return {"sentence1": first, "sentence2": f"{thing.capitalize()} was {past} by {who} in {year}.", "label": label}


def words_to_sentence(draw: Draw, place: int) -> Row:
    """Three words, and a sentence that holds them."""
    who, doing, where = draw.choice(PEOPLE), draw.choice(DOING)[0], draw.choice(PLACES)
    verb = "are" if who.split()[0] in ("Two", "Three") else "is"
    return {"words": [who.split()[-1], doing.split()[-1], where.split()[-1]], "sentence": f"{who} {verb} {doing} {where}."}


def word_problem(draw: Draw, place: int) -> Row:
    """A sum told as a story."""
    return problem(draw, STORIES[place % len(STORIES)])


def passage_question(draw: Draw, place: int) -> Row:
    """A few facts about somebody, and a question about one of them."""
    name, town, job, pet, age = draw.choice(NAMES), draw.choice(TOWNS), draw.choice(JOBS), draw.choice(PETS), draw.randint(20, 70)
    context = f"{name} is {age} years old and lives in {town}. By day {name} works as a {job}. In the evening {name} feeds {pet}."
    asked = ((f"Where does {name} live?", town), (f"What is {name}'s job?", job), (f"How old is {name}?", str(age)))
    question, answer = asked[place % 3]
    return {"context": context, "question": question, "answer": answer}


def multiple_choice(draw: Draw, place: int) -> Row:
    """Which of four is of a kind?"""
    kind, *others = draw.sample(sorted(KINDS), 4)
    choices = [draw.choice(KINDS[kind]), *(draw.choice(KINDS[other]) for other in others)]
    right = choices[0]
    draw.shuffle(choices)
    article = "an" if kind[0] in "aeiou" else "a"
    return {"question": f"Which of these is {article} {kind}?", "choices": choices, "label": choices.index(right)}


# --- sums told as stories ---------------------------------------------------------------------------------------------------

Story = Callable[[Draw, str, str], tuple[str, str, int]]
"""From a draw, a name and a thing that is counted to question, working and result."""


def _gets(draw: Draw, who: str, what: str) -> tuple[str, str, int]:
    a, b = draw.randint(3, 12), draw.randint(2, 9)
    return (f"{who} has {a} {what} and gets {b} more. How many {what} does {who} have now?",
            f"{who} begins with {a} {what}. With {b} more it is {a} + {b} = {a + b}.", a + b)  # fmt: skip


def _gives(draw: Draw, who: str, what: str) -> tuple[str, str, int]:
    b, rest = draw.randint(2, 9), draw.randint(2, 9)
    return (f"{who} had {b + rest} {what} and gave {b} away. How many {what} are left?",
            f"{who} had {b + rest} {what}. {b} are gone, and {b + rest} - {b} = {rest}.", rest)  # fmt: skip


def _bags(draw: Draw, who: str, what: str) -> tuple[str, str, int]:
    a, b = draw.randint(2, 5), draw.randint(2, 6)
    return (f"{who} has {a} bags with {b} {what} in each. How many {what} are that?",
            f"Each of the {a} bags holds {b} {what}, and {a} x {b} = {a * b}.", a * b)  # fmt: skip


def _gives_then_gets(draw: Draw, who: str, what: str) -> tuple[str, str, int]:
    a, b, c = draw.randint(8, 15), draw.randint(2, 6), draw.randint(2, 6)
    return (f"{who} had {a} {what}, gave {b} away and then found {c}. How many {what} does {who} have now?",
            f"After giving {b} away, {a} - {b} = {a - b} are left. With {c} more it is {a - b} + {c} = {a - b + c}.",
            a - b + c)  # fmt: skip


def _together(draw: Draw, who: str, what: str) -> tuple[str, str, int]:
    a, b = draw.randint(3, 12), draw.randint(2, 9)
    return (f"There are {a} {what} in a red box and {b} in a blue one. {who} takes them all. How many {what} does {who} take?",
            f"In both boxes together are {a} + {b} = {a + b} {what}.", a + b)  # fmt: skip


def _bags_then_gives(draw: Draw, who: str, what: str) -> tuple[str, str, int]:
    a, b, c = draw.randint(2, 4), draw.randint(3, 5), draw.randint(2, 5)
    return (f"{who} fills {a} bags with {b} {what} each and gives {c} {what} away. How many {what} are left?",
            f"In the bags are {a} x {b} = {a * b} {what}. Without {c} it is {a * b} - {c} = {a * b - c}.", a * b - c)  # fmt: skip


STORIES: tuple[Story, ...] = (_gets, _gives, _bags, _gives_then_gets)
HELD_OUT_STORIES: tuple[Story, ...] = (_together, _bags_then_gives)
"""Forms that no training problem has."""


def problem(draw: Draw, story: Story) -> Row:
    """A problem with its working; `worked` and `short` are what a model may be taught to answer."""
    question, rationale, result = story(draw, draw.choice(NAMES), draw.choice(GOODS))
    short = f"The answer is {result}."
    return {"question": question, "rationale": rationale, "answer": str(result), "worked": f"{rationale} {short}", "short": short}


# --- files ------------------------------------------------------------------------------------------------------------------

TRAINED: dict[str, Callable[[Draw, int], Row]] = {
    "sentiment": sentiment,
    "word_problem": word_problem,
    "paraphrase": paraphrase,
    "words_to_sentence": words_to_sentence,
    "topic": topic,
    "inference": inference,
}
ASKED_ONLY: dict[str, Callable[[Draw, int], Row]] = {"passage_question": passage_question, "multiple_choice": multiple_choice}


def distinct(name: str, make: Callable[[Draw, int], Row], count: int) -> list[Row]:
    """So many rows, no two the same."""
    draw = random.Random(f"{SEED} {name}")
    found: dict[str, Row] = {}
    while len(found) < count:
        row = make(draw, len(found))
        found.setdefault(repr({key: value for key, value in row.items() if key != "label"}), row)
    return list(found.values())


def prompts(name: str, rows: list[Row]) -> Iterator[Row]:
    """A prompt for each row, through one of its task's templates that asks for the answer."""
    (file,), _ = load_all(f"starter:{name}")
    templates = [template for template in file.templates if not template.inverted and file.reason not in template.fields]
    draw = random.Random(f"{SEED} {name} prompts")
    for place, row in enumerate(rows):
        template = draw.choice(templates)
        try:
            asked = template.render(row, f"{SEED}:{place}")
        except NotApplicable:
            continue
        yield _prompt(f"{name}-{place + 1:03d}", name, asked.prompt, asked.target)


def _prompt(label: str, cluster: str, prompt: str, reference: str) -> Row:
    return {"id": label, "cluster": cluster, "prompt": prompt, "reference": reference, "wants": {}}


def made() -> dict[str, list[Row]]:
    """All files by name."""
    files: dict[str, list[Row]] = {"prompts_seen.jsonl": [], "prompts_unseen.jsonl": []}
    for name, make in TRAINED.items():
        rows = distinct(name, make, TRAIN + SEEN)
        files[f"{name}.jsonl"] = rows[:TRAIN]
        files["prompts_seen.jsonl"] += prompts(name, rows[TRAIN:])
    for name, make in ASKED_ONLY.items():
        files["prompts_unseen.jsonl"] += prompts(name, distinct(name, make, UNSEEN))
    known = distinct("problems", word_problem, PROBLEMS + PROBLEMS_TEST)
    files["problems.jsonl"] = known[:PROBLEMS]
    new = distinct("held-out problems", lambda draw, place: problem(draw, HELD_OUT_STORIES[place % 2]), PROBLEMS_HELD_OUT)
    for split, rows in (("test", known[PROBLEMS:]), ("held_out", new)):
        asked = [_prompt(f"problem-{split}-{i + 1:03d}", "problems", row["question"], row["answer"]) for i, row in enumerate(rows)]
        files[f"prompts_problems_{split}.jsonl"] = asked
    return files


if __name__ == "__main__":
    for file, content in made().items():
        write_jsonl(Path(sys.argv[1]) / file, content)
