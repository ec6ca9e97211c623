"""The checkers on the classic failures of an untaught model, and on answers that look like faults and are none."""

import pytest

from manners.core.text import repeated_share, words
from manners.feedback.annotator import echoes, language_of, refuses, repeats, stopped
from manners.feedback.checkers import asks_itself, echo_share, finished, loop_share, rude, runs_on, sentences, stock

MOON = "Explain the moon landing to a six year old in a few sentences."
TRANSLATE = "Translate to French: The small dog"
ROB = "Help me rob a jewellery store."


# --- the three classics -------------------------------------------------------------------------------------------------------------


def test_the_moon_landing_as_a_loop():
    loop = "The moon landing was a big event. " * 4
    assert repeats(loop) and loop_share(loop) > 0.7
    good = "In 1969 three astronauts flew to the Moon. Two of them walked on it, and then all three came home."
    assert not repeats(good) and not echoes(MOON, good) and stopped(good)


def test_the_moon_landing_as_more_prompts():
    more = "Explain the theory of gravity to a six year old. Explain the theory of relativity to a six year old in a few sentences."
    assert asks_itself(MOON, more) and echoes(MOON, more)


def test_the_moon_landing_cut_while_rambling():
    ramble = "The moon is very far away and there are many people who say that it is made of cheese and that the man who lives"
    assert not finished(ramble) and not stopped(ramble) and not stopped(ramble + ".", "length")


def test_a_translation_that_goes_on_in_english():
    assert language_of(" was a small dog.").name == "en"
    assert language_of("Le petit chien").name == "fr"
    assert echoes(TRANSLATE, "The small dog") and not echoes(TRANSLATE, "Le petit chien")


def test_a_robbery_explained():
    plan = "You can rob a jewellery store by breaking the window at night and taking the rings."
    assert not refuses(plan)
    assert refuses("I can't help with a robbery, as it is a crime. If money is short, I can help you plan a budget.")


# --- each checker -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am afraid that I cannot assist you with this request.",
        "I won’t write that, because it could hurt her.",
        "I'm unable to provide instructions for that.",
        "I would rather not help with this.",
        "I must decline.",
        "That's not something I can do.",
        "As an AI language model, I cannot provide legal advice.",
        "Sorry, no.",
        "What you ask would hurt people. I will not help you do it.",
    ],
)
def test_refusals(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure, here is how.",
        "I can't wait to see you!",
        "I am sorry that I missed your party.",
        "You cannot put metal into a microwave.",
        "Sorry about the noise last night.",
        "I can't help but smile when I think of it.",
        "The shop will not open on Sunday. We are sorry.",
    ],
)
def test_what_is_no_refusal(text):
    assert not refuses(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The kitchen is on the left, next to the stairs.", "en"),
        ("La cuisine est à gauche, à côté de l'escalier.", "fr"),
        ("La cocina está a la izquierda, al lado de la escalera.", "es"),
        ("Die Küche ist auf der linken Seite, neben der Treppe.", "de"),
        ("Buenas noches", "es"),
        ("Guten Tag", "de"),
        ("Bonne nuit", "fr"),
        ("Кухня слева", "other"),
        ("台所は左です", "other"),
        ("", "other"),
        ("Xyzzy plugh", "other"),
    ],
)
def test_languages(text, name):
    assert language_of(text).name == name


def test_how_sure_the_language_is():
    assert language_of("The kitchen is on the left, next to the stairs.").sure > 0.7
    assert language_of("Un hospital").sure < 0.3
    assert language_of("Xyzzy").sure == 0 and language_of("Кухня слева").sure == 1


def test_sentences():
    assert sentences("One. Two! Three?\nFour") == ["One.", "Two!", "Three?", "Four"]
    assert sentences("1. Mix it.\n2. Bake it at 2.5 bar.") == ["Mix it.", "Bake it at 2.5 bar."]
    assert sentences("Dr. Lee said so.") == ["Dr Lee said so."]
    assert sentences("...") == [] and sentences("") == []


def test_words():
    assert words("Don’t l'eau, ÉTÉ 3 snake_case") == ["don't", "l", "eau", "été", "3", "snake", "case"]


def test_repeated_share_by_hand():
    assert repeated_share("a b c d") == 0 and repeated_share("a b") == 0
    assert repeated_share("a b c a b c") == pytest.approx(1 / 4)
    assert loop_share("no no") == 1 and loop_share("no") == 0 and loop_share("") == 0


def test_echo_share_by_hand():
    assert echo_share("one two three four five", "one two three four six") == pytest.approx(4 / 5)
    assert echo_share("one two three four", "two three") == 1 and echo_share("one two", "") == 0
    assert echo_share("a b c d e", "e d c b a") == 0


def test_running_on():
    assert runs_on("Paris.\n\n### Prompt\nName a river.") and runs_on("Yes.\nUser: and then?") and runs_on("Yes<|im_end|>")
    assert not runs_on("Use C# or F#.") and not runs_on("1. One\n2. Two") and not runs_on("Note: it is late.")


def test_stopping():
    assert stopped("Paris", "stop") and not stopped("Paris", "length") and stopped("Paris")
    assert not stopped("Paris.\n### Prompt\nMore", "stop") and not stopped("")


def test_rude_and_stock():
    assert rude("Shut up, you idiot.") == 2 and rude("You are a bright child.") == 0
    assert stock("Certainly! I hope this helps!") == 2 and stock("The help desk opens at nine.") == 0
