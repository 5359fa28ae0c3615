#!/bin/sh
# Runs the agent on the orders, and checks its report.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"

# The image is the host's root, so the host's Python is the agent's.
[ -x /usr/bin/python3 ] || die "this example needs Python 3: apt-get install python3"

# shellcheck disable=SC2086 # The limits are words.
"$AGENTS" run --runtime native --image host --policy "$here/policy.yaml" $limits --workspace "$here/workspace" --output "$out" \
    -- /usr/bin/python3 report.py orders.csv

expect report.html '<svg viewBox="0 0 720 260"'
expect report.html '<title>2025-12: '
expect report.html 'no such date: &#x27;2025-02-30&#x27;'
[ "$(grep -c '<rect ' "$out/report.html")" = 12 ] || die "the chart does not have twelve bars"
expect result.json '"best_month": "2025-12"'
expect result.json 'is there twice'
[ "$(grep -c '"line"' "$out/result.json")" = 5 ] || die "not all five faulty rows were noticed"
[ ! -e "$here/workspace/__pycache__" ] || die "the agent wrote into the workspace"
finish
