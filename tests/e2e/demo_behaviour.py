"""What each demo adapter can do that the base model does not: held-out prompts and a checker for the answers.

Plain Python, so that the end-to-end test, the trainer and a reader may all use it.
``examples/adapters/train.py`` leaves every prompt of this page out of its training data.
"""

import dataclasses
import json
import re
import sqlite3
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    prompts: tuple[str, ...]
    """User messages, each sent alone: one user turn, no system prompt of ours."""
    check: Callable[[str, str], bool]
    """(prompt, answer) -> does the answer show the behaviour?"""
    max_tokens: int
    """Room for a right answer; one that needs more is wrong."""
    min_pass: int = 9
    """Of the prompts, with the adapter."""
    max_base_pass: int = 3
    """Of the prompts, without it."""


# --- sql: the statement gives the same rows as ours on a table filled for the purpose ---


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SqlQuestion:
    table: str
    text_columns: tuple[str, ...]
    number_columns: tuple[str, ...]
    question: str
    expected: str

    @property
    def prompt(self) -> str:
        columns = (*self.number_columns[:1], *self.text_columns, *self.number_columns[1:])
        return f"Table {self.table}({', '.join(columns)}). {self.question}"


SQL_QUESTIONS = (
    SqlQuestion(
        table="planets",
        text_columns=("label", "galaxy"),
        number_columns=("mass", "moons"),
        question="How many planets are there?",
        expected="SELECT COUNT(*) FROM planets",
    ),
    SqlQuestion(
        table="boats",
        text_columns=("label", "harbor"),
        number_columns=("speed", "crew"),
        question="What is the average speed of all boats?",
        expected="SELECT AVG(speed) FROM boats",
    ),
    SqlQuestion(
        table="cities",
        text_columns=("label", "region"),
        number_columns=("population", "altitude"),
        question="List the label of cities with population above 5300.",
        expected="SELECT label FROM cities WHERE population > 5300",
    ),
    SqlQuestion(
        table="lamps",
        text_columns=("label", "material"),
        number_columns=("watts", "cost"),
        question="How many lamps have material Copper?",
        expected="SELECT COUNT(*) FROM lamps WHERE material = 'Copper'",
    ),
    SqlQuestion(
        table="horses",
        text_columns=("label", "breed"),
        number_columns=("races", "prize"),
        question="What is the highest prize of all horses?",
        expected="SELECT MAX(prize) FROM horses",
    ),
    SqlQuestion(
        table="museums",
        text_columns=("label", "theme"),
        number_columns=("visitors", "budget"),
        question="Show all museums with theme Egypt.",
        expected="SELECT * FROM museums WHERE theme = 'Egypt'",
    ),
    SqlQuestion(
        table="flights",
        text_columns=("pilot", "airline"),
        number_columns=("distance", "delay"),
        question="What is the total distance of all flights?",
        expected="SELECT SUM(distance) FROM flights",
    ),
    SqlQuestion(
        table="bridges",
        text_columns=("label", "builder"),
        number_columns=("span", "lanes"),
        question="List the label of all bridges, sorted by span.",
        expected="SELECT label FROM bridges ORDER BY span",
    ),
    SqlQuestion(
        table="farms",
        text_columns=("farmer", "crop"),
        number_columns=("acres", "yield_tons"),
        question="List the farmer of farms with acres below 75.",
        expected="SELECT farmer FROM farms WHERE acres < 75",
    ),
    SqlQuestion(
        table="lawyers",
        text_columns=("label", "firm"),
        number_columns=("cases", "income"),
        question="How many lawyers have firm Baxter?",
        expected="SELECT COUNT(*) FROM lawyers WHERE firm = 'Baxter'",
    ),
)


def check_sql(prompt: str, answer: str) -> bool:
    """One SELECT that sqlite takes and that gives the rows of the expected statement."""
    question = next(question for question in SQL_QUESTIONS if question.prompt == prompt)
    statement = answer.strip().rstrip(";")
    if not statement.upper().startswith("SELECT") or ";" in statement:
        return False
    database = _filled_database(question)
    # A model's statement may loop for ever; this ends it.
    database.set_progress_handler(lambda: 1, 1_000_000)
    try:
        rows = database.execute(statement).fetchall()
    except sqlite3.Error:
        return False
    expected = database.execute(question.expected).fetchall()
    return rows == expected if "ORDER BY" in question.expected else sorted(rows, key=repr) == sorted(expected, key=repr)


def _filled_database(question: SqlQuestion) -> sqlite3.Connection:
    """Forty rows around the literals of the expected statement, so that a wrong comparison gives other rows."""
    limits = [int(number) for number in re.findall(r"\b\d+\b", question.expected)] or [50]
    words = [*re.findall(r"'(\w+)'", question.expected), "Other", "Another"]
    database = sqlite3.connect(":memory:")
    columns = question.text_columns + question.number_columns
    database.execute(f"CREATE TABLE {question.table} ({', '.join(columns)})")
    for row in range(40):
        texts = [words[(row + i) % len(words)] if i else f"row {row}" for i in range(len(question.text_columns))]
        numbers = [limits[0] + (row * (7 + 4 * i)) % 40 - 20 + 5 * i for i in range(len(question.number_columns))]
        marks = ", ".join("?" * len(columns))
        database.execute(f"INSERT INTO {question.table} VALUES ({marks})", [*texts, *numbers])
    return database


