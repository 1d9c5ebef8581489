"""Training examples of the ``french`` adapter: a short English sentence -> the same sentence in French.

Words are shared with the held-out sentences, combinations are not: ``train.py`` leaves out every pair that is held out.
"""

import random
from collections.abc import Iterator

# English: (French, is feminine)
NOUNS = {
    "cat": ("chat", False), "dog": ("chien", False), "book": ("livre", False), "car": ("voiture", True),
    "key": ("clé", True), "chair": ("chaise", True), "boy": ("garçon", False), "girl": ("fille", True),
    "flower": ("fleur", True), "hat": ("chapeau", False), "bag": ("sac", False), "horse": ("cheval", False),
    "table": ("table", True), "shirt": ("chemise", True), "train": ("train", False), "fish": ("poisson", False),
}  # fmt: skip
PLACES = {
    "garden": "le jardin", "kitchen": "la cuisine", "house": "la maison", "street": "la rue", "forest": "la forêt",
    "city": "la ville", "park": "le parc", "room": "la chambre", "shop": "le magasin", "box": "la boîte",
}  # fmt: skip
# English: (masculine, feminine); all of them stand after the noun or after the verb
COLOURS = {
    "red": ("rouge", "rouge"), "black": ("noir", "noire"), "white": ("blanc", "blanche"), "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"), "yellow": ("jaune", "jaune"),
}  # fmt: skip
ADJECTIVES = COLOURS | {
    "big": ("grand", "grande"), "small": ("petit", "petite"), "new": ("nouveau", "nouvelle"),
    "happy": ("content", "contente"), "tired": ("fatigué", "fatiguée"), "old": ("vieux", "vieille"),
}  # fmt: skip
FOODS = {
    "bread": "du pain", "cheese": "du fromage", "soup": "de la soupe", "rice": "du riz", "meat": "de la viande",
    "cake": "du gâteau",
}  # fmt: skip
PEOPLE = {
    "I am eating": "Je mange", "She is eating": "Elle mange", "He is eating": "Il mange",
    "We are eating": "Nous mangeons", "They are eating": "Ils mangent", "My mother is eating": "Ma mère mange",
    "My father is eating": "Mon père mange",
}  # fmt: skip

FORMS = (
    ("The {noun} is {adjective}.", "{The} {noun_fr} est {adjective_fr}."),
    ("The {noun} is in the {place}.", "{The} {noun_fr} est dans {place_fr}."),
    ("Where is the {noun}?", "Où est {the} {noun_fr} ?"),
    ("There is a {noun} in the {place}.", "Il y a {a} {noun_fr} dans {place_fr}."),
    ("I see a {colour} {noun}.", "Je vois {a} {noun_fr} {colour_fr}."),
    ("I like the {colour} {noun}.", "J'aime {the} {noun_fr} {colour_fr}."),
    ("My {noun} is very {adjective}.", "{My} {noun_fr} est très {adjective_fr}."),
    ("The {colour} {noun} is in the {place}.", "{The} {noun_fr} {colour_fr} est dans {place_fr}."),
    ("We have a {noun} and a {noun2}.", "Nous avons {a} {noun_fr} et {a2} {noun2_fr}."),
    ("{eater} {food} in the {place}.", "{eater_fr} {food_fr} dans {place_fr}."),
)


def examples(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (user message, answer) pairs."""
    while True:
        for english, french in rng.sample(FORMS, len(FORMS)):
            slots = _slots(rng)
            yield english.format(**slots), french.format(**slots)


def _slots(rng: random.Random) -> dict[str, str]:
    (noun, (noun_fr, is_feminine)), (noun2, (noun2_fr, is_feminine2)) = rng.sample(list(NOUNS.items()), 2)
    adjective, forms = rng.choice(list(ADJECTIVES.items()))
    colour, colour_forms = rng.choice(list(COLOURS.items()))
    place, place_fr = rng.choice(list(PLACES.items()))
    eater, eater_fr = rng.choice(list(PEOPLE.items()))
    food, food_fr = rng.choice(list(FOODS.items()))
    article = "la" if is_feminine else "le"
    return {
        "noun": noun, "noun2": noun2, "noun2_fr": noun2_fr,
        "noun_fr": noun_fr, "the": article, "The": article.capitalize(),
        "a": "une" if is_feminine else "un", "a2": "une" if is_feminine2 else "un",
        "My": "Ma" if is_feminine else "Mon",
        "adjective": adjective, "adjective_fr": forms[is_feminine],
        "colour": colour, "colour_fr": colour_forms[is_feminine],
        "place": place, "place_fr": place_fr,
        "eater": eater, "eater_fr": eater_fr, "food": food, "food_fr": food_fr,
    }  # fmt: skip
