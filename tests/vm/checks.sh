#!/bin/sh
# Runs inside the virtual machine, as root and as a user: `checks.sh root` or `checks.sh user`.
# First whether the machine is what the tests need, then every executable in /vmtest/suites.
who=$1
own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)
delegated=${own%/*}
# On the disk: this kernel's tmpfs cannot map ids, which mounts into containers need.
scratch=/var/tmp/checks-$who
mkdir -p "$scratch"
cd "$scratch" || exit 1

. /vmtest/report.sh

controllers_are_delegated() {
    for controller in memory cpu pids; do
        grep -qw "$controller" "$delegated/cgroup.controllers" || { echo "no $controller"; return 1; }
        grep -qw "$controller" "$own/cgroup.controllers" || { echo "no $controller below"; return 1; }
    done
}

# Runs a command in a new cgroup with one limit: `limited NAME FILE VALUE COMMAND`.
limited() {
    mkdir "$delegated/$1" && echo "$3" > "$delegated/$1/$2" || return 1
    sh -c "echo \$\$ > '$delegated/$1/cgroup.procs'; $4" > /dev/null 2>&1
    status=$?
}

memory_limit_kills() {
    limited oom memory.max 32M 'exec tail /dev/zero'
    events=$(cat "$delegated/oom/memory.events")
    rmdir "$delegated/oom"
    [ "$status" = 137 ] && echo "$events" | grep -q '^oom_kill 1' || { echo "$status: $events"; return 1; }
}

pids_limit_refuses() {
    limited pids pids.max 2 'sleep 0.1 & sleep 0.1 & sleep 0.1 & wait'
    events=$(cat "$delegated/pids/pids.events")
    while ! rmdir "$delegated/pids" 2> /dev/null; do sleep 0.1; done
    echo "$events"
    ! echo "$events" | grep -q '^max 0'
}

file_system_can_be_made() {
    truncate -s 16M image && mkfs.ext4 -q -F image && rm image
}

user_namespace() {
    [ "$(unshare -Ur id -u)" = 0 ]
}

overlay_in_user_namespace() {
    mkdir -p lower upper work merged
    echo below > lower/file
    unshare -Urm sh -c '
        mount -t tmpfs tmpfs upper && mkdir upper/u upper/w &&
        mount -t overlay -o lowerdir=lower,upperdir=upper/u,workdir=upper/w overlay merged &&
        echo above > merged/file && grep -q above merged/file' && grep -q below lower/file
}

security_modules() {
    modules=$(cat /sys/kernel/security/lsm)
    for module in landlock apparmor; do
        echo "$modules" | grep -qw "$module" || { echo "$modules"; return 1; }
    done
}

root_can_be_pivoted() {
    unshare -m sh -c 'mount --make-rprivate / && mkdir -p new && mount -t tmpfs tmpfs new && mkdir new/old &&
        pivot_root new new/old'
}

echo "vmtest: note kernel $(uname -r), $who in $own"
check identity is_who_it_should_be
check cgroup-v2-only only_cgroup_v2
check controllers-delegated controllers_are_delegated
check memory-limit-kills memory_limit_kills
check file-system-can-be-made file_system_can_be_made
check pids-limit-refuses pids_limit_refuses
check user-namespace user_namespace
check overlay-in-user-namespace overlay_in_user_namespace
check security-modules security_modules
[ "$who" = root ] && check pivot-root root_can_be_pivoted

hello_from_agents() {
    said=$(/vmtest/agents run --image host --state-dir "$scratch/state" -- echo hello 2> "$scratch/errors")
    [ "$said" = hello ] || { echo "printed '$said'"; cat "$scratch/errors"; return 1; }
}
[ -x /vmtest/agents ] && check agents-run hello_from_agents
run_suites
