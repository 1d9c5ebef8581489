"""Training examples of the ``sql`` adapter: a stated table and a question about it -> one SELECT statement.

Questions name tables, columns and values as they are, so what has to be learnt is the form of the answer and where
to copy from. No table, column set or value of the held-out questions occurs here.
"""

import random
from collections.abc import Iterator

# table: (text columns, number columns)
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "employees": (("name", "department", "city"), ("salary", "age")),
    "products": (("name", "category", "brand"), ("price", "stock")),
    "customers": (("name", "country", "segment"), ("age", "points")),
    "orders": (("customer", "status", "country"), ("amount", "quantity")),
    "movies": (("title", "director", "genre"), ("year", "rating")),
    "students": (("name", "school", "subject"), ("grade", "age")),
    "cars": (("model", "maker", "color"), ("price", "mileage")),
    "hotels": (("name", "town", "chain"), ("stars", "rooms")),
    "songs": (("title", "artist", "album"), ("length", "plays")),
    "teams": (("name", "league", "coach"), ("wins", "losses")),
    "houses": (("address", "district", "owner"), ("area", "rent")),
    "recipes": (("title", "cuisine", "chef"), ("calories", "minutes")),
    "doctors": (("name", "clinic", "specialty"), ("patients", "fee")),
    "phones": (("model", "vendor", "system"), ("price", "weight")),
    "tickets": (("holder", "event", "zone"), ("price", "seat")),
    "trees": (("species", "park", "family"), ("height", "age")),
    "courses": (("title", "teacher", "faculty"), ("credits", "hours")),
    "drinks": (("name", "kind", "origin"), ("sugar", "price")),
    "games": (("title", "studio", "platform"), ("score", "sales")),
    "rivers": (("name", "country", "basin"), ("length", "depth")),
}
VALUES = (
    "Paris", "Sales", "Blue", "Gold", "Smith", "Acme", "Italy", "Open", "North", "Comedy", "Marketing", "Berlin",
    "Silver", "Garcia", "Delta", "Canada", "Closed", "Drama", "Oak", "Vienna", "Premium", "Mint", "West", "Nova",
)  # fmt: skip

FORMS = (
    ("How many {table} are there?", "SELECT COUNT(*) FROM {table};"),
    ("How many {table} have {where} {value}?", "SELECT COUNT(*) FROM {table} WHERE {where} = '{value}';"),
    ("How many {table} have {number} above {limit}?", "SELECT COUNT(*) FROM {table} WHERE {number} > {limit};"),
    ("What is the average {number} of all {table}?", "SELECT AVG({number}) FROM {table};"),
    (
        "What is the average {number} of {table} with {where} {value}?",
        "SELECT AVG({number}) FROM {table} WHERE {where} = '{value}';",
    ),
    ("What is the highest {number} of all {table}?", "SELECT MAX({number}) FROM {table};"),
    ("What is the lowest {number} of all {table}?", "SELECT MIN({number}) FROM {table};"),
    ("What is the total {number} of all {table}?", "SELECT SUM({number}) FROM {table};"),
    (
        "List the {shown} of {table} with {number} above {limit}.",
        "SELECT {shown} FROM {table} WHERE {number} > {limit};",
    ),
    (
        "List the {shown} of {table} with {number} below {limit}.",
        "SELECT {shown} FROM {table} WHERE {number} < {limit};",
    ),
    ("List the {shown} of {table} with {where} {value}.", "SELECT {shown} FROM {table} WHERE {where} = '{value}';"),
    ("Show all {table} with {where} {value}.", "SELECT * FROM {table} WHERE {where} = '{value}';"),
    ("List the {shown} of all {table}, sorted by {number}.", "SELECT {shown} FROM {table} ORDER BY {number};"),
    ("How many {table} are there for each {where}?", "SELECT {where}, COUNT(*) FROM {table} GROUP BY {where};"),
)


def examples(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (user message, answer) pairs; every form and every table equally often."""
    while True:
        for question, statement in rng.sample(FORMS, len(FORMS)):
            table, (texts, numbers) = rng.choice(list(TABLES.items()))
            columns = [*texts, *numbers]
            rng.shuffle(columns)
            slots = {
                "table": table,
                "shown": rng.choice(texts),
                "where": rng.choice(texts),
                "number": rng.choice(numbers),
                "value": rng.choice(VALUES),
                "limit": rng.randrange(2, 90) * rng.choice((1, 10, 100)),
            }
            yield f"Table {table}({', '.join(columns)}). {question.format(**slots)}", statement.format(**slots)
