#!/bin/busybox sh
# PID 1 until the guest's root is there: load the disks' drivers, mount root and checkout, go on in the checkout.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t sysfs sys /sys
while read -r module; do $b insmod "/lib/modules/$module"; done </modules.list

# Prints the device of the disk with this serial: names follow the order in which the kernel found them. A driver that
# is loaded has not yet found its disks, and nothing but a udev would tell.
find_disk() {
  tries=600
  while [ $tries -gt 0 ]; do
    for disk in /sys/block/vd*; do
      if [ "$($b cat "$disk/serial")" = "$1" ] && [ -b "/dev/${disk##*/}" ]; then echo "/dev/${disk##*/}"; return; fi
    done
    $b sleep 0.1
    tries=$((tries - 1))
  done
}

$b mount -t ext4 "$(find_disk root)" /newroot
$b mount -t ext4 "$(find_disk checkout)" /newroot/nimbus
RESULTS=$(find_disk results)
SCRATCH=$(find_disk scratch)
export RESULTS SCRATCH
$b umount /sys
$b mount --move /dev /newroot/dev
exec $b switch_root /newroot /bin/sh /nimbus/tests/controllers/guest.sh
