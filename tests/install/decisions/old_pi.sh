#!/bin/sh
# The initramfs of an old Pi, as far as a server and a disk see it: it looks for /bin on the second partition, reports
# that, and does what it is told. With an empty LOOKS it only sets its clock, as one that is switched off then.
# ADDRESS is its own; CONTROL and ROOTFS are the ports; DISK is the disk; T is a folder of its own.
set -e
P2=$((8192 * 512))
mkdir "$T/root"
mkfifo "$T/in" "$T/out"
nc -N -s "$ADDRESS" 127.0.0.1 "$CONTROL" <"$T/out" >"$T/in" &
exec 4>"$T/out" 3<"$T/in"
send() { echo "$1" >&4; }
# Hangs up when all that was sent is there.
over() { exec 4>&-; wait; }
# The next command, without its end.
command() { IFS= read -r line <&3 && IFS= read -r end <&3 && [ "$end" = EOM ] && send "$line"; }
# Where the table has the second partition, in bytes.
second() { start=$(sfdisk --dump "$DISK" 2>/dev/null | sed -n 's/.*start= *\([0-9]*\),.*/\1/p' | sed -n 2p); [ "$start" ] && echo $((start * 512)); }
# By a loop device of its own: those that mount(8) makes may still be there when it makes the next.
mounted() { part=$(losetup -f --show -o "$2" "$DISK") && { mount -t ext4 -o "$1" "$part" "$T/root" || { losetup -d "$part"; false; }; }; }
unmounted() { umount "$T/root" && losetup -d "$part"; }

if [ -z "$LOOKS" ]; then
    send SET_DATE
    over
    exit
fi
if at=$(second) && mounted ro,noload "$at" 2>/dev/null; then
    [ -d "$T/root/bin" ] && installed=1
    unmounted
fi
if [ "$installed" ]; then send IS_INSTALLED; else send IS_UNINSTALLED; fi
echo reported
command
case $line in
boot)
    send RECEIVED_BOOT
    send MOUNTING
    mounted ro,noload "$at"
    send FINISHED_MOUNTING
    unmounted
    over
    echo booted
    ;;
format)
    send RECEIVED_FORMAT
    printf 'label: dos\nstart=2048, size=4096, type=c\nstart=8192, type=83\n' | sfdisk --quiet --no-reread --no-tell-kernel --lock=no "$DISK"
    mke2fs -q -F -t ext4 -E "offset=$P2" "$DISK" $((60 * 1024))k
    send MOUNTING
    mounted rw "$P2"
    nc -d -s "$ADDRESS" 127.0.0.1 "$ROOTFS" | tar -C "$T/root" -xzf -
    send FINISHED_MOUNTING
    send IS_FORMATTED
    unmounted
    over
    echo formatted
    ;;
*) echo "what is $line?"; exit 1 ;;
esac
