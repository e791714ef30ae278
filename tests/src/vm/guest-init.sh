#!/bin/sh
# The guest's first process: prepares the system, runs /job with its output on ttyS1, reports its exit code on
# ttyS2 and powers off. ttyS0 is the kernel's console.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=0620,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/netns /run/lock
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr

hostname droptrace-vm
echo "127.0.1.1 droptrace-vm" >>/etc/hosts
ip link set lo up

# Held open to the end: a serial port forgets its settings with its last user.
exec 3>/dev/ttyS1 4>/dev/ttyS2
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
echo "boot $(uname -r)" >&4

cd /root
/bin/sh /job </dev/null >&3 2>&1 3>&- 4>&-
code=$?

# What the job left running must not hold the output open: closing it waits until all is sent.
kill -9 -1
exec 3>&-
echo "exit $code" >&4
exec 4>&-
echo b >/proc/sysrq-trigger
reboot -f
