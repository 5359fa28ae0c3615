# Shared by the examples' run.sh, which sets `here` to its own folder and sources this file.
# Leaves in AGENTS the `agents` binary, in `limits` what this host makes necessary, in `out` an empty folder, and in `cache`
# one that keeps what was built.

die() {
    echo "$example: $*" >&2
    exit 1
}

example=$(basename "$here")
clone=$(cd "$here/../.." && pwd)

# The binary: what AGENTS says, else one that is installed, else this clone's own, built now.
if [ -z "${AGENTS:-}" ]; then
    if command -v agents >/dev/null 2>&1; then
        AGENTS=agents
    else
        command -v cargo >/dev/null 2>&1 || die "there is neither agents nor cargo; install Rust from https://rustup.rs"
        echo "building agents; the first time takes some minutes"
        (cd "$clone" && cargo build --release --package agents-cli) || die "agents could not be built"
        target=$(cd "$clone" && cargo metadata --format-version 1 --no-deps --offline |
            sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
        AGENTS=$target/release/agents
    fi
fi
command -v "$AGENTS" >/dev/null 2>&1 || die "there is no $AGENTS; set AGENTS to the agents binary"

# An ordinary user without a cgroup subtree of their own cannot limit memory and CPU time, and what cannot be enforced is
# refused. An example may do without these two; whoever runs strangers' code should not.
limits=
if ! said=$("$AGENTS" run --quiet -- true 2>&1); then
    case $said in
    *memory_mb*cpu_cores*)
        echo "$said" >&2
        echo "$example: going on without these two limits, by --memory unlimited --cpus unlimited" >&2
        limits="--memory unlimited --cpus unlimited"
        ;;
    *)
        echo "$said" >&2
        die "agents cannot run anything here; \`$AGENTS doctor\` says more"
        ;;
    esac
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/isolated-agents
out=$cache/examples/$example
rm -rf "$out"
mkdir -p "$out" || die "cannot make the folder $out for the output"

# expect FILE TEXT: the file must be there and have this text.
expect() {
    [ -s "$out/$1" ] || die "the agent left no $1"
    grep -qF -- "$2" "$out/$1" || die "$out/$1 does not have: $2"
}

# Prints where everything is.
finish() {
    state=${ISOLATED_AGENTS_STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/isolated-agents}
    echo
    for file in "$out"/*; do
        echo "artifact    $file"
    done
    # Unless a configuration names another place, which the summary above shows.
    for file in "$state"/audit/*.jsonl; do
        [ -f "$file" ] && audit=$file
    done
    [ -z "${audit:-}" ] || echo "audit file  $audit"
    echo "$example: ok"
}
