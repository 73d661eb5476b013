# Sourced by the other scripts: where things are kept, and small helpers.
set -eu
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${PIMAN_EMULATED_CACHE:-$HOME/.cache/piman-emulated}
SYSROOT=$CACHE/sysroot # unpacked arm64 packages, never executed here
export DEBIAN_FRONTEND=noninteractive
die() { echo "emulated machine: $*" >&2; exit 1; }
need() { for c in "$@"; do command -v "$c" >/dev/null || die "$c is not installed"; done; }
suite() { (. /etc/os-release && echo "$VERSION_CODENAME"); }
# Where this machine's own apt has that suite from.
mirror() {
    apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' 'Component: main' |
        awk -v suite="$(suite)" '$2 == suite && !seen { print $1; seen = 1 }'
}
# Has the kernel run programs for 64-bit ARM, by QEMU.
use_foreign_programs() {
    [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || return 0
    [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    update-binfmts --enable qemu-aarch64
}
