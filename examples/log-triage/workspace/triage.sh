#!/bin/sh
# Triages an nginx access log: error bursts, who causes trouble, and paths that nobody should ask for.
#
#     triage.sh [LOG]     writes /output/report.md for people and /output/result.json for programs
set -eu

log=${1:-access.log}
out=/output
[ -r "$log" ] || { echo "triage: cannot read $log" >&2; exit 66; }
mkdir -p "$out"
work=$(mktemp -d)
export LC_ALL=C

# 1. One line for each request: minute, address, status, bytes, method, path. Whatever is no log line is counted.
awk -F'"' -v bad="$work/malformed" '
    {
        split($1, left, " "); split($3, right, " ")
        ok = NF >= 6 && left[4] ~ /^\[[0-9]+\/[A-Z][a-z][a-z]\/[0-9]+:[0-9][0-9]:[0-9][0-9]/ && right[1] ~ /^[1-5][0-9][0-9]$/
        if (!ok) { malformed++; next }
        split(left[4], stamp, ":")
        count = split($2, request, " ")
        method = count >= 2 ? request[1] : "-"
        path = count >= 2 ? request[2] : $2
        print stamp[2] ":" stamp[3] "\t" left[1] "\t" right[1] "\t" right[2] "\t" method "\t" path
    }
    END { print malformed + 0 > bad }
' "$log" > "$work/requests"
requests=$(awk 'END { print NR }' "$work/requests")
malformed=$(cat "$work/malformed")
[ "$requests" -gt 0 ] || { echo "triage: $log has no requests" >&2; exit 65; }
echo "requests: $requests, malformed lines: $malformed"

# 2. Status classes.
awk -F'\t' '{ class[substr($3, 1, 1)]++ }
    END { for (i = 1; i <= 5; i++) print i "xx\t" class[i] + 0 }' "$work/requests" > "$work/statuses"

# 3. Bursts: minutes with at least five server errors; neighbours, up to two minutes apart, are one burst.
awk -F'\t' '$3 >= 500 { errors[$1]++ } END { for (m in errors) if (errors[m] >= 5) print m "\t" errors[m] }' "$work/requests" |
    sort |
    awk -F'\t' '
        function minutes(text) { return substr(text, 1, 2) * 60 + substr(text, 4, 2) }
        function flush() { if (total) print from "\t" to "\t" total "\t" worst "\t" peak }
        {
            if (total && minutes($1) - minutes(to) > 2) { flush(); total = 0 }
            if (!total) { from = $1; peak = 0 }
            to = $1; total += $2
            if ($2 > peak) { peak = $2; worst = $1 }
        }
        END { flush() }' > "$work/bursts"
echo "bursts of server errors: $(awk 'END { print NR }' "$work/bursts")"

# 4. Paths that only somebody who looks for holes asks for, each with a kind and its first example.
awk -F'\t' '
    function kind(path) {
        path = tolower(path)
        if (path ~ /\.\.\/|%2e\/|\/etc\/passwd|\/bin\/sh/) return "path traversal"
        if (path ~ /union[+ ]select|%27|<script|%3cscript/) return "injection"
        if (path ~ /\/\.env|\/\.git|\/\.aws|\.sql$|backup\.zip/) return "secrets and backups"
        if (path ~ /wp-|xmlrpc|phpmyadmin|phpunit|\/solr|\/actuator|\/console|server-status/) return "known software"
        if (path ~ /\\x/) return "not HTTP"
        return ""
    }
    (k = kind($6)) != "" { count[k]++; if (!(k in first)) first[k] = $6; print $2 > hits }
    END { for (k in count) print k "\t" count[k] "\t" first[k] }
' hits="$work/hits" "$work/requests" | sort -t"$(printf '\t')" -k2,2nr -k1,1 > "$work/suspicious"
touch "$work/hits"
echo "suspicious requests: $(awk -F'\t' '{ n += $2 } END { print n + 0 }' "$work/suspicious")"

# 5. Offenders: scanners, and whoever fails to log in again and again. A login that works after that is worse.
awk -F'\t' -v hits="$work/hits" '
    BEGIN { while ((getline address < hits) > 0) scans[address]++ }
    { requests[$2]++ }
    $3 >= 400 && $3 < 500 { refused[$2]++ }
    $5 == "POST" && $6 ~ /^\/login/ && $3 == 401 { failed[$2]++ }
    $5 == "POST" && $6 ~ /^\/login/ && $3 < 400 && failed[$2] >= 20 { entered[$2] = 1 }
    END {
        for (a in requests) {
            why = ""
            if (scans[a] >= 5) why = "scan"
            if (failed[a] >= 20) why = entered[a] ? "password guessed" : "password guessing"
            if (why != "") print a "\t" requests[a] "\t" refused[a] + 0 "\t" why
        }
    }' "$work/requests" | sort -t"$(printf '\t')" -k3,3nr -k1,1 > "$work/offenders"
echo "offenders: $(awk 'END { print NR }' "$work/offenders")"

verdict=calm
[ -s "$work/bursts" ] && verdict=look
[ -s "$work/offenders" ] && verdict=look
grep -q 'password guessed' "$work/offenders" && verdict=act

# 6. For people.
{
    echo "# Triage of $log"
    echo
    echo "Verdict: **$verdict**. $requests requests; malformed lines: $malformed."
    echo
    echo "| status | requests |"
    echo "|---|---:|"
    awk -F'\t' '{ print "| " $1 " | " $2 " |" }' "$work/statuses"
    echo
    echo "## Bursts of server errors"
    echo
    awk -F'\t' '{ print "- " $1 " to " $2 ": " $3 " errors, most of them at " $4 " (" $5 ")" } END { if (!NR) print "None." }' "$work/bursts"
    echo
    echo "## Offenders"
    echo
    awk -F'\t' '{ print "- " $1 ": " $4 ", " $2 " requests, " $3 " refused" } END { if (!NR) print "None." }' "$work/offenders"
    echo
    echo "## Suspicious paths"
    echo
    awk -F'\t' '{ print "- " $1 ": " $2 ", such as `" $3 "`" } END { if (!NR) print "None." }' "$work/suspicious"
    echo
    echo "## Most requested pages"
    echo
    awk -F'\t' '$3 == 200 && $6 !~ /^\/(static|img|favicon|healthz)/ { n[$6]++ } END { for (p in n) print n[p] "\t" p }' "$work/requests" |
        sort -t"$(printf '\t')" -k1,1nr -k2,2 | head -5 | awk -F'\t' '{ print "- " $2 ": " $1 }'
} > "$out/report.md"

# 7. For programs. What comes out of a log is hostile, so it is quoted.
awk -F'\t' -v dir="$work" -v log_name="$log" -v verdict="$verdict" -v requests="$requests" -v malformed="$malformed" '
    # By character: awks differ in what backslashes mean in a replacement.
    function quote(text,    i, c, quoted) {
        quoted = ""
        for (i = 1; i <= length(text); i++) {
            c = substr(text, i, 1)
            if (c == "\"" || c == "\\") quoted = quoted "\\"
            quoted = quoted (c < " " ? "?" : c)
        }
        return "\"" quoted "\""
    }
    function list(name, line,    text, part) {
        text = ""
        while ((getline line < (dir "/" name)) > 0) {
            split(line, part, "\t")
            if (name == "statuses") text = text ", " quote(part[1]) ": " part[2]
            if (name == "bursts") text = text ", {\"from\": " quote(part[1]) ", \"to\": " quote(part[2]) ", \"errors\": " part[3] ", \"worst_minute\": " quote(part[4]) "}"
            if (name == "offenders") text = text ", {\"address\": " quote(part[1]) ", \"requests\": " part[2] ", \"refused\": " part[3] ", \"why\": " quote(part[4]) "}"
            if (name == "suspicious") text = text ", {\"kind\": " quote(part[1]) ", \"requests\": " part[2] ", \"example\": " quote(part[3]) "}"
        }
        return substr(text, 3)
    }
    BEGIN {
        print "{"
        print "  \"log\": " quote(log_name) ","
        print "  \"verdict\": " quote(verdict) ","
        print "  \"requests\": " requests ","
        print "  \"malformed\": " malformed ","
        print "  \"statuses\": {" list("statuses") "},"
        print "  \"bursts\": [" list("bursts") "],"
        print "  \"offenders\": [" list("offenders") "],"
        print "  \"suspicious\": [" list("suspicious") "]"
        print "}"
    }' > "$out/result.json"
echo "verdict: $verdict"
