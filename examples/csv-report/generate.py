#!/usr/bin/env python3
"""Writes workspace/orders.csv: a year of a small tea and coffee shop, always the same, with the faults of real exports."""

import csv
import datetime
import math
import pathlib
import random

random = random.Random(2025)
PRODUCTS = {"Assam 100 g": 7.90, "Sencha 100 g": 11.50, "Earl Grey 100 g": 6.90, "Huehuetenango 250 g": 12.40,
            "Espresso 250 g": 9.80, "Cup": 8.00, "Teapot": 34.00, "Gift card": 25.00}
REGIONS = ["north", "south", "east", "west"]

rows = []
number = 10_001
for day in range(365):
    date = datetime.date(2025, 1, 1) + datetime.timedelta(days=day)
    # Tea sells in winter, and everything does in December.
    season = 1 + 0.45 * math.cos(2 * math.pi * day / 365) + (1.1 if date.month == 12 and date.day < 24 else 0)
    for _ in range(int(random.gauss(3.4 * season, 1.3) + 0.5)):
        product = random.choices(list(PRODUCTS), weights=[9, 7, 8, 6, 8, 3, 1, 2 if date.month != 12 else 9])[0]
        rows.append([number, date.isoformat(), random.choices(REGIONS, weights=[5, 3, 2, 4])[0], product,
                     random.choices([1, 2, 3, 5], weights=[10, 4, 2, 1])[0], f"{PRODUCTS[product]:.2f}"])
        number += 1

for index in (120, 333, 700):
    rows[index][5] = rows[index][5].replace(".", ",")  # A decimal comma is read all the same.
for index in (95, 640):
    rows[index][4] = ""
rows[210][1] = "2025-02-30"
rows[501][5] = "n/a"
rows[777][4] = -1  # A return, which counts.
rows.insert(400, rows[399])  # Exported twice.

path = pathlib.Path(__file__).parent / "workspace" / "orders.csv"
with path.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["order", "date", "region", "product", "quantity", "unit price"])
    writer.writerows(rows)
print(f"{path}: {len(rows)} orders, {path.stat().st_size} bytes")
