#!/bin/sh
# Runs the agent on the log, and checks what it found.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"

# shellcheck disable=SC2086 # The limits are words.
"$AGENTS" run --runtime native --image host --policy "$here/policy.yaml" $limits --workspace "$here/workspace" --output "$out" \
    -- sh triage.sh access.log

expect report.md "Verdict: **act**"
expect report.md "14:05 to 14:11"
expect report.md "203.0.113.66: scan"
expect report.md "203.0.113.9: password guessed, 121 requests, 120 refused"
expect report.md "path traversal"
expect result.json '"verdict": "act"'
expect result.json '"malformed": 1,'
[ ! -e "$here/workspace/report.md" ] || die "the agent wrote into the workspace"
finish
