#!/bin/sh
# PID 1 of the controllers' guest: sets up what a Debian host would have, runs pytest as root, and leaves its results
# on the disk /results. run.py started it and reads them; what it prints after the mark is shown to whoever waits.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount "$RESULTS" /results
echo "== guest: Linux $(uname -r), $(nproc) CPUs, controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"

# State on a file system that shares blocks between files, on a disk of its own whose bandwidth can be limited.
mkfs.xfs -q -m reflink=1 "$SCRATCH" && mount "$SCRATCH" /tmp && chmod 1777 /tmp || echo "== guest: /tmp is no disk of its own"
modprobe -a loop tun veth overlay nf_tables || echo "== guest: a kernel module is missing"
ln -sf /proc/self/fd /dev/fd
ip link set lo up
hostname controllers
sysctl -qw kernel.panic_on_oops=1

# run.py quoted them for a shell.
eval "set -- $(cat /nimbus/pytest.arguments)"
cd /nimbus || exit 1
export NIMBUS_TEST_CONTROLLERS=1 PYTHONDONTWRITEBYTECODE=1
python3 -u -m pytest --junitxml=/results/junit.xml "$@" 2>&1
echo $? >/results/status

dmesg >/results/dmesg
for name in controllers subtree_control; do cat /sys/fs/cgroup/cgroup.$name; done >/results/cgroup
umount /results || { sync; mount -o remount,ro /results; }
echo b >/proc/sysrq-trigger
sleep 60
