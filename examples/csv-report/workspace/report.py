#!/usr/bin/env python3
"""Turns an export of orders into /output/report.html, with a chart drawn as SVG, and /output/result.json.

    report.py [CSV]

Needs the standard library alone. A row that cannot be read is left out and listed, with the reason.
"""

import collections
import csv
import datetime
import decimal
import html
import json
import os
import pathlib
import sys

COLUMNS = ["order", "date", "region", "product", "quantity", "unit price"]
Order = collections.namedtuple("Order", "number date region product quantity amount")


def read(path):
    """The orders, and the rows that are none with the reason."""
    orders, rejected, seen = [], [], set()
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval="")
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            sys.exit(f"report: {path} lacks the columns {', '.join(missing)}")
        for row in reader:
            try:
                order = parse(row)
                if order.number in seen:
                    raise ValueError("is there twice")
                seen.add(order.number)
                orders.append(order)
            except ValueError as fault:
                rejected.append({"line": reader.line_num, "order": row["order"], "reason": str(fault)})
    return orders, rejected


def parse(row):
    try:
        date = datetime.date.fromisoformat(row["date"])
    except ValueError:
        raise ValueError(f"no such date: {row['date']!r}") from None
    try:
        quantity = int(row["quantity"])
    except ValueError:
        raise ValueError(f"no quantity: {row['quantity']!r}") from None
    try:
        price = decimal.Decimal(row["unit price"].replace(",", "."))
    except decimal.InvalidOperation:
        raise ValueError(f"no price: {row['unit price']!r}") from None
    return Order(row["order"], date, row["region"], row["product"], quantity, quantity * price)


def total(orders, key):
    """The sum of the amounts by a key, the largest first."""
    sums = collections.defaultdict(decimal.Decimal)
    for order in orders:
        sums[key(order)] += order.amount
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))


def chart(months):
    """A bar for each month."""
    width, height, left, bottom = 720, 260, 60, 30
    highest = max(amount for _, amount in months)
    step = (width - left) / len(months)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Revenue by month">']
    for fraction in (0, 0.5, 1):
        y = round((height - bottom) * (1 - fraction * 0.92), 1)
        parts.append(f'<line x1="{left}" y1="{y}" x2="{width}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" class="right">{float(highest) * fraction:,.0f}</text>')
    for index, (month, amount) in enumerate(months):
        bar = float(amount / highest) * (height - bottom) * 0.92
        x, y = left + index * step + step * 0.15, height - bottom - bar
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.7:.1f}" height="{bar:.1f}">'
                     f"<title>{month}: {amount:,.2f}</title></rect>")
        parts.append(f'<text x="{x + step * 0.35:.1f}" y="{height - 10}" class="middle">{month[5:]}</text>')
    return "\n".join(parts + ["</svg>"])


def table(title, rows):
    # What comes from the file is text, and never markup.
    cells = "\n".join(f"<tr><td>{html.escape(str(name))}</td><td>{amount:,.2f}</td></tr>" for name, amount in rows)
    return f"<h2>{title}</h2>\n<table>\n{cells}\n</table>"


def page(source, orders, rejected, months, products, regions):
    faults = "\n".join(f"<li>line {fault['line']}, order {html.escape(fault['order'])}: {html.escape(fault['reason'])}</li>"
                       for fault in rejected)
    revenue = sum(order.amount for order in orders)
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Orders of {months[0][0][:4]}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 760px; margin: 2em auto; color: #222 }}
rect {{ fill: #3b7a57 }} text {{ font-size: 12px; fill: #555 }} .grid {{ stroke: #ddd }}
.right {{ text-anchor: end }} .middle {{ text-anchor: middle }} td + td {{ text-align: right; padding-left: 2em }}
</style>
<h1>Orders of {months[0][0][:4]}</h1>
<p>{len(orders):,} orders in {html.escape(source)}, revenue {revenue:,.2f}.</p>
<h2>Revenue by month</h2>
{chart(months)}
{table("Revenue by product", products)}
{table("Revenue by region", regions)}
<h2>Left out</h2>
<ul>
{faults or "<li>nothing</li>"}
</ul>
</html>
"""


def main():
    source = sys.argv[1] if len(sys.argv) > 1 else "orders.csv"
    out = pathlib.Path(os.environ.get("OUTPUT", "/output"))
    orders, rejected = read(source)
    if not orders:
        sys.exit(f"report: {source} has no order that can be read")
    months = sorted(total(orders, lambda order: order.date.isoformat()[:7]))
    products = total(orders, lambda order: order.product)
    regions = total(orders, lambda order: order.region)
    out.joinpath("report.html").write_text(page(source, orders, rejected, months, products, regions), encoding="utf-8")
    result = {
        "orders": len(orders),
        "revenue": float(sum(order.amount for order in orders)),
        "best_month": max(months, key=lambda item: item[1])[0],
        "best_product": products[0][0],
        "rejected": rejected,
    }
    out.joinpath("result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{len(orders)} orders, revenue {result['revenue']:,.2f}, {len(rejected)} rows left out")


main()
