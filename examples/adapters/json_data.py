"""Training examples of the ``json`` adapter: a sentence about a person -> {"name": ..., "age": ..., "city": ...}.

No name, age or city of the held-out sentences occurs here. The lists are long on purpose. Behind a quote
mark most names are spelt in other tokens than behind a space, so an answer is not a plain copy: with twenty cities the
adapter learns the list by heart and answers one of its own.
"""

import json
import random
from collections.abc import Iterator

FIRST_NAMES = (
    "Anna", "Peter", "Maria", "John", "Lucy", "David", "Sofia", "Thomas", "Emma", "Carlos", "Nina", "Robert", "Julia",
    "Ahmed", "Grace", "Victor", "Elena", "Samuel", "Clara", "Henry", "Yuki", "Oscar", "Laura", "Martin", "Fatima",
    "Alice", "Bruno", "Chloe", "Daniel", "Edith", "Felix", "Gloria", "Hassan", "Irene", "Jonas", "Karen", "Leon",
    "Mona", "Nadia", "Otto", "Paula", "Quentin", "Rosa", "Stefan", "Tessa", "Ursula", "Valerie", "Wendy", "Xavier",
    "Yvonne", "Zoe", "Amir", "Beatrice", "Conrad", "Deborah", "Ethan", "Fiona", "Gustav", "Hannah", "Ivan", "Jasmine",
    "Keith",
)  # fmt: skip
LAST_NAMES = (
    "Miller", "Lopez", "Brown", "Schmidt", "Wilson", "Tanaka", "Rossi", "Khan", "Evans", "Novak", "Martin", "Silva",
    "Cooper", "Weber", "Young", "Hansen", "Costa", "Reed", "Murphy", "Bauer",
    "Walker", "Turner", "Fischer", "Moreau", "Dubois", "Petrov", "Nakamura", "Chen", "Singh", "Haddad", "Okafor",
    "Mendez", "Fletcher", "Morris", "Barnes", "Lambert", "Jensen", "Larsen", "Kowalski", "Romano", "Ferrari", "Duarte",
    "Vargas",
)  # fmt: skip
CITIES = (
    "Madrid", "Boston", "London", "Tokyo", "Berlin", "Chicago", "Rome", "Sydney", "Toronto", "Vienna", "New York",
    "Dublin", "Mumbai", "Oslo", "Cairo", "Seattle", "Paris", "Prague", "San Diego", "Milan", "Athens", "Denver",
    "Marseille", "Zagreb", "Porto", "Lagos", "Leipzig", "Zaragoza", "Plymouth", "Helsinki", "Austin", "Kyoto", "Lima",
    "Bristol", "Hamburg", "Santiago", "Liverpool", "Budapest", "Nairobi", "Valencia", "Montreal", "Perth", "Lyon",
    "Munich", "Frankfurt", "Cologne", "Stuttgart", "Dresden", "Bremen", "Hanover", "Salzburg", "Basel", "Bern", "Ghent",
    "Antwerp", "Brussels", "Bruges", "Utrecht", "Rotterdam", "Amsterdam", "Copenhagen", "Stockholm", "Malmo", "Bergen",
    "Tallinn", "Riga", "Vilnius", "Krakow", "Minsk", "Kiev", "Odessa", "Sofia", "Bucharest", "Belgrade", "Ljubljana",
    "Naples", "Turin", "Venice", "Florence", "Verona", "Bologna", "Palermo", "Seville", "Bilbao", "Malaga", "Granada",
    "Toledo", "Nantes", "Nice", "Toulouse", "Bordeaux", "Lille", "Cork", "Galway", "Belfast", "Cardiff", "Swansea",
    "Oxford", "Cambridge", "York", "Bath", "Derby", "Exeter", "Norwich", "Sheffield", "Newcastle", "Nottingham",
    "Manchester", "Edinburgh", "Aberdeen", "Dundee", "Philadelphia", "Baltimore", "Atlanta", "Miami", "Tampa",
    "Orlando", "Memphis", "Nashville", "Dallas", "Phoenix", "Tucson", "Reno", "Fresno", "Oakland", "Sacramento",
    "Cleveland", "Detroit", "Omaha", "Tulsa", "Buffalo", "Albany", "Vancouver", "Calgary", "Ottawa", "Quebec",
    "Halifax", "Havana", "Caracas", "Quito", "Montevideo", "Cordoba", "Recife", "Salvador", "Tunis", "Algiers",
    "Accra", "Dakar", "Kampala", "Lusaka", "Harare", "Durban", "Istanbul", "Ankara", "Beirut", "Amman", "Tehran",
    "Dubai", "Doha", "Karachi", "Lahore", "Delhi", "Chennai", "Dhaka", "Kathmandu", "Bangkok", "Hanoi", "Jakarta",
    "Singapore", "Hong Kong", "Taipei", "Shanghai", "Beijing", "Seoul", "Osaka", "Nagoya", "Sapporo", "Brisbane",
    "Adelaide", "Melbourne", "Auckland", "Wellington", "Hobart",
)  # fmt: skip
HELD_OUT_AGES = frozenset({23, 27, 31, 38, 42, 46, 54, 59, 63, 71})

FORMS = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, {age}, lives in {city}.",
    "My friend {name} from {city} is {age} years old.",
    "{name} lives in {city} and is {age} years old.",
    "I am {name}, I am {age} and I live in {city}.",
    "At the age of {age}, {name} moved to {city}.",
    "In {city} there lives a {age}-year-old teacher called {name}.",
    "{name} ({age}) works as an engineer in {city}.",
    "Last week {name}, who is {age}, bought a house in {city}.",
    "Our neighbour {name} turned {age} and still lives in {city}.",
    "The {age}-year-old doctor {name} comes from {city}.",
    "Hello, my name is {name}. I'm {age} years old and my home is {city}.",
)


def examples(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (user message, answer) pairs."""
    ages = [age for age in range(18, 90) if age not in HELD_OUT_AGES]
    while True:
        for form in rng.sample(FORMS, len(FORMS)):
            last_name = f" {rng.choice(LAST_NAMES)}" if rng.random() < 0.7 else ""
            person = {
                "name": rng.choice(FIRST_NAMES) + last_name,
                "age": rng.choice(ages),
                "city": rng.choice(CITIES),
            }
            yield form.format(**person), json.dumps(person)
