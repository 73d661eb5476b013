#!/usr/bin/env bash
# Installs, from Debian's packages and the crate registry alone, a Rust toolchain that compiles for a Pi's Linux
# (static) and for bare metal: for machines where rustup cannot add targets. `cargo +cross` is its name.
#
#   toolchain.sh TARGET...     aarch64-unknown-linux-musl, or bare-metal targets such as thumbv7m-none-eabi
#
#   CROSS_PREFIX  where the toolchain goes             (/opt/rust-cross)
#   CROSS_LOG     full output of the commands run      (/var/log/rust-cross.log)
#
# Needs Debian 12 on x86_64, and root. Takes about five minutes; a second run does only what is missing. To move to
# a newer compiler, remove CROSS_PREFIX and run it again.
set -euo pipefail

PREFIX=${CROSS_PREFIX:-/opt/rust-cross}
NAME=cross
LOG=${CROSS_LOG:-/var/log/rust-cross.log}
HOST=x86_64-unknown-linux-gnu
[ $# -gt 0 ] || { echo "say for which targets; see the head of $0" >&2; exit 2; }
TARGETS=("$@")

say() { printf 'cross-toolchain: %s\n' "$*"; }
die() { printf 'cross-toolchain: error: %s\n' "$*" >&2; exit 1; }

for t in "${TARGETS[@]}"; do
    case $t in
        aarch64-unknown-linux-musl | *-none | *-none-*) ;;
        *) die "no way is known to build for $t" ;;
    esac
