#!/bin/sh
# PID 1 of the initramfs: loads the kernel's modules and switches to the disk, because a root that is an
# initramfs cannot be pivoted away from, and no user's host looks like that.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module" || echo "vmtest: boot/$module FAIL the module does not load"
done < /modules/order
# The disk appears a moment after its driver.
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
if ! mount -t ext4 /dev/vda /disk; then
    echo "vmtest: boot/disk FAIL the disk cannot be mounted"
    poweroff -f
fi
# A disk without our programs has them on a second one.
if [ -b /dev/vdb ] && ! mount -t ext4 /dev/vdb /disk/vmtest; then
    echo "vmtest: boot/programs FAIL the second disk cannot be mounted"
fi
for folder in proc sys dev; do
    mount --move "/$folder" "/disk/$folder"
done
if [ -e /disk/lib/systemd/systemd ]; then
    exec switch_root /disk /lib/systemd/systemd
fi
exec switch_root /disk /vmtest/guest.sh
