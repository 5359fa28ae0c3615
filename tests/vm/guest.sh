#!/bin/sh
# PID 1 of the machine that has no systemd: makes it look like an ordinary host with cgroup v2, then runs the checks and the
# test suites as root and as a user to whom a subtree is delegated, the way systemd does it.
export PATH=/usr/sbin:/usr/bin HOME=/root NO_COLOR=1 TERM=dumb
cgroups=/sys/fs/cgroup

mount -o remount,rw /
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts 2> /dev/null ||
    { mkdir -p /dev/pts && mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts; }
mkdir -p /dev/shm /dev/mqueue
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs /tmp
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 "$cgroups"
mount --make-rshared /
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
hostname vmtest
ip link set lo up
chmod 666 /dev/fuse /dev/net/tun 2> /dev/null
mkdir -p /run/user/1000
chown -R 0:0 /etc /root /usr /vmtest
chown -R 1000:1000 /home/agent /run/user/1000
chmod 700 /home/agent /run/user/1000
# Closed, but programs that were built in a home folder are at that path here too.
chmod 711 /root

# Hands the children of a cgroup every controller that it has.
hand_down() {
    for controller in $(cat "$1/cgroup.controllers"); do
        echo "+$controller" > "$1/cgroup.subtree_control"
    done
}

# Makes a delegated subtree with a leaf for the tests: `delegate SLICE SERVICE OWNER`.
delegate() {
    mkdir -p "$cgroups/$1/$2/tests.scope"
    hand_down "$cgroups"
    walked=$cgroups
    for part in $(echo "$1" | tr / ' '); do
        walked=$walked/$part
        hand_down "$walked"
    done
    hand_down "$cgroups/$1/$2"
    for folder in "$cgroups/$1/$2" "$cgroups/$1/$2/tests.scope"; do
        chown "$3:$3" "$folder" "$folder/cgroup.procs" "$folder/cgroup.subtree_control" "$folder/cgroup.threads"
    done
}

delegate system.slice vmtest.service 0
delegate user.slice/user-1000.slice user@1000.service 1000

# The output goes through a pipe: a program that finds a terminal would draw on it.
sh -c "echo \$\$ > $cgroups/system.slice/vmtest.service/tests.scope/cgroup.procs
    exec /vmtest/checks.sh root" 2>&1 | cat
sh -c "echo \$\$ > $cgroups/user.slice/user-1000.slice/user@1000.service/tests.scope/cgroup.procs
    export XDG_RUNTIME_DIR=/run/user/1000
    exec su -s /bin/sh agent /vmtest/checks.sh user" 2>&1 | cat

echo "vmtest: finished"
sync
poweroff -f
