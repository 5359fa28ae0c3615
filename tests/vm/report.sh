# Sourced by the scripts that test in a virtual machine, with `who` (root or user) and the folder `scratch`.

# `check NAME COMMAND…`: one line for a person and for xtask.
check() {
    name=$1
    shift
    if said=$("$@" 2>&1); then
        echo "vmtest: $who/$name ok"
    else
        echo "vmtest: $who/$name FAIL $(echo "$said" | tr '\n' ' ')"
    fi
}

is_who_it_should_be() {
    case $who in
        root) [ "$(id -u)" = 0 ] ;;
        *) [ "$(id -u)" = 1000 ] ;;
    esac
}

only_cgroup_v2() {
    grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts && ! grep -q ' cgroup ' /proc/mounts
}

# Every executable in /vmtest/suites.
run_suites() {
    for suite in /vmtest/suites/*; do
        [ -x "$suite" ] || continue
        name=$who/${suite##*/}
        echo "vmtest: begin $name"
        # One that hangs must leave time for the others. gVisor is judged on the host: it is not on these disks.
        AGENTS=/vmtest/agents CC=/vmtest/cc.sh TMPDIR=$scratch \
            timeout -s KILL 700 "$suite" --color never --skip gvisor::
        echo "vmtest: end $name $?"
    done
}
