#!/bin/sh
# Runs on the machine that has podman, as root and as a user: `podman.sh root` or `podman.sh user`. It opens the engine's
# API on a socket of whoever runs it, brings the image of the tests, and runs every executable in /vmtest/suites.
who=$1
export PATH=/usr/sbin:/usr/bin NO_COLOR=1 TERM=dumb
scratch=/var/tmp/podman-$who
mkdir -p "$scratch"
cd "$scratch" || exit 1
export AGENTS_TEST_PODMAN="unix://$scratch/podman.sock" AGENTS_TEST_ENGINE_IMAGE=localhost/agents-test:latest
. /vmtest/report.sh

controllers_reach_users() {
    for controller in memory cpu pids; do
        grep -qw "$controller" /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers ||
            { echo "no $controller"; return 1; }
    done
}

image_can_be_imported() {
    podman import --quiet /vmtest/image.tar "$AGENTS_TEST_ENGINE_IMAGE"
}

api_answers() {
    podman system service --time 0 "$AGENTS_TEST_PODMAN" > podman.log 2>&1 &
    tries=0
    until [ -S podman.sock ]; do
        [ "$tries" -lt 300 ] && kill -0 $! || { cat podman.log; return 1; }
        sleep 0.2
        tries=$((tries + 1))
    done
}

# One run from the command line: what it may use is what the kernel gives it.
memory_of_agents_is_limited() {
    cat > podman.yaml << end
adapters:
  container_runtime:
    type: podman
    config:
      remote_url: $AGENTS_TEST_PODMAN
end
    said=$(/vmtest/agents run --config podman.yaml --image "$AGENTS_TEST_ENGINE_IMAGE" --memory 64 \
        --state-dir "$scratch/state" --json -- tail /dev/zero 2> errors)
    status=$?
    [ "$status" = 137 ] && echo "$said" | grep -q out_of_memory || { echo "$status: $said"; cat errors; return 1; }
}

echo "vmtest: note kernel $(uname -r), $(podman --version), $who in $(cat /proc/self/cgroup)"
check identity is_who_it_should_be
check cgroup-v2-only only_cgroup_v2
[ "$who" = user ] && check controllers-delegated controllers_reach_users
check podman-image image_can_be_imported
check podman-api api_answers
[ -x /vmtest/agents ] && check agents-run-podman memory_of_agents_is_limited
run_suites
