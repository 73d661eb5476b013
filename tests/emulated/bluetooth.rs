//! Stream, transfer and talks over RFCOMM: the programs between two virtual controllers in an emulated machine,
//! whose kernel has Bluetooth.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use piman_tests::binaries;

use super::Verdict;
use super::machine::scripts;

/// What runs in the machine, in busybox's shell; `$A0` and `$A1` are the addresses of the controllers.
const SCRIPT: &str = r#"
cd /tmp && mkdir files long other records state state2
# Waits until a file has these words.
says() {
    local n=0
    until grep -q "$2" "$1"; do
        n=$((n + 1)); [ $n -lt 600 ] || { echo "FAILED: $1 does not say $2"; cat "$1"; return 1; }
        usleep 100000
    done
}
check() { echo "CHECK $1"; shift; "$@" || { echo "FAILED: $*"; tail -n 30 *.log; false; }; }
exits() { local want=$1 got=0; shift; "$@" || got=$?; [ $got = $want ] || { echo "exit code $got"; false; }; }
serve() {
    piman serve --listen 127.0.0.1 --state state --transfer-dir files --transfer-port 0 --telemetry-dir records \
        --telemetry-port 0 --rpc-port 0 --bluetooth >serve.out 2>serve.log &
    SERVER=$!
    says serve.log 'on channel 3'
}
called() {
    local n=0
    until piman call --state state 10000000feed0001 status >call.out 2>call.log; do
        n=$((n + 1)); [ $n -lt 60 ] || return 1
        sleep 1
    done
    grep -q uptime call.out
}
begun() {
    local n=0
    until [ -n "$(find long -type f -size +500k)" ]; do
        n=$((n + 1)); [ $n -lt 600 ] || return 1
        usleep 100000
    done
    [ ! -e long/long.bin ]
}
head -c 300000 /dev/urandom >files/down.bin
head -c 200001 /dev/urandom >up.bin
head -c 4000000 /dev/urandom >files/long.bin
cp up.bin other/
n=0; while [ $n -lt 200 ]; do echo "$n,record"; n=$((n + 1)); done >records.csv

check 'the server listens' serve &&
# All at once: the records on a channel of their own, the second file as soon as the first has left its channel.
{ piman get "[$A0]:down.bin" got.bin >get.out 2>get.log & GET=$!; piman put up.bin "[$A0]:" >put.out 2>put.log & PUT=$!; } &&
check 'records are sent' piman telemetry --no-follow --tries 3 records.csv $A0 2>stream.log &&
check 'a file is got' wait $GET && check 'it is the same' cmp got.bin files/down.bin &&
check 'a file is put' wait $PUT && check 'it is the same' cmp up.bin files/up.bin &&
check 'neither was tried twice' [ ! -s get.log -a ! -s put.log ] &&
check 'there is one file of records' [ $(ls records/*.csv | wc -l) = 1 ] &&
check 'all of them are kept' cmp records.csv records/*.csv &&
check 'the agent sends its figures' pi-agent metrics --server $A0 --interval 1 --count 3 2>figures.log &&
check 'these are kept, too' [ $(cat records/*.csv | wc -l) -ge 203 ] &&
{ pi-agent run --server $A0 --serial 10000000feed0001 >run.out 2>run.log & } &&
check 'the agent is called' called &&
check 'a file that is not there is refused' exits 3 piman get --tries 1 "[$A0]:none" &&
check 'a channel on which nobody listens is said to be' exits 5 piman get --tries 1 --port 29 "[$A0]:x" &&
check 'no channel is said to be none' exits 5 piman get --tries 1 --port 31 "[$A0]:x" &&
check 'a taken channel is said to be' exits 1 piman serve --listen 127.0.0.1 --state state2 --transfer-dir other --transfer-port 0 --bluetooth 1 2>taken.log &&
check 'by its number' says taken.log 'Bluetooth channel 2' &&
{ piman serve --listen 127.0.0.1 --state state2 --transfer-dir other --transfer-port 0 --bluetooth 7 >other.out 2>other.log & } &&
check 'another server listens' says other.log 'on channel 8' &&
check 'a file is got from its channel' piman get --port 8 "[$A0]:up.bin" other.bin 2>get.log &&
check 'it is the same' cmp other.bin up.bin &&
# The server is killed in the middle of a file.
{ piman get --tries 30 --json "[$A0]:long.bin" long >long.out 2>long.log & GET=$!; } &&
check 'some of a long file is there' begun &&
kill -9 $SERVER && { wait $SERVER; true; } &&
check 'the server listens again' serve &&
check 'the long file is got' wait $GET && check 'it is the same' cmp long/long.bin files/long.bin &&
check 'it went on where it was' grep -q '"resumed_at":[1-9]' long.out && cat long.out &&
check 'the agent is called again' called &&
echo "ALL-CHECKED"
"#;

/// The guest's script, or what is missing.
fn guest() -> Result<PathBuf, String> {
    for program in ["qemu-system-x86_64", "busybox", "cpio", "strip"] {
        if Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Err(format!("{program} is not installed"));
        }
    }
    Ok(scripts().join("rfcomm-guest.sh"))
}

pub(crate) fn services_over_rfcomm() -> Verdict {
    let guest = guest()?;
    let folder = tempfile::tempdir().unwrap();
    // Without what a debugger wants: all of it is in the machine's memory.
    let small = |program: &Path| {
        let to = folder.path().join(program.file_name().unwrap());
        let stripped = Command::new("strip").arg("-o").arg(&to).arg(program).status().unwrap();
        assert!(stripped.success());
        to
    };
    let (piman, agent) = (small(binaries::piman()), small(binaries::pi_agent()));
    let mut command = Command::new(guest);
    command.arg("--add").arg(&piman).arg("--add").arg(&agent).args(["--timeout", "400", SCRIPT]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let console = String::from_utf8_lossy(&output.stdout);
    println!("{console}{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() && !console.contains("CHECK ") {
        return Err("the emulated machine has not come up".into());
    }
    assert!(output.status.success() && console.contains("ALL-CHECKED"), "not all of it holds");
    let readme =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../host/README.md")).expect("the README");
    let row = "| Bluetooth RFCOMM | `piman` and `pi-agent`, virtual controllers of an emulated machine | – | yes | yes | yes | – |";
    assert!(readme.contains(row), "the README should have this row:\n{row}");
    Ok(())
}
