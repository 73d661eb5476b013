#!/bin/bash
# Makes the image of a disk with Debian arm64 on it, laid out as others lay out theirs.
#
#   mkdisk.sh LAYOUT   writes CACHE/disks/LAYOUT.img and prints that path; nothing is done if it is there and was made by
#                      this recipe
#     raspios  as Raspberry Pi OS: MBR, 512 MiB FAT "bootfs" at 4 MiB, ext4 "rootfs", PARTUUIDs, ` resize` on the command
#              line, which the first boot obeys, userconf.txt and ssh, which it reads; its user is pi, with no password
#     debian   as Debian's images for Pis: MBR, labels RASPIFIRM and RASPIROOT; root has no password. What makes the root
#              filesystem larger in those is left out, so that whoever installs it has to
#     ubuntu   as Ubuntu: MBR, labels system-boot and writable, cloud-init with its files on the FAT, growpart;
#              cloud-init makes the user ubuntu with the password ubuntu
#     ab       an appliance: GPT, a FAT, two root filesystems A and B, and one for data; A is booted; its user is admin, as is
#              the password
#
# What is the same in all of one image and must not stay so on the cards is there: a machine-id, host keys, seeds.
. "$(dirname "$0")/common.sh"
LAYOUT=${1:-}
case $LAYOUT in raspios | debian | ab) TREE=plain ;; ubuntu) TREE=cloud ;; *) die "see the head of $0" ;; esac
need mke2fs mkfs.vfat mcopy sfdisk dd sha256sum
TAR=$("$HERE/mktree.sh" "$TREE")
OUT=$CACHE/disks/$LAYOUT.img
RECIPE=$(cat "$0" "$TAR.by" | sha256sum)
[ ! -f "$OUT" ] || [ "$(cat "$OUT.by" 2>/dev/null)" != "$RECIPE" ] || { echo "$OUT"; exit 0; }
use_foreign_programs
rm -f "$OUT.by"
T=$(mktemp -d -p "$CACHE/disks"); trap 'rm -rf "$T"' EXIT
R=$T/root B=$T/root/boot/firmware F=$T/boot
mkdir "$R" "$F"
tar -C "$R" --numeric-owner --xattrs -xpf "$TAR"
K=$(basename "$R"/usr/lib/modules/*)

# How a partition is called: by its number on this disk, or by its label.
DISK=5f5d7a31
GUID_A=0f3c1f9e-6f0c-4a55-9d3e-5a1b7c2d4e60 GUID_DATA=0f3c1f9e-6f0c-4a55-9d3e-5a1b7c2d4e62
UUID_DATA=7d1f8f0a-2b34-4c6d-8e9f-a1b2c3d4e5f6

# A user with this password; with none, nobody can log in as that user.
user() {
    chroot "$R" useradd --create-home --shell /bin/bash --groups sudo "$1"
    [ -z "${2:-}" ] || echo "$1:$2" | chroot "$R" chpasswd
}
# A program, and a unit that runs it before anybody can log in. What else is in the unit's first section stands behind.
at_boot() {
    local name=$1 program=$2
    shift 2
    install -D -m 755 /dev/stdin "$R$program"
    printf '%s\n' "[Unit]" "After=local-fs.target" "Before=systemd-user-sessions.service ssh.service" "$@" \
        "[Service]" "Type=oneshot" "ExecStart=$program" \
        "[Install]" "WantedBy=multi-user.target" >"$R/etc/systemd/system/$name.service"
    chroot "$R" systemctl --quiet enable "$name"
}

# What the firmware boots from is a partition, not a part of the root filesystem. Distributions name the kernel and the
# initramfs as they like; the others are in the tree as the package raspi-firmware has put them.
mv "$B"/* "$F/"
rename_kernel() { mv "$F/vmlinuz-$K" "$F/$1"; mv "$F/initrd.img-$K" "$F/$2"; }

# What identifies a system that has been running, so that it can be seen that it does not stay so.
echo 0123456789abcdef0123456789abcdef >"$R/etc/machine-id"
head -c 512 /dev/zero | tr '\0' s >"$R/var/lib/systemd/random-seed"
ls "$R"/etc/ssh/ssh_host_*_key >/dev/null

case $LAYOUT in
raspios)
    rename_kernel kernel8.img initramfs8
    printf '%s\n' arm_64bit=1 auto_initramfs=1 enable_uart=1 >"$F/config.txt"
    echo "console=ttyS1,115200 console=tty1 root=PARTUUID=$DISK-02 rootfstype=ext4 fsck.repair=yes rootwait quiet resize" >"$F/cmdline.txt"
    printf '%s\n' "PARTUUID=$DISK-01 /boot/firmware vfat defaults 0 2" "PARTUUID=$DISK-02 / ext4 defaults,noatime 0 1" >"$R/etc/fstab"
    user pi
    chroot "$R" systemctl --quiet disable ssh
    at_boot resize /usr/lib/raspberrypi-sys-mods/resize "ConditionKernelCommandLine=resize" <<'S'
#!/bin/sh
# The root filesystem comes to fill the card, once.
set -eu
part=$(findmnt -no SOURCE /)
name=${part#/dev/}
number=$(cat "/sys/class/block/$name/partition")
disk=/dev/$(basename "$(readlink -f "/sys/class/block/$name/..")")
echo ', +' | sfdisk --quiet --no-reread --no-tell-kernel --lock=no -N "$number" "$disk"
partx --update --nr "$number" "$disk"
resize2fs "$part"
sed -i 's/ resize\>//' /boot/firmware/cmdline.txt
S
    at_boot userconfig /usr/lib/userconf-pi/userconf-service "ConditionPathExists=/boot/firmware/userconf.txt" <<'S'
#!/bin/sh
# Renames the user pi as the file on the boot partition says: NAME:PASSWORD-HASH.
set -eu
IFS=: read -r name hash </boot/firmware/userconf.txt || [ -n "$name" ]
/usr/lib/userconf-pi/userconf "$name" "$hash"
rm /boot/firmware/userconf.txt
S
    install -D -m 755 /dev/stdin "$R/usr/lib/userconf-pi/userconf" <<'S'
#!/bin/sh
set -eu
if [ "$1" != pi ]; then
    usermod -l "$1" -d "/home/$1" -m pi
    groupmod -n "$1" pi
fi
usermod -p "$2" "$1"
S
    at_boot sshswitch /usr/lib/raspberrypi-sys-mods/sshswitch "ConditionPathExists=/boot/firmware/ssh" <<'S'
#!/bin/sh
set -eu
systemctl --no-block enable --now ssh
rm /boot/firmware/ssh
S
    at_boot regenerate_ssh_host_keys /usr/lib/raspberrypi-sys-mods/regenerate_ssh_host_keys <<'S'
#!/bin/sh
# Makes host keys once, and switches itself off.
set -eu
rm -f /etc/ssh/ssh_host_*_key*
ssh-keygen -A
systemctl disable regenerate_ssh_host_keys
S
    # It has run when the image was made.
    chroot "$R" systemctl --quiet disable regenerate_ssh_host_keys
    ;;
debian)
    echo "console=tty0 console=ttyS1,115200 root=LABEL=RASPIROOT rw fsck.repair=yes net.ifnames=0 rootwait" >"$F/cmdline.txt"
    printf '%s\n' "LABEL=RASPIROOT / ext4 rw 0 1" "LABEL=RASPIFIRM /boot/firmware vfat rw 0 2" >"$R/etc/fstab"
    chroot "$R" passwd --quiet --delete root
    ;;
ubuntu)
    rename_kernel vmlinuz initrd.img
    printf '%s\n' arm_64bit=1 kernel=vmlinuz "initramfs initrd.img followkernel" cmdline=cmdline.txt enable_uart=1 >"$F/config.txt"
    echo "console=ttyS1,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable rootfstype=ext4 rootwait fixrtc" >"$F/cmdline.txt"
    printf '%s\n' "LABEL=writable / ext4 discard,errors=remount-ro 0 1" "LABEL=system-boot /boot/firmware vfat defaults 0 1" >"$R/etc/fstab"
    printf '%s\n' "datasource_list: [ NoCloud, None ]" "datasource:" "  NoCloud:" "    fs_label: system-boot" \
        >"$R/etc/cloud/cloud.cfg.d/99-fake-cloud.cfg"
    sed -i 's/^\( *name: \)debian$/\1ubuntu/' "$R/etc/cloud/cloud.cfg"
    printf '%s\n' "#cloud-config" "ssh_pwauth: true" "chpasswd:" "  expire: false" "  list:" "  - ubuntu:ubuntu" >"$F/user-data"
    echo "instance-id: cloud-image" >"$F/meta-data"
    printf '%s\n' "version: 2" "ethernets:" "  eth0: { dhcp4: true, optional: true }" >"$F/network-config"
    ;;
ab)
    rename_kernel kernel8.img initramfs8
    printf '%s\n' arm_64bit=1 auto_initramfs=1 >"$F/config.txt"
    echo "console=tty0 console=ttyS1,115200 root=PARTUUID=$GUID_A rootwait rw" >"$F/cmdline.txt"
    printf '%s\n' "PARTUUID=$GUID_A / ext4 defaults 0 1" "PARTLABEL=boot /boot/firmware vfat defaults 0 2" \
        "UUID=$UUID_DATA /data ext4 defaults,nofail 0 2" >"$R/etc/fstab"
    mkdir "$R/data"
    user admin admin
    ;;
esac

# A FAT filesystem of so many MiB with what the firmware boots from.
make_boot() {
    mkfs.vfat -C -F 32 -n "$1" "$T/boot.img" $(($2 << 10)) >/dev/null
    mcopy -i "$T/boot.img" -s -p -m "$F"/* ::/
}
# An ext4 filesystem with a tree and some room: NAME TREE ROOM-IN-MIB OPTIONS...
make_ext4() {
    local name=$1 tree=$2 mib=$(($(du -sm --apparent-size "$2" | cut -f1) * 110 / 100 + $3))
    shift 3
    mke2fs -q -t ext4 -b 4096 -d "$tree" "$@" "$T/$name.img" "${mib}M"
}
# The size of a part, in sectors.
sectors() { echo $(($(stat -c %s "$T/$1.img") / 512)); }
# Makes the disk: its table is on standard input, and parts lie from these sectors on.
assemble() {
    local end=$1
    shift
    truncate -s $((end * 512)) "$OUT.new"
    sfdisk --quiet "$OUT.new"
    while [ $# -gt 0 ]; do
        dd if="$T/$1.img" of="$OUT.new" bs=1M seek=$(($2 * 512)) oflag=seek_bytes conv=sparse,notrunc status=none
        shift 2
    done
}

mib=2048 # sectors
case $LAYOUT in
raspios) make_boot bootfs 512; make_ext4 root "$R" 64 -L rootfs ;;
debian) make_boot RASPIFIRM 256; make_ext4 root "$R" 64 -L RASPIROOT ;;
ubuntu) make_boot system-boot 256; make_ext4 root "$R" 64 -L writable ;;
ab)
    make_boot BOOT 256
    make_ext4 root "$R" 64 -L root-a
    # What was there before the update: enough to be taken for a system.
    mkdir -p "$T/old/usr/lib" "$T/old/usr/sbin" "$T/data"
    cp -a "$R/etc" "$R/sbin" "$T/old/"
    cp -a "$R/usr/lib/systemd" "$T/old/usr/lib/"
    cp -a "$R"/usr/sbin/init "$T/old/usr/sbin/" 2>/dev/null || cp -a "$R/sbin/init" "$T/old/usr/sbin/"
    make_ext4 old "$T/old" 16 -L root-b
    echo "kept over updates" >"$T/data/note"
    make_ext4 data "$T/data" 32 -L data -U "$UUID_DATA"
    ;;
esac
first=$((4 * mib))
root=$((first + $(sectors boot)))
end=$((root + $(sectors root)))
case $LAYOUT in
ab)
    data=$((end + $(sectors old)))
    last=$((data + $(sectors data)))
    assemble $((last + mib)) boot $first root $root old $end data $data <<S
label: gpt
first-lba: 34
start=$first, size=$(sectors boot), type=uefi, name=boot
start=$root, size=$(sectors root), type=linux, name=root-a, uuid=$GUID_A
start=$end, size=$(sectors old), type=linux, name=root-b
start=$data, size=$(sectors data), type=linux, name=data, uuid=$GUID_DATA
S
    ;;
*)
    assemble $end boot $first root $root <<S
label: dos
label-id: 0x$DISK
start=$first, size=$(sectors boot), type=c, bootable
start=$root, size=$(sectors root), type=83
S
    ;;
esac
mv "$OUT.new" "$OUT"
echo "$RECIPE" >"$OUT.by"
echo "$OUT"
