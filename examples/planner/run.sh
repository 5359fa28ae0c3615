#!/bin/sh
# Builds the agent, makes an image of a folder for it, runs it, and checks what it did.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"

command -v cargo >/dev/null 2>&1 || die "this example needs cargo; install Rust from https://rustup.rs"
busybox=$(command -v busybox) || die "this example needs a static busybox: apt-get install busybox-static"
if ldd "$busybox" >/dev/null 2>&1; then
    die "$busybox is not static, so that it does not run in an image of its own: apt-get install busybox-static"
fi

# A static binary needs nothing of the image. Its build folder is its own: other flags would build everything anew.
export CARGO_TARGET_DIR="$cache/target-planner"
triple=$(rustc -vV | sed -n 's/^host: //p')
(cd "$clone" && RUSTFLAGS='-C target-feature=+crt-static' \
    cargo build --quiet --release --package agents-example-planner --target "$triple") || die "the agent could not be built"

# The image: two programs, and links to one of them.
image=$(mktemp -d)
trap 'rm -rf "$image"' EXIT
chmod 755 "$image"
mkdir "$image/bin"
cp "$busybox" "$image/bin/busybox"
cp "$CARGO_TARGET_DIR/$triple/release/planner" "$image/bin/planner"
for applet in sh awk cat cp grep head sed sort true; do
    ln -s busybox "$image/bin/$applet"
done

# shellcheck disable=SC2086 # The limits are words.
"$AGENTS" run --image "$image" --policy "$here/policy.yaml" $limits --workspace "$here/workspace" --output "$out" \
    -- planner task.txt

expect report.md "715 packages, "
expect report.md "## The ten largest"
expect largest.tsv "$(printf '\t')"
[ "$(wc -l < "$out/largest.tsv")" -eq 10 ] || die "the ten largest packages are not ten"
expect result.json '"achieved": true'
expect result.json '"retries": 1'
expect result.json '"broken_tools": ["table-with-column"]'
expect trace.jsonl '"said": "the cache is being filled"'
[ "$(grep -c '"event": "plan"' "$out/trace.jsonl")" -eq 2 ] || die "the agent did not plan twice"
[ ! -e "$here/workspace/clean.tsv" ] || die "the agent wrote into the workspace"
finish
