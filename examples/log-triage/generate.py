#!/usr/bin/env python3
"""Writes workspace/access.log: one day of a small shop's nginx, always the same.

The addresses are those that RFC 5737 and RFC 3849 reserve for documentation. Three things happen on this day:
a scanner comes by at 03:12, the upstream is down from 14:05 to 14:11, and somebody guesses passwords from 20:40 on.
"""

import datetime
import math
import pathlib
import random

DAY = datetime.datetime(2026, 3, 14, tzinfo=datetime.timezone.utc)
random = random.Random(20260314)

PAGES = ["/", "/", "/", "/shop", "/shop", "/shop/tea", "/shop/tea/assam", "/shop/tea/sencha", "/shop/coffee",
         "/shop/coffee/huehuetenango", "/shop/cups", "/cart", "/checkout", "/about", "/contact", "/blog",
         "/blog/how-to-brew", "/blog/spring-harvest", "/search?q=oolong", "/search?q=gift+card"]
ASSETS = ["/static/app.css", "/static/app.js", "/static/logo.svg", "/favicon.ico", "/img/assam.jpg", "/img/sencha.jpg"]
BROWSERS = ["Mozilla/5.0 (X11; Linux x86_64) Firefox/136.0", "Mozilla/5.0 (Windows NT 10.0) Chrome/134.0",
            "Mozilla/5.0 (iPhone; iOS 18_3) Safari/605.1", "Mozilla/5.0 (Android 15) Chrome/134.0"]
SCANS = ["/.env", "/.git/config", "/.git/HEAD", "/wp-login.php", "/wp-admin/setup-config.php", "/xmlrpc.php",
         "/phpmyadmin/index.php", "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php", "/.aws/credentials",
         "/cgi-bin/.%2e/.%2e/.%2e/bin/sh", "/../../../../etc/passwd", "/download?file=../../../etc/passwd",
         "/backup.zip", "/db.sql", "/server-status", "/actuator/env", "/solr/admin/info", "/console/",
         "/search?q=1%27+UNION+SELECT+password+FROM+users--", "/search?q=%3Cscript%3Ealert(1)%3C/script%3E"]

entries = []


def add(seconds, address, method, path, status, size, agent, referrer="-", user="-"):
    time = DAY + datetime.timedelta(seconds=seconds)
    stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000")
    line = f'{address} - {user} [{stamp}] "{method} {path} HTTP/1.1" {status} {size} "{referrer}" "{agent}"'
    add_raw(seconds, line)


def add_raw(seconds, line):
    entries.append((seconds, len(entries), line))


def is_down(seconds):
    return 14 * 3600 + 5 * 60 <= seconds < 14 * 3600 + 11 * 60 + 20


def visit():
    # Few at night, most in the evening.
    while True:
        start = random.uniform(0, 86000)
        if random.random() < 0.25 + 0.75 * math.sin(math.pi * start / 86400) ** 2:
            break
    network = random.choice(["192.0.2.", "198.51.100.", "2001:db8:4f::"])
    address = network + str(random.randint(2, 250))
    agent = random.choice(BROWSERS)
    seconds, referrer = start, "-"
    for _ in range(random.randint(1, 6)):
        page = random.choice(PAGES)
        if is_down(seconds) and page not in ("/", "/about"):
            add(seconds, address, "GET", page, random.choice([502, 502, 504]), 157, agent, referrer)
        else:
            status = 404 if random.random() < 0.01 else 200
            add(seconds, address, "GET", page, status, random.randint(2000, 24000), agent, referrer)
            for asset in random.sample(ASSETS, random.randint(0, 2)):
                add(seconds + 1, address, "GET", asset, random.choice([200, 200, 304]), random.randint(200, 60000), agent)
        if page == "/checkout" and not is_down(seconds):
            add(seconds + 4, address, "POST", "/checkout", 302, 0, agent)
        referrer = "https://shop.example" + page
        seconds += random.randint(4, 90)
        if seconds > 86390:
            return


for _ in range(205):
    visit()

# The health check of the load balancer, which notices that the upstream is down.
for minute in range(0, 1440, 5):
    status = 503 if is_down(minute * 60 + 7) else 200
    add(minute * 60 + 7, "192.0.2.1", "GET", "/healthz", status, 2, "lb-check/1.4")

# Impatient customers, who try again and again.
for _ in range(140):
    seconds = random.uniform(14 * 3600 + 5 * 60, 14 * 3600 + 11 * 60 + 19)
    address = "192.0.2." + str(random.randint(2, 250))
    add(seconds, address, "GET", random.choice(["/cart", "/checkout", "/shop"]), random.choice([502, 502, 502, 504]), 157,
        random.choice(BROWSERS))

seconds = 3 * 3600 + 12 * 60
for path in SCANS + random.sample(SCANS, 12):
    add(seconds, "203.0.113.66", "GET", path, random.choice([404, 404, 403, 400]), 153, "Mozilla/5.0 zgrab/0.x")
    seconds += random.uniform(0.2, 1.6)

seconds = 20 * 3600 + 40 * 60
for _ in range(120):
    add(seconds, "203.0.113.9", "POST", "/login", 401, 89, "python-requests/2.32")
    seconds += random.uniform(2, 14)
add(seconds, "203.0.113.9", "POST", "/login", 302, 0, "python-requests/2.32", user="mallory")

for hour in (2, 9, 17):
    add(hour * 3600 + 11, "203.0.113.200", "GET", "/robots.txt", 200, 68, "ExampleBot/2.1 (+https://bot.example)")
    for index in range(12):
        add(hour * 3600 + 12 + index * 20, "203.0.113.200", "GET", random.choice(PAGES), 200, random.randint(2000, 24000),
            "ExampleBot/2.1 (+https://bot.example)")

# What real logs have, too: a handshake on the wrong port, and a line that was cut off.
add_raw(48051, '198.51.100.77 - - [14/Mar/2026:13:20:51 +0000] "\\x16\\x03\\x01\\x02\\x00\\x01" 400 157 "-" "-"')
entries.sort()
lines = [line for _, _, line in entries]
lines[700] = lines[700][:57]
path = pathlib.Path(__file__).parent / "workspace" / "access.log"
path.write_text("\n".join(lines) + "\n")
print(f"{path}: {len(lines)} lines, {path.stat().st_size} bytes")