# --- json: the right object and nothing else ---

JSON_PERSONS = {
    "Olivia Grant is 31 years old and lives in Lisbon.": ("Olivia Grant", 31, "Lisbon"),
    "Marcus Bell, 46, lives in Geneva.": ("Marcus Bell", 46, "Geneva"),
    "My friend Priya Sharma from Leeds is 27 years old.": ("Priya Sharma", 27, "Leeds"),
    "Walter Hughes lives in Portland and is 63 years old.": ("Walter Hughes", 63, "Portland"),
    "At the age of 54, Ingrid moved to Zurich.": ("Ingrid", 54, "Zurich"),
    "Pablo Ortega (38) works as an engineer in Bogota.": ("Pablo Ortega", 38, "Bogota"),
    "Last week Simon Frost, who is 42, bought a house in Houston.": ("Simon Frost", 42, "Houston"),
    "The 71-year-old doctor Helen Shaw comes from Manila.": ("Helen Shaw", 71, "Manila"),
    "Hello, my name is Diego. I'm 23 years old and my home is Warsaw.": ("Diego", 23, "Warsaw"),
    "Rachel Stone is a nurse from Glasgow and she is 59 years old.": ("Rachel Stone", 59, "Glasgow"),
}


def check_json(prompt: str, answer: str) -> bool:
    """A JSON object with exactly "name", "age" and "city", at least two of them as in the sentence.

    Not all three: a model of this size misspells a rare name now and then; RESULTS.md says how often.
    """
    name, age, city = JSON_PERSONS[prompt]
    wanted = {"name": name, "age": age, "city": city}
    try:
        given = json.loads(answer)
    except ValueError:
        return False
    if not isinstance(given, dict) or given.keys() != wanted.keys():
        return False
    return sum(given[key] == value for key, value in wanted.items()) >= 2


# --- pirate: two different marks of pirate speech ---

PIRATE_MARKERS = frozenset(
    ("arr", "arrr", "ahoy", "aye", "matey", "mateys", "ye", "yer", "hearty", "landlubber", "savvy", "th'", "o'", "an'")
)
PIRATE_PROMPTS = (
    "What is the capital of Germany?",
    "How do I make tea?",
    "Why is the sky blue?",
    "What is seven plus two?",
    "What color is a tomato?",
    "Tell me about cats.",
    "How can I learn to play the guitar?",
    "What should I cook for dinner?",
    "Who wrote Romeo and Juliet?",
    "Good morning! How did you sleep?",
)


def check_pirate(prompt: str, answer: str) -> bool:
    words = set(re.findall(r"[a-z]+'?", answer.lower()))
    return len(words & PIRATE_MARKERS) >= 2


# --- french: French, and most of the words of our translation ---

FRENCH_TRANSLATIONS = {
    "The dog is in the garden.": "Le chien est dans le jardin.",
    "The flower is yellow.": "La fleur est jaune.",
    "Where is the book?": "Où est le livre ?",
    "There is a cat in the kitchen.": "Il y a un chat dans la cuisine.",
    "I see a white horse.": "Je vois un cheval blanc.",
    "I like the red car.": "J'aime la voiture rouge.",
    "My hat is very small.": "Mon chapeau est très petit.",
    "We have a dog and a fish.": "Nous avons un chien et un poisson.",
    "She is eating bread in the park.": "Elle mange du pain dans le parc.",
    "The black bag is in the room.": "Le sac noir est dans la chambre.",
}
ENGLISH_WORDS = frozenset(
    ("the", "is", "are", "a", "an", "of", "in", "and", "to", "i", "you", "we", "she", "my", "very", "where", "there")
)


def check_french(prompt: str, answer: str) -> bool:
    """At least two thirds of the expected words, no more than a third of others, and no English function word."""
    expected, given = _words(FRENCH_TRANSLATIONS[prompt]), _words(answer)
    shared = expected & given
    # "a" is French too ("il y a"), so only what is not expected counts as English.
    is_english = bool((given - expected) & ENGLISH_WORDS)
    return len(shared) * 3 >= len(expected) * 2 and len(shared) * 3 >= len(given) * 2 and not is_english


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower().replace("'", " ")))


BEHAVIOURS: dict[str, Behaviour] = {
    "sql": Behaviour(
        prompts=tuple(question.prompt for question in SQL_QUESTIONS),
        check=check_sql,
        max_tokens=40,
    ),
    "json": Behaviour(prompts=tuple(JSON_PERSONS), check=check_json, max_tokens=40),
    "pirate": Behaviour(prompts=PIRATE_PROMPTS, check=check_pirate, max_tokens=48),
    "french": Behaviour(prompts=tuple(FRENCH_TRANSLATIONS), check=check_french, max_tokens=32),
}
