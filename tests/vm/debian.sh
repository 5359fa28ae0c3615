#!/bin/sh
# What systemd runs on the machine that has podman, told by `systemd.run` on the kernel's command line: the tests as root,
# and as a user in a session of the user's own, as whoever logs in has one.
exec > /dev/ttyS0 2>&1
# Nothing asked for it: what was asked for is this script alone. It brings the bus, by which cgroups are asked for.
systemctl start basic.target
# The output goes through a pipe: a program that finds a terminal would draw on it.
/vmtest/podman.sh root 2>&1 | cat
su --login agent --command "/vmtest/podman.sh user" 2>&1 | cat
echo "vmtest: finished"
sync
busybox poweroff -f