done
[ "$(id -u)" = 0 ] || die 'run as root'
[ "$(dpkg --print-architecture)" = amd64 ] || die 'made for an x86_64 Debian machine'
case $PREFIX in /*) ;; *) die 'CROSS_PREFIX must be an absolute path' ;; esac

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
# The caller's build settings must not reach the standard library's build.
unset RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTFLAGS CARGO_ENCODED_RUSTFLAGS \
    CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR \
    CARGO_INCREMENTAL RUSTC_BOOTSTRAP RUSTUP_TOOLCHAIN LD_LIBRARY_PATH APT_CONFIG \
    "${!CARGO_PROFILE_@}"

exec 9>/run/lock/rust-cross.lock
flock -w 1800 9 || die 'another run has held the lock for 30 minutes'

: > "$LOG"
rm -rf "$PREFIX".work.?????? # of a run that was killed
WORK=
cleanup() {
    local rc=$?
    if [ -n "$WORK" ]; then rm -rf "$WORK"; fi
    if [ $rc -ne 0 ]; then
        printf 'cross-toolchain: failed (%s); the end of %s:\n' "$rc" "$LOG" >&2
        tail -n 25 "$LOG" >&2
    fi
}
trap cleanup EXIT
run() { printf '+ %s\n' "$*" >> "$LOG"; "$@" >> "$LOG" 2>&1; }

workdir() {
    if [ -z "$WORK" ]; then
        mkdir -p "$(dirname "$PREFIX")"
        WORK=$(mktemp -d "$PREFIX.work.XXXXXX") # same file system: the last step is a rename
    fi
}

# --- Debian packages -------------------------------------------------------

APT=(apt-get -q -o DPkg::Lock::Timeout=600 -o APT::Sandbox::User=root -o Acquire::Retries=3)
apt_updated=
apt_update() { [ -n "$apt_updated" ] || run "${APT[@]}" update; apt_updated=1; }

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null)" = installed ]; }
apt_install() {
    local p missing=()
    for p in "$@"; do is_installed "$p" || missing+=("$p"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    apt_update
    say "installing ${#missing[@]} Debian package(s): ${missing[*]}"
    run "${APT[@]}" install -y --no-install-recommends "${missing[@]}"
}

# The first dependency of package $1 whose name matches the awk pattern $2.
depends() {
    apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "$1" |
        awk -v re="$2" '$1 == "Depends:" && $2 ~ re { print $2 }'
}
candidate() { apt-cache policy "$1" | awk '$1 == "Candidate:" { print $2; exit }'; }

# Unpacks packages of this machine's architecture into $WORK/$1 (no install).
unpack_amd64() {
    local to=$WORK/$1; shift
    mkdir -p "$WORK/debs" "$to"
    (cd "$WORK/debs" && run "${APT[@]}" download "$@")
    local d
    for d in "$WORK"/debs/*.deb; do run dpkg-deb -x "$d" "$to"; done
    rm -rf "$WORK/debs"
}

# The same for arm64 packages, with apt state of their own: the machine itself
# gets no foreign architecture.
unpack_arm64() {
    local to=$WORK/$1 a=$WORK/apt-arm64; shift
    mkdir -p "$WORK/debs64" "$to"
    if [ ! -e "$a/ready" ]; then
        mkdir -p "$a"/state/lists/partial "$a"/cache/archives/partial
        : > "$a/status"
        cat > "$a/apt.conf" << EOF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Dir::State "$a/state";
Dir::State::status "$a/status";
Dir::Cache "$a/cache";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
EOF
        run env APT_CONFIG="$a/apt.conf" apt-get -q update
        : > "$a/ready"
    fi
    (cd "$WORK/debs64" && run env APT_CONFIG="$a/apt.conf" apt-get -q download "$@")
    local d
    for d in "$WORK"/debs64/*.deb; do run dpkg-deb -x "$d" "$to"; done
    rm -rf "$WORK/debs64"
}

# --- the toolchain itself --------------------------------------------------

# bin/, lib/ and lib/rustlib/{host,src,etc} in rustup's layout, relocatable.
install_toolchain() {
    apt_update
    local ver std llvm libs r=$WORK/root n=$WORK/new f
    ver=$(candidate rustc-web)
    [ -n "$ver" ] && [ "$ver" != '(none)' ] || die 'Debian has no package rustc-web here'
    std=$(depends libstd-rust-web-dev '^libstd-rust-web-[0-9.]+$' | head -n 1)
    llvm=$(depends "$std" '^libllvm[0-9]+$' | head -n 1)
    [ -n "$std" ] && [ -n "$llvm" ] || die 'rustc-web has an unexpected set of dependencies'
    say "unpacking rustc-web $ver into $PREFIX"
    # What Debian's cargo and LLVM link to at run time.
    mapfile -t libs < <({ depends cargo-web '^lib'; depends "$llvm" '^lib'; } | sort -u)
    apt_install "${libs[@]}"
    unpack_amd64 root "rustc-web=$ver" "cargo-web=$ver" "$std=$ver" "libstd-rust-web-dev=$ver" \
        "rust-web-clippy=$ver" "rustfmt-web=$ver" "rust-web-src=$ver" "$llvm" "lld-${llvm#libllvm}"

    mkdir -p "$n/bin" "$n/lib/rustlib/src/rust" "$n/lib/rustlib/$HOST/bin"
    for f in rustc rustdoc cargo cargo-clippy clippy-driver cargo-fmt rustfmt; do
        mv "$r/usr/bin/$f" "$n/bin/"
        run patchelf --set-rpath '$ORIGIN/../lib' "$n/bin/$f"
    done
    mv "$r"/usr/lib/x86_64-linux-gnu/*.so* "$n/lib/"
    for f in "$n"/lib/librustc_driver-*.so; do run patchelf --set-rpath '$ORIGIN' "$f"; done
    mv "$r/usr/lib/rustlib/etc" "$n/lib/rustlib/"
    mv "$r/usr/lib/rustlib/$HOST/lib" "$n/lib/rustlib/$HOST/"
    cp "$r/usr/lib/llvm-${llvm#libllvm}/bin/lld" "$n/lib/rustlib/$HOST/bin/rust-lld"
    run patchelf --set-rpath '$ORIGIN/../../..' "$n/lib/rustlib/$HOST/bin/rust-lld"
    mv "$r"/usr/src/rustc-*/library "$n/lib/rustlib/src/rust/"
    mkdir "$n/.have"
    printf '%s\n' "$ver" > "$n/.version"
    printf '%s\n' "${llvm#libllvm}" > "$n/.llvm"
    : > "$n/.have/$HOST"
    if ldd "$n"/bin/* "$n/lib/rustlib/$HOST/bin/rust-lld" | grep 'not found' >> "$LOG"; then
        die 'the unpacked toolchain lacks a shared library'
    fi
    run "$n/bin/rustc" -vV
    run "$n/bin/cargo" -V
    rm -rf "$PREFIX" "$r"
    mv "$n" "$PREFIX"
}

# build_library PACKAGE FEATURES TARGET...: builds part of the standard library
# as Rust's own build does (release, bitcode embedded so that lto works), into
# $WORK/target/TARGET/release/deps.
build_library() {
    local pkg=$1 features=$2 t src=$PREFIX/lib/rustlib/src/rust hash args=() remap; shift 2
    for t in "$@"; do args+=(--target "$t"); done
    hash=$("$PREFIX/bin/rustc" -vV | awk '/^commit-hash:/ { print $2 }')
    remap="--remap-path-prefix=$src=/rustc/$hash"
    remap+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=/rust/deps"
    (cd "$src/library" && run env \
        RUSTC="$PREFIX/bin/rustc" RUSTDOC="$PREFIX/bin/rustdoc" RUSTC_BOOTSTRAP=1 \
        RUSTFLAGS="-Cembed-bitcode=yes -Zforce-unstable-if-unmarked $remap" \
        "$PREFIX/bin/cargo" build --locked --release -p "$pkg" --features "$features" \
        "${args[@]}" --target-dir "$WORK/target")
}

# publish TARGET: moves $WORK/lib-TARGET into the toolchain.
publish() {
    local d=$PREFIX/lib/rustlib/$1
    rm -rf "$d"; mkdir -p "$d"
    mv "$WORK/lib-$1" "$d/lib"
    : > "$PREFIX/.have/$1"
}

install_bare_metal() {
    say "building core and alloc for $*"
    build_library alloc compiler-builtins-mem "$@"
    local t
    for t in "$@"; do
        mkdir -p "$WORK/lib-$t"
        cp "$WORK/target/$t"/release/deps/lib{core,alloc,compiler_builtins}-*.rlib "$WORK/lib-$t/"
        publish "$t"
    done
}

# std for musl, and, as in Rust's own build of this target, everything that a
# static executable links to besides: musl, its start-up files, an unwinder.
install_aarch64_musl() {
    local t=aarch64-unknown-linux-musl u=$WORK/arm64 s=$WORK/lib-aarch64-unknown-linux-musl/self-contained
    local gcc=aarch64-linux-gnu-gcc f
    say "building std for $t"
    unpack_arm64 arm64 musl-dev "libunwind-$(cat "$PREFIX/.llvm")-dev"
    build_library sysroot 'panic-unwind backtrace compiler-builtins-mem' "$t"
    mkdir -p "$s"
    cp "$WORK/target/$t"/release/deps/*.rlib "$WORK/lib-$t/"
    cp "$u"/usr/lib/aarch64-linux-musl/{crt1,Scrt1,rcrt1,crti,crtn}.o \
        "$u"/usr/lib/aarch64-linux-musl/lib{c,m,dl,pthread,rt,util}.a "$s/"
    for f in crtbegin.o crtbeginS.o crtend.o crtendS.o; do
        cp "$($gcc -print-file-name=$f)" "$s/"
    done
    # Debian compiled this unwinder against glibc with _FORTIFY_SOURCE, and
    # musl has no __fprintf_chk.
    cat > "$WORK/chk.c" << 'EOF'
extern int vfprintf(void *, const char *, __builtin_va_list);
int __fprintf_chk(void *f, int flag, const char *fmt, ...) {
    __builtin_va_list ap;
    int r;
    (void)flag;
    __builtin_va_start(ap, fmt);
    r = vfprintf(f, fmt, ap);
    __builtin_va_end(ap);
    return r;
}
EOF
    run $gcc -Os -ffreestanding -fno-stack-protector -c "$WORK/chk.c" -o "$WORK/chk.o"
    cp "$(find "$u" -name libunwind.a -type f | head -n 1)" "$s/libunwind.a"
    run aarch64-linux-gnu-ar rcs "$s/libunwind.a" "$WORK/chk.o"
    publish "$t"
}

# --- what to do ------------------------------------------------------------

pkgs=(ca-certificates gcc libc6-dev patchelf gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
apt_install "${pkgs[@]}"

if [ ! -e "$PREFIX/.have/$HOST" ]; then
    workdir
    install_toolchain
fi

bare=() rest=()
for t in "${TARGETS[@]}"; do
    [ ! -e "$PREFIX/.have/$t" ] || continue
    case $t in
        *-none | *-none-*) bare+=("$t") ;;
        *) rest+=("$t") ;;
    esac
done
if [ ${#bare[@]} -gt 0 ]; then
    workdir
    install_bare_metal "${bare[@]}"
fi
for t in "${rest[@]}"; do
    workdir
    case $t in
        aarch64-unknown-linux-musl) install_aarch64_musl ;;
    esac
done

if command -v rustup > /dev/null; then
    link=${RUSTUP_HOME:-$HOME/.rustup}/toolchains/$NAME
    if [ "$(readlink -f "$link" 2> /dev/null)" != "$(readlink -f "$PREFIX")" ]; then
        run rustup toolchain link "$NAME" "$PREFIX"
    fi
    how="cargo +$NAME"
else
    how="$PREFIX/bin/cargo"
fi
say "ready: $("$PREFIX/bin/rustc" -V); use '$how build --target ...' for: $(cd "$PREFIX/.have" && echo *)"
